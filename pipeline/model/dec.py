"""The equations of Deep Embedded Clustering (Xie, Girshick & Farhadi 2016).

Shape letters: B batch, D embedding, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(z_BD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Squared Euclidean distance of every embedding to every centroid, as one matrix product.

    Args:
        z_BD: Embeddings, shape (batch, embedding).
        centroids_KD: Centroids, shape (n_clusters, embedding), of the same dtype.

    Returns:
        ‖z_i − μ_j‖², shape (batch, n_clusters), never negative.
    """
    # ‖z‖² + ‖μ‖² − 2zμ loses digits when the points lie far from the origin, so move the origin
    # into their midst first: distances do not change.
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
    distances_BK = squared_distances(z_BD, centroids_KD)
    # softmax of the kernel's logarithm: the same value, without overflow for a large alpha.
    return torch.softmax(-(alpha + 1) / 2 * torch.log1p(distances_BK / alpha), dim=1)


def target_distribution(q_BK: Tensor, frequency_K: Tensor) -> Tensor:
    """Sharpen soft assignments (Xie et al. 2016, eq. 3): p_ij = (q_ij²/f_j) / Σ_k (q_ik²/f_k).

    Args:
        q_BK: Soft assignments, shape (batch, n_clusters); rows sum to 1.
        frequency_K: f_j = Σ_i q_ij over the whole pass, not this batch, shape (n_clusters,),
            float64, in rows. A cluster of frequency 0 attracts nothing.

    Returns:
        p_BK, same shape and dtype as q_BK; rows sum to 1; detached.
    """
    q_BK = q_BK.detach()
    # p does not change when f is scaled; shares instead of row counts keep float32 in range.
    share_K = (frequency_K / frequency_K.sum()).to(q_BK.dtype)
    tiny = torch.finfo(q_BK.dtype).tiny
    weight_BK = q_BK.square() / share_K.clamp_min(tiny)
    return weight_BK / weight_BK.sum(dim=1, keepdim=True)


def kl_divergence(p_BK: Tensor, q_BK: Tensor) -> Tensor:
    """KL(P‖Q) = Σ_i Σ_j p_ij log(p_ij/q_ij) (Xie et al. 2016, eq. 2).

    Args:
        p_BK: Target distribution, shape (batch, n_clusters).
        q_BK: Soft assignments, same shape.

    Returns:
        Scalar, in nats, summed over the batch as the paper has it: sums add up over batches and
        workers, so divide by the rows once, at the end.
    """
    tiny = torch.finfo(q_BK.dtype).tiny
    return (torch.xlogy(p_BK, p_BK) - p_BK * q_BK.clamp_min(tiny).log()).sum()
