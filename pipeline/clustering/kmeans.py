"""k-means with restarts, by FAISS."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, NumericalError

# Maximum number of multiplications of all restarts together: about five minutes on two cores.
WORK = 10**13
_LEAST_ITERATIONS = 10


@dataclass(frozen=True)
class KMeansResult:
    """The best of several k-means runs."""

    centroids_KD: NDArray[np.float32]
    cluster_rows: tuple[int, ...]  # number of points nearest to each centroid
    objective: float  # Σ_i ‖x_i − μ‖² of the best run
    objectives: tuple[float, ...]  # objective of every run, in the order of their seeds

    def scaled(self, factor: float) -> KMeansResult:
        """The same of points that are multiplied with a factor."""
        return KMeansResult(
            centroids_KD=self.centroids_KD * np.float32(factor),
            cluster_rows=self.cluster_rows,
            objective=self.objective * factor**2,
            objectives=tuple(objective * factor**2 for objective in self.objectives),
        )


def nearest_centroid(
    points: NDArray[np.float32], centroids_KD: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The cluster of every point, shape (n_points,), of points (n_points, dimensions)."""
    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(np.ascontiguousarray(centroids_KD))
    _, nearest = index.search(np.ascontiguousarray(points), 1)
    labels: NDArray[np.int64] = nearest[:, 0]
    return labels


def affordable(
    multiplications: int, *, restarts: int, iterations: int, work: int = WORK
) -> tuple[int, int]:
    """Restarts and iterations within ``work`` multiplications, given those of one iteration.

    Restarts are reduced first, then iterations down to 10.
    """
    most = work // multiplications  # iterations, all runs together
    return max(1, min(restarts, most // iterations)), min(iterations, max(_LEAST_ITERATIONS, most))


def kmeans(
    points: NDArray[np.float32],
    clusters: int,
    *,
    restarts: int,
    iterations: int,
    seed: int,
    work: int = WORK,
) -> KMeansResult:
    """Lloyd's algorithm, restarted from different points; the lowest objective wins.

    Args:
        points: Shape (n_points, dimensions), float32.
        clusters: Number of clusters, at most n_points.
        restarts: Number of runs, with seeds derived from ``seed``.
        iterations: Lloyd iterations per run.
        seed: Same seed and points, same result on the same number of threads.
        work: Maximum number of multiplications of all runs, because hundreds of thousands of
            clusters would take days; see ``affordable``.

    Raises:
        InputError: There are fewer points than clusters.
        NumericalError: Points or centroids are not finite.
    """
    if len(points) < clusters:
        raise InputError(
            f"clusters={clusters} needs at least as many rows; the sample has {len(points)}. "
            "Lower clusters or give more rows"
        )
    if not np.isfinite(points).all():
        raise NumericalError(
            "init_centroids: embeddings are not finite; lower pretrain.learning_rate"
        )
    points = np.ascontiguousarray(points, dtype=np.float32)
    restarts, iterations = affordable(
        points.size * clusters, restarts=restarts, iterations=iterations, work=work
    )
    objectives: list[float] = []
    for restart in range(restarts):
        search = faiss.Kmeans(
            points.shape[1],
            clusters,
            niter=iterations,
            seed=(seed + restart) % 2**31,
            # By default FAISS uses at most 256 points per centroid and warns below 39; the sample
            # has the right size already.
            max_points_per_centroid=len(points),
            min_points_per_centroid=1,
        )
        search.train(points)
        squared, nearest = search.index.search(points, 1)
        # Objective of the final centroids; FAISS's own is that of the iteration before.
        objective = float(squared.sum(dtype=np.float64))
        if not objectives or objective < min(objectives):
            centroids_KD = np.array(search.centroids)
            cluster_rows = tuple(np.bincount(nearest[:, 0], minlength=clusters).tolist())
        objectives.append(objective)
    return KMeansResult(centroids_KD, cluster_rows, min(objectives), tuple(objectives))


def use_threads(threads: int) -> None:
    """Set the number of FAISS's threads in this process."""
    faiss.omp_set_num_threads(threads)
