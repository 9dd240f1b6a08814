"""How good a partition is, without labels: modularity, silhouette, objective ratio, balance.

Pure functions of points and labels. Shape letters: N points, Q of them asked for their
neighbours, M neighbours of a point, D dimensions of a space, K clusters.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.agreement import agreement

# A silhouette compares all its points with one another: 5,000 of them are 25 million distances.
SILHOUETTE_ROWS = 5_000
_MOST_ROWS_PER_CLUSTER = 200
_LEAST_ROWS_PER_CLUSTER = 10
_WORKING_MEMORY_MIB = 128
# Numbers handled at a time where all points are looked at: 64 MiB of float64.
_CHUNK = 2**23


def contingency_of(rows_N: NDArray[np.int64], columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Points counted by two labels each, shape (largest row label + 1, largest column label + 1).

    Args:
        rows_N: Labels from 0, shape (n_points,); points of a negative label do not count.
        columns_N: The same, by the other partition.
    """
    known_N = (rows_N >= 0) & (columns_N >= 0)
    rows_N, columns_N = rows_N[known_N], columns_N[known_N]
    shape = (int(rows_N.max(initial=0)) + 1, int(columns_N.max(initial=0)) + 1)
    cells = np.bincount(rows_N * shape[1] + columns_N, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def stratified_rows(labels_N: NDArray[np.int64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Points to measure a silhouette on: the same number of each cluster, as far as it has them.

    Uniform draws leave small clusters with a handful of points or none, so their silhouettes would
    be missing just where clusterings differ. At most 200 points a cluster and at least 10, about
    5,000 in all and never more than 10,000: of more than 1,000 clusters, some are left out.

    Args:
        labels_N: Cluster of each point, shape (n_points,).
        clusters: K.
        seed: Same seed, same labels: same points.

    Returns:
        Indices of the points, ascending.
    """
    share = SILHOUETTE_ROWS // clusters
    most = min(_MOST_ROWS_PER_CLUSTER, max(_LEAST_ROWS_PER_CLUSTER, share))
    shuffled = np.random.default_rng(seed).permutation(len(labels_N))
    order = np.argsort(labels_N[shuffled], kind="stable")
    counts_K = np.bincount(labels_N, minlength=clusters)
    first_K = np.cumsum(counts_K) - counts_K
    place_N = np.arange(len(labels_N)) - np.repeat(first_K, counts_K)
    drawn_N = place_N < most
    stride = -(-clusters * most // (2 * SILHOUETTE_ROWS))
    if stride > 1:  # too many clusters: some of them, chosen by where their points lie in the draw
        leaders = np.sort(order[place_N == 0])[::stride]
        drawn_N &= np.isin(labels_N[shuffled[order]], labels_N[shuffled[leaders]])
    return np.sort(shuffled[order[drawn_N]])


def macro_silhouette(points_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Mean over the clusters of the mean silhouette of their points.

    s = (b − a) / max(a, b), where a is the mean distance to the other points of the same cluster
    and b the least mean distance to the points of another (Rousseeuw 1987). Every cluster counts
    the same however many points it has (macro-averaged: Pavlopoulos et al. 2024, "Revisiting
    silhouette aggregation"). Both means are per cluster, so that points drawn cluster by cluster
    estimate them without bias.

    Args:
        points_ND: Points drawn by ``stratified_rows``, shape (n_points, dimensions).
        labels_N: Their clusters, shape (n_points,).

    Returns:
        In [−1, 1], higher is better; 0 where there is nothing to compare: one cluster alone, or
        every point its own.
    """
    import sklearn
    from sklearn.metrics import silhouette_samples

    present, labels_N = np.unique(labels_N, return_inverse=True)
    if not 2 <= len(present) < len(labels_N):
        return 0.0
    with sklearn.config_context(working_memory=_WORKING_MEMORY_MIB):
        silhouettes_N = silhouette_samples(points_ND, labels_N)
    sums_K = np.bincount(labels_N, weights=silhouettes_N)
    return float((sums_K / np.bincount(labels_N)).mean())


def objective_ratio(
    points_ND: NDArray[np.float32], labels_N: NDArray[np.int64], clusters: int
) -> float:
    """The k-means objective of a partition as a share of what one cluster would have.

    Σ_i ‖x_i − mean of its cluster‖² / Σ_i ‖x_i − mean of all‖²: the share of the variance that is
    left within clusters. A ratio, so that it does not depend on the scale of a space.

    Args:
        points_ND: Shape (n_points, dimensions).
        labels_N: Cluster of each point, shape (n_points,).
        clusters: K.

    Returns:
        In [0, 1], lower is better; 1 where all points are equal: nothing is explained.
    """
    from scipy.sparse import csr_array

    rows, dimensions = points_ND.shape
    mean_D = points_ND.mean(axis=0, dtype=np.float64)
    sums_KD = np.zeros((clusters, dimensions))
    total = 0.0
    step = max(1, _CHUNK // dimensions)
    for start in range(0, rows, step):
        # From the mean, for else the squares of points far from the origin cancel.
        part_BD = points_ND[start : start + step].astype(np.float64) - mean_D
        labels_B = labels_N[start : start + step]
        ones = (np.ones(len(labels_B)), (labels_B, np.arange(len(labels_B))))
        sums_KD += csr_array(ones, shape=(clusters, len(labels_B))) @ part_BD
        total += float(np.square(part_BD).sum())
    if not total:
        return 1.0
    counts_K = np.maximum(np.bincount(labels_N, minlength=clusters), 1)
    between = float((np.square(sums_KD).sum(axis=1) / counts_K).sum())
    return float(np.clip(1 - between / total, 0.0, 1.0))


def balance(cluster_rows_K: NDArray[np.int64]) -> float:
    """Evenness of the sizes of clusters: their entropy over log K (Pielou's evenness).

    Args:
        cluster_rows_K: Points of each cluster, empty ones included, shape (n_clusters,), K ≥ 2.

    Returns:
        In [0, 1]: 1 where all are of one size, 0 where one cluster has everything.
    """
    share_K = cluster_rows_K[cluster_rows_K > 0] / max(1, cluster_rows_K.sum())
    entropy = float(-(share_K * np.log(share_K)).sum())
    return abs(entropy) / float(np.log(len(cluster_rows_K)))


def stability(first_N: NDArray[np.int64], second_N: NDArray[np.int64]) -> float:
    """Agreement of two partitions of the same points: their adjusted Rand index, at most 1."""
    return agreement(contingency_of(first_N, second_N)).ari


def nearest_neighbours(
    points_ND: NDArray[np.float32], queries: int, neighbours: int
) -> NDArray[np.int64]:
    """Nearest other points of the first points, exactly, by Euclidean distance.

    Args:
        points_ND: At least two, in random order; shape (n_points, dimensions).
        queries: Q, how many of them are asked, from the first.
        neighbours: M, asked of each; fewer where there are not so many others.

    Returns:
        Indices of points, nearest first, shape (Q, M).
    """
    # FAISS takes distances from ‖x‖² + ‖y‖² − 2xy, which loses digits far from the origin.
    points_ND = points_ND - points_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    queries = min(queries, len(points_ND))
    neighbours = min(neighbours, len(points_ND) - 1)
    index = faiss.IndexFlatL2(points_ND.shape[1])
    index.add(points_ND)
    _, found = index.search(points_ND[:queries], neighbours + 1)
    itself = found == np.arange(queries)[:, None]
    # Among equal points a point need not be its own nearest, nor among those found at all.
    itself[~itself.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~itself].reshape(queries, neighbours)
    return others


def modularity(
    neighbours_QM: NDArray[np.int64], labels_N: NDArray[np.int64], clusters: int
) -> float:
    """How much more often neighbours share a cluster than the sizes of clusters explain.

    Σ_k (e_kk − a_k · b_k) over the edges from a point to its neighbours: e_kk is the share of them
    within cluster k, a_k the share that starts there, b_k the share that ends there (Newman 2006;
    for directed graphs Leicht & Newman 2008). It rewards clusters whose borders run where points
    are few, whatever their shape, and one cluster that has everything scores 0.

    Args:
        neighbours_QM: Neighbours of the first Q points, shape (Q, M); see ``nearest_neighbours``.
        labels_N: Cluster of each point, shape (n_points,).
        clusters: K.

    Returns:
        At most 1 − 1/K; near 0 for labels that have nothing to do with the points.
    """
    ends_QM = labels_N[neighbours_QM]
    starts_Q = labels_N[: len(ends_QM)]
    within = float((ends_QM == starts_Q[:, None]).mean())
    start_K = np.bincount(starts_Q, minlength=clusters) / starts_Q.size
    end_K = np.bincount(ends_QM.ravel(), minlength=clusters) / ends_QM.size
    return within - float(start_K @ end_K)
