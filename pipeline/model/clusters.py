"""The model: an encoder and centroids, and the merged cells that its first centroids come from.

Shape letters: B batch, F features, D embedding, K clusters, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.dec import log_soft_assignment, squared_distances


class ClusterModel(nn.Module):
    """Encoder and centroids, which refinement trains and which assign rows to clusters."""

    def __init__(self, encoder: nn.Module, centroids_KD: Tensor, alpha: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.centroids_KD = nn.Parameter(centroids_KD.clone())
        self.alpha = alpha

    def forward(self, x_BF: Tensor) -> Tensor:
        """Soft assignment q of scaled rows: (batch, features) → (batch, n_clusters)."""
        return self.log_q(x_BF).exp()

    def log_q(self, x_BF: Tensor) -> Tensor:
        """Logarithm of q, which is finite where q is too small for its dtype."""
        return log_soft_assignment(self.encoder(x_BF), self.centroids_KD, self.alpha)


@dataclass(frozen=True)
class Cells:
    """Cells of the first embedding, and the cluster that each was merged into.

    Attributes:
        centroids_CD: Centroids of the cells, shape (n_cells, embedding).
        cluster_C: Cluster of each cell, shape (n_cells,), int64.
    """

    centroids_CD: Tensor
    cluster_C: Tensor

    def to(self, device: torch.device | None) -> Cells:
        """The same on a device; None: unchanged."""
        return Cells(self.centroids_CD.to(device), self.cluster_C.to(device))

    def cluster_of(self, z_BD: Tensor) -> Tensor:
        """Cluster of the cell that is nearest to each embedding, shape (batch,)."""
        return self.cluster_C[squared_distances(z_BD, self.centroids_CD).argmin(dim=1)]
