"""The first clusters, from the embeddings of a sample: scale, their number, k-means, merged cells.

Shape letters: N points, F features, D dimensions of the embedding, K clusters, C cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.kmeans import KMeansResult, kmeans
from pipeline.clustering.merging import Found, find_clusters
from pipeline.clustering.metric import table_metric
from pipeline.clustering.starts import MergedStart, merged_start
from pipeline.config import AutoClusters, Config


@dataclass(frozen=True)
class FirstClusters:
    """What refinement starts from. All points are embeddings after their transformation.

    Attributes:
        transform_DD: Matrix M that embeddings z are to be multiplied with, z M, shape (D, D).
        kmeans: The best of the k-means runs.
        merged: Merged cells; None where k-means is the start.
        choice: How the number of clusters was found; None where it was given.
        rows: Number of points.
    """

    transform_DD: NDArray[np.float64]
    kmeans: KMeansResult
    merged: MergedStart | None
    choice: Found | None
    rows: int

    @property
    def centroids_KD(self) -> NDArray[np.float32]:
        """First centroids of refinement."""
        return self.merged.centroids_KD if self.merged else self.kmeans.centroids_KD


def find_first_clusters(
    config: Config, z_ND: NDArray[np.float32], x_NF: NDArray[np.float32]
) -> FirstClusters:
    """Scale the embedding, find K where it is auto, and cluster.

    Args:
        config: The settings.
        z_ND: Embeddings of the sample, as pretraining left them, shape (rows, embedding).
        x_NF: The same rows, scaled, shape (rows, features).

    Raises:
        InputError: There are fewer points than clusters.
        NumericalError: Embeddings are not finite.
    """
    transform_DD = np.eye(z_ND.shape[1])
    if config.embedding.metric == "table" and np.isfinite(z_ND).all():
        transform_DD = table_metric(z_ND, x_NF)
    points_ND = (z_ND @ transform_DD).astype(np.float32)
    clusters, choice = config.most_clusters, None
    if isinstance(config.clusters, AutoClusters):
        choice = find_clusters(points_ND, config.clusters.most, config.seed)
        clusters = choice.clusters
    found = kmeans(
        points_ND,
        clusters,
        restarts=config.centroids.restarts,
        iterations=config.centroids.iterations,
        seed=config.seed,
    )
    merged = None
    if config.centroids.start == "merged":
        merged = merged_start(
            {"embeddings": points_ND, "features": x_NF},
            clusters,
            starts=config.centroids.restarts,
            seed=config.seed,
        )
    factor = spread_factor(
        config.embedding.spread, found.objective / len(points_ND), len(points_ND[0])
    )
    return FirstClusters(
        transform_DD=transform_DD * factor,
        kmeans=found.scaled(factor),
        merged=merged.scaled(factor) if merged else None,
        choice=choice,
        rows=len(points_ND),
    )


def spread_factor(spread: float | None, mean_square: float, embedding: int) -> float:
    """Factor that gives embeddings the spread that refinement starts from.

    Student's t compares a squared distance with alpha, but the autoencoder's loss does not fix the
    width of its embedding: if it is too narrow, every row is equally similar to all clusters.

    Args:
        spread: Wanted root mean square distance to the nearest centroid per dimension; None leaves
            embeddings unchanged.
        mean_square: Mean squared distance to the nearest centroid now.
        embedding: D, width of the embedding.
    """
    if spread is None or mean_square <= 0:
        return 1.0
    return spread / math.sqrt(mean_square / embedding)
