"""The model: an encoder and centroids, and the merged cells that its first centroids come from.

Shape letters: B batch, F features, D embedding, K clusters, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """Cells of scaled rows or of their first embedding, and the cluster each was merged into.

    Attributes:
        centroids_CD: Centroids of the cells, shape (n_cells, embedding or features).
        cluster_C: Cluster of each cell, shape (n_cells,), int64.
        embedded: Whether they are cells of embeddings.
    """

    centroids_CD: Tensor
    cluster_C: Tensor
    embedded: bool = True

    def to(self, device: torch.device | None) -> Cells:
        """The same on a device; None: unchanged."""
        return replace(
            self, centroids_CD=self.centroids_CD.to(device), cluster_C=self.cluster_C.to(device)
        )

    def cluster_of(self, x_BF: Tensor, encoder: nn.Module) -> Tensor:
        """Cluster of the cell that is nearest to each scaled row or its embedding, shape (batch,).

        Args:
            x_BF: Scaled rows, shape (batch, features).
            encoder: The first encoder, as the cells know it.
        """
        points_BD = encoder(x_BF) if self.embedded else x_BF
        return self.cluster_C[squared_distances(points_BD, self.centroids_CD).argmin(dim=1)]
