"""Whether a clustering holds for rows that it did not learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.dec import clustering_loss, rows_at_a_time, soft_assignment

_ROWS = 2048


def generalisation(
    z_ND: Tensor, centroids_KD: Tensor, unseen_N: Tensor, alpha: float, size_balance: float
) -> float | None:
    """KL of the rows that training saw over KL of held-out rows.

    G in Xie et al. 2016, section 5.2: near 1 where the model has learnt, small where it has
    memorised. The frequencies of the target are those of the seen rows for both. ``unseen_N``
    marks the rows that training did not see; ``alpha`` and ``size_balance`` are refinement's.

    Returns:
        The ratio; None where either kind of rows is missing, or the divisor is 0.
    """
    seen, unseen = z_ND[~unseen_N], z_ND[unseen_N]
    if not len(seen) or not len(unseen):
        return None
    frequency_K = torch.zeros(len(centroids_KD), dtype=torch.float64)
    some = rows_at_a_time(len(centroids_KD), _ROWS)
    for z_BD in torch.split(seen, some):
        frequency_K += soft_assignment(z_BD, centroids_KD, alpha).sum(dim=0, dtype=torch.float64)

    def mean_kl(rows_ND: Tensor) -> float:
        kl = (
            clustering_loss(z_BD, centroids_KD, frequency_K, alpha, size_balance=size_balance)[
                0
            ].item()
            for z_BD in torch.split(rows_ND, some)
        )
        return sum(kl) / len(rows_ND)

    unseen_kl = mean_kl(unseen)
    return mean_kl(seen) / unseen_kl if unseen_kl > 0 else None
