"""The equations of Deep Embedded Clustering (Xie, Girshick & Farhadi 2016).

Shape letters: B batch, D embedding, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Number of similarities held at a time while rows are assigned: 1 MiB of float32 stays in a
# processor's cache; 64 MiB took nine times as long for 1,000 clusters. A GPU needs large batches.
_SIMILARITIES = {"cpu": 2**18, "cuda": 2**26}

# The same where all of q is needed, and each sweep over it is long: 64 MiB of float32.
_ASSIGNMENTS = 2**24


def rows_at_a_time(clusters: int, most: int) -> int:
    """Number of rows, at most ``most``, whose soft assignments fit in memory together."""
    return max(1, min(most, _ASSIGNMENTS // clusters))


def squared_distances(z_BD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Squared Euclidean distance of every embedding to every centroid, as one matrix product.

    Args:
        z_BD: Embeddings, shape (batch, embedding).
        centroids_KD: Centroids, shape (n_clusters, embedding), of the same dtype.

    Returns:
        ‖z_i − μ_j‖², shape (batch, n_clusters), never negative.
    """
    # ‖z‖² + ‖μ‖² − 2zμ loses digits when points are far from the origin: move the origin first.
    origin_D = centroids_KD.detach().mean(dim=0)
    z_BD, centroids_KD = z_BD - origin_D, centroids_KD - origin_D
    norms_B1 = z_BD.square().sum(dim=1, keepdim=True)
    norms_K = centroids_KD.square().sum(dim=1)
    return torch.addmm(norms_B1 + norms_K, z_BD, centroids_KD.T, alpha=-2).clamp_min(0)


def soft_assignment(z_BD: Tensor, centroids_KD: Tensor, alpha: float = 1.0) -> Tensor:
    """Student-t similarity of embeddings to centroids (Xie et al. 2016, eq. 1).

    q_ij = (1 + ‖z_i − μ_j‖²/α)^(−(α+1)/2) / Σ_k (1 + ‖z_i − μ_k‖²/α)^(−(α+1)/2)

    Args:
        z_BD: Embeddings, shape (batch, embedding).
        centroids_KD: Centroids, shape (n_clusters, embedding).
        alpha: Degrees of freedom of the Student-t kernel, > 0; the paper uses 1.

    Returns:
        q_BK, shape (batch, n_clusters); rows sum to 1.
    """
    return log_soft_assignment(z_BD, centroids_KD, alpha).exp()


def log_soft_assignment(z_BD: Tensor, centroids_KD: Tensor, alpha: float = 1.0) -> Tensor:
    """Logarithm of ``soft_assignment``, finite where q itself is too small for its dtype."""
    distances_BK = squared_distances(z_BD, centroids_KD)
    # In logarithms: without overflow for a large alpha.
    return torch.log_softmax(-(alpha + 1) / 2 * torch.log1p(distances_BK / alpha), dim=1)


@dataclass(frozen=True)
class Nearest:
    """The two clusters that each row is nearest to."""

    clusters_B2: Tensor  # positions of the clusters, nearest first, shape (batch, 2), int64
    q_B2: Tensor  # soft assignments to them, shape (batch, 2)
    distance_B: Tensor  # Euclidean distance to the nearest; NaN where an embedding is not finite


@torch.no_grad()
def nearest_two(z_BD: Tensor, centroids_KD: Tensor, alpha: float = 1.0) -> Nearest:
    """Soft assignments to the two nearest clusters, without q of all the others.

    A few rows at a time against all clusters, so that memory does not grow with batch × clusters.

    Args:
        z_BD: Embeddings, shape (batch, embedding).
        centroids_KD: At least two centroids, shape (n_clusters, embedding), of the same dtype.
        alpha: Degrees of freedom of the Student-t kernel, > 0.
    """
    origin_D = centroids_KD.mean(dim=0)  # see squared_distances
    z_BD, mu_KD = z_BD - origin_D, centroids_KD - origin_D
    # ‖z − μ‖² = (z, 1, ‖z‖²) · (−2μ, ‖μ‖², 1): one product, and no pass to add the norms.
    norms_K1, norms_B1 = (m.square().sum(dim=1, keepdim=True) for m in (mu_KD, z_BD))
    right_CK = torch.cat([-2 * mu_KD, norms_K1, torch.ones_like(norms_K1)], dim=1).T
    left_BC = torch.cat([z_BD, torch.ones_like(norms_B1), norms_B1], dim=1)
    clusters_B2 = torch.empty((len(z_BD), 2), dtype=torch.int64, device=z_BD.device)
    q_B2 = z_BD.new_empty((len(z_BD), 2))
    step = max(1, _SIMILARITIES.get(z_BD.device.type, 2**18) // len(centroids_KD))
    buffers = z_BD.new_empty((2, min(step, len(z_BD)), len(centroids_KD)))
    for start in range(0, len(z_BD), step):
        some = slice(start, start + step)
        distances_BK, kernel_BK = buffers[:, : len(left_BC[some])]
        torch.mm(left_BC[some], right_CK, out=distances_BK)
        distances_BK.clamp_min_(0)
        # By distance and not by kernel: 1/(1 + d²) is 1 for every d² that float32 cannot add to 1.
        first_B, clusters_B2[some, 0] = distances_BK.min(dim=1)
        _similarity_(kernel_BK.copy_(distances_BK), first_B[:, None], alpha)
        total_B1 = kernel_BK.sum(dim=1, keepdim=True)
        distances_BK.scatter_(1, clusters_B2[some, :1], torch.inf)
        clusters_B2[some, 1] = distances_BK.argmin(dim=1)
        q_B2[some] = kernel_BK.gather(1, clusters_B2[some]) / total_B1
    # The product is exact enough to find the nearest, but loses digits of a small distance.
    distance_B = (z_BD - mu_KD[clusters_B2[:, 0]]).square().sum(dim=1).sqrt()
    return Nearest(clusters_B2, q_B2, distance_B)


def _similarity_(distances_BK: Tensor, nearest_B1: Tensor, alpha: float) -> None:
    """Turn squared distances, in place, into the kernel of eq. 1, up to a factor for each row."""
    if alpha == 1:
        distances_BK.add_(1).reciprocal_()
        return
    power = -(alpha + 1) / 2
    distances_BK.div_(alpha).log1p_()
    # Relative to the nearest, or a large alpha leaves nothing of any cluster.
    distances_BK.sub_(torch.log1p(nearest_B1 / alpha)).mul_(power).exp_()


def clustering_loss(
    z_BD: Tensor,
    centroids_KD: Tensor,
    frequency_K: Tensor,
    alpha: float = 1.0,
    target_q_BK: Tensor | None = None,
    *,
    size_balance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """KL(P‖Q) of a batch, differentiable in embeddings and centroids.

    KL(P‖Q) = Σ_i Σ_j p_ij log(p_ij/q_ij) (Xie et al. 2016, eq. 2), with the target
    p_ij = (q_ij²/f_j^γ) / Σ_k (q_ik²/f_k^γ), which is eq. 3 for γ = 1. Its gradients are equations
    4 and 5 in closed form: a third of the sweeps over batch × clusters that differentiating
    equations 1 to 3 step by step would take.

    Args:
        z_BD: Embeddings, shape (batch, embedding).
        centroids_KD: Centroids, shape (n_clusters, embedding), of the same dtype.
        frequency_K: f_j = Σ_i q_ij over the whole pass, not this batch, shape (n_clusters,),
            float64, in rows. A cluster of frequency 0 attracts nothing.
        alpha: Degrees of freedom of the Student-t kernel, > 0.
        target_q_BK: Soft assignments to sharpen into P, shape (batch, n_clusters); None sharpens
            those of ``z_BD`` itself.
        size_balance: γ, in [0, 1]: how strongly the target draws rows to small clusters. 1 is the
            paper's and evens sizes out; 0 leaves sizes alone.

    Returns:
        KL in nats, a scalar, summed over the batch as the paper has it; and the soft assignments
        that were sharpened, detached.
    """
    kl, sharpened_BK = _ClusteringLoss.apply(  # type: ignore[no-untyped-call]
        z_BD, centroids_KD, frequency_K, alpha, target_q_BK, size_balance
    )
    return kl, sharpened_BK


class _ClusteringLoss(torch.autograd.Function):
    """∂L/∂z_i = Σ_j g_ij (z_i − μ_j) and ∂L/∂μ_j = −Σ_i g_ij (z_i − μ_j).

    With g_ij = (α+1)/α · (p_ij − q_ij) / (1 + ‖z_i − μ_j‖²/α).
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_BD: Tensor,
        centroids_KD: Tensor,
        frequency_K: Tensor,
        alpha: float,
        target_q_BK: Tensor | None,
        size_balance: float,
    ) -> tuple[Tensor, Tensor]:
        # In logarithms: each is taken once, and nothing is divided by 0. In place: a new matrix
        # costs more than what is computed in it.
        spread_BK = squared_distances(z_BD, centroids_KD).div_(alpha)
        log_q_BK = torch.log_softmax(torch.log1p(spread_BK).mul_(-(alpha + 1) / 2), dim=1)
        q_BK = log_q_BK.exp()
        tiny = torch.finfo(q_BK.dtype).tiny
        if target_q_BK is None:
            sharpened_BK, log_target_BK = q_BK, log_q_BK
        else:
            sharpened_BK = target_q_BK.detach()
            log_target_BK = sharpened_BK.clamp_min(tiny).log_()
        # p does not depend on the scale of f, and shares keep float32 in range.
        share_K = (frequency_K / frequency_K.sum()).to(q_BK.dtype).clamp_min(tiny)
        push_K = share_K.log_().mul_(size_balance)
        log_p_BK = torch.log_softmax((2 * log_target_BK).sub_(push_K), dim=1)
        p_BK = log_p_BK.exp()
        kl = log_p_BK.sub_(log_q_BK).mul_(p_BK).sum()
        pull_BK = p_BK.sub_(q_BK).mul_((alpha + 1) / alpha).div_(spread_BK.add_(1))
        ctx.save_for_backward(z_BD, centroids_KD, pull_BK)
        ctx.mark_non_differentiable(sharpened_BK)
        return kl, sharpened_BK

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z_BD, centroids_KD, pull_BK = ctx.saved_tensors
        origin_D = centroids_KD.mean(dim=0)  # see squared_distances
        z_BD, centroids_KD = z_BD - origin_D, centroids_KD - origin_D
        z_grad_BD = pull_BK.sum(dim=1, keepdim=True) * z_BD - pull_BK @ centroids_KD
        mu_grad_KD = pull_BK.sum(dim=0)[:, None] * centroids_KD - pull_BK.T @ z_BD
        return grad * z_grad_BD, grad * mu_grad_KD, None, None, None, None
