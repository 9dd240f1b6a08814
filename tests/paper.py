"""Equations 2 and 3 of Xie, Girshick & Farhadi 2016, step by step: what the product has in one."""

from __future__ import annotations

import torch
from torch import Tensor


def target_distribution(q_BK: Tensor, frequency_K: Tensor, size_balance: float = 1.0) -> Tensor:
    """Sharpen soft assignments: p_ij = (q_ij²/f_j^γ) / Σ_k (q_ik²/f_k^γ).

    For γ = 1 that is Xie et al. 2016, eq. 3.

    Args:
        q_BK: Soft assignments, shape (batch, n_clusters); rows sum to 1.
        frequency_K: f_j = Σ_i q_ij over the whole pass, not this batch, shape (n_clusters,),
            float64, in rows. A cluster of frequency 0 attracts nothing.
        size_balance: γ.

    Returns:
        p_BK, same shape and dtype as q_BK; rows sum to 1; detached.
    """
    q_BK = q_BK.detach()
    frequency_K = frequency_K.to(q_BK.dtype).clamp_min(torch.finfo(q_BK.dtype).tiny)
    weight_BK = q_BK.square() / frequency_K**size_balance
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
    return (
        torch.xlogy(p_BK, p_BK) - p_BK * q_BK.clamp_min(torch.finfo(q_BK.dtype).tiny).log()
    ).sum()
