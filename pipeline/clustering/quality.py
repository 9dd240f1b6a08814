"""Quality of a partition without known classes: separation, silhouette, balance, and others.

Shape letters: N points, Q of them queried for neighbours, M neighbours of a point, D dimensions, K
clusters.
"""

from __future__ import annotations

import math

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.agreement import adjusted_rand, entropy

# A silhouette compares all pairs of points: 25 million distances for 5,000 points.
SILHOUETTE_ROWS = 5_000
_MOST_ROWS_PER_CLUSTER = 200
_LEAST_ROWS_PER_CLUSTER = 10
_WORKING_MEMORY_MIB = 128
# Weight of the entropy of sizes in the separation.
_ENTROPY_WEIGHT = 1.5
# Numbers processed at a time where all points count: 64 MiB of float64.
_CHUNK = 2**23


def contingency_of(rows_N: NDArray[np.int64], columns_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Contingency table of two labels, shape (largest row label + 1, largest column label + 1).

    Points with a negative label are left out.
    """
    known_N = (rows_N >= 0) & (columns_N >= 0)
    rows_N, columns_N = rows_N[known_N], columns_N[known_N]
    shape = (int(rows_N.max(initial=0)) + 1, int(columns_N.max(initial=0)) + 1)
    cells = np.bincount(rows_N * shape[1] + columns_N, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def stratified_rows(labels_N: NDArray[np.int64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Points to measure a silhouette on, as many of each cluster as it has up to a limit.

    A uniform sample would have few or no points of small clusters, where clusterings differ. Per
    cluster 10 to 200 points, about 5,000 in all and at most 10,000: of more than 1,000 clusters,
    some are left out.

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
    if stride > 1:  # too many clusters: keep some, in the order of the draw
        leaders = np.sort(order[place_N == 0])[::stride]
        drawn_N &= np.isin(labels_N[shuffled[order]], labels_N[shuffled[leaders]])
    return np.sort(shuffled[order[drawn_N]])


def macro_silhouette(points_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Mean over the clusters of the mean silhouette of their points.

    s = (b − a) / max(a, b), where a is the mean distance to the other points of the same cluster
    and b the least mean distance to the points of another (Rousseeuw 1987). Every cluster has the
    same weight (macro-averaged: Pavlopoulos et al. 2024, "Revisiting silhouette aggregation"), so
    that points drawn by ``stratified_rows`` estimate it without bias.

    Returns:
        In [−1, 1], higher is better; 0 for a single cluster, or one per point.
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
    """Share of the variance within clusters, which does not depend on the scale of the space.

    Σ_i ‖x_i − mean of its cluster‖² / Σ_i ‖x_i − mean of all‖².

    Returns:
        In [0, 1], lower is better; 1 where all points are equal.
    """
    from scipy.sparse import csr_array

    rows, dimensions = points_ND.shape
    mean_D = points_ND.mean(axis=0, dtype=np.float64)
    sums_KD = np.zeros((clusters, dimensions))
    total = 0.0
    step = max(1, _CHUNK // dimensions)
    for start in range(0, rows, step):
        # Relative to the mean: squares of points far from the origin would cancel.
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
    """Evenness of the sizes of K ≥ 2 clusters, empty ones too: entropy over log K (Pielou).

    Returns:
        In [0, 1]: 1 for equal sizes, 0 where one cluster has all points.
    """
    return abs(entropy(cluster_rows_K)) / float(np.log(len(cluster_rows_K)))


def stability(first_N: NDArray[np.int64], second_N: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two partitions of the same points."""
    return adjusted_rand(contingency_of(first_N, second_N))


def nearest_neighbours(
    points_ND: NDArray[np.float32], queries: int, neighbours: int
) -> NDArray[np.int64]:
    """Exact nearest neighbours, by Euclidean distance, of the first points among all others.

    Args:
        points_ND: At least two points in random order.
        queries: Q, number of points to find neighbours of; fewer where there are fewer.
        neighbours: M, number of neighbours of each; at most all other points.

    Returns:
        Indices of points, nearest first, shape (Q, M).
    """
    # FAISS computes ‖x‖² + ‖y‖² − 2xy, which loses digits far from the origin.
    points_ND = points_ND - points_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    queries = min(queries, len(points_ND))
    neighbours = min(neighbours, len(points_ND) - 1)
    index = faiss.IndexFlatL2(points_ND.shape[1])
    index.add(points_ND)
    _, found = index.search(points_ND[:queries], neighbours + 1)
    itself = found == np.arange(queries)[:, None]
    # Of equal points one need not be its own nearest, nor be found at all.
    itself[~itself.any(axis=1), -1] = True
    others: NDArray[np.int64] = found[~itself].reshape(queries, neighbours)
    return others


def separation(
    neighbours_QM: NDArray[np.int64], labels_N: NDArray[np.int64], clusters: int
) -> float:
    """How far clusters lie apart, whatever their sizes and shapes, without known classes.

    ln(c₀ / c) + w · H(sizes): c is the share of the edges from the first Q points to their
    neighbours that cross between clusters, c₀ = 1 − Σ_k s_k² the share by chance, for clusters of
    shares s_k. Alone, that prefers one huge cluster beside tiny ones, where hardly an edge can
    cross; the entropy H of the sizes, in nats, is what that loses. Modularity is c₀ − c, and
    prefers sizes that are even. Decision 0039 has the measurements, of the weight w, too.

    Returns:
        A number that is comparable between partitions of the same points into as many clusters;
        higher is better.
    """
    ends_QM = labels_N[neighbours_QM]
    rows_K = np.bincount(labels_N, minlength=clusters)
    crossing = float((ends_QM != labels_N[: len(ends_QM), None]).mean())
    expected = 1 - float(np.square(rows_K / len(labels_N)).sum())
    least = 0.5 / ends_QM.size  # as if half an edge crossed
    ratio = math.log(max(expected, least) / max(crossing, least))
    return ratio + _ENTROPY_WEIGHT * entropy(rows_K)


def modularity(
    neighbours_QM: NDArray[np.int64], labels_N: NDArray[np.int64], clusters: int
) -> float:
    """How much more often neighbours share a cluster than by chance, given the clusters' sizes.

    Σ_k (e_kk − a_k · b_k) over the edges from the first Q points to their neighbours: e_kk is the
    share within cluster k, a_k the share that start there, b_k the share that end there (Newman
    2006; for directed graphs Leicht & Newman 2008). It rewards boundaries where points are few,
    whatever the shape of clusters; a single cluster scores 0.

    Returns:
        At most 1 − 1/K; near 0 for labels unrelated to the points.
    """
    ends_QM = labels_N[neighbours_QM]
    starts_Q = labels_N[: len(ends_QM)]
    within = float((ends_QM == starts_Q[:, None]).mean())
    start_K = np.bincount(starts_Q, minlength=clusters) / starts_Q.size
    end_K = np.bincount(ends_QM.ravel(), minlength=clusters) / ends_QM.size
    return within - float(start_K @ end_K)
