"""First partition for refinement: cells of an over-clustering, merged on the graph of neighbours.

k-means prefers round clusters of one size. Here it only makes many small cells; then the two groups
with the greatest score are merged until as many groups are left as there are to be clusters. Rules
that score a pair differ in the sizes that they prefer:

    modularity      e_ij − a_i · a_j            groups of similar size
    p = 1           E_ij / (n_i · n_j)          no preference
    p = 0.5         E_ij / (n_i · n_j)^½        one group may have most of the points

E_ij counts the edges between two groups, e_ij is their share of all, a_i the share of edges that
start in a group, and n_i its number of points.

The result depends on the cells, so merging is started several times. Per rule, the partition that
agrees best with all others is kept, never the best by a score; and of the first two rules, the one
on which the starts agree more.

Shape letters: N points, D dimensions, M cells, K clusters, S starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.agreement import adjusted_rand
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.merging import neighbour_pairs
from pipeline.clustering.quality import contingency_of, nearest_neighbours, separation

Rule = float | Literal["modularity"]

# Of these rules the one on which the starts agree more is taken.
RULES: tuple[Rule, ...] = ("modularity", 1.0)
# This one lets one group grow to most of the points, which starts then agree on whether it is right
# or not. It is taken only where it cuts far fewer edges; see ``quality.separation``.
UNEVEN: Rule = 0.5
_LEAST_GAIN = 0.3
# Cells: this many, or five per cluster, but eight points each.
_CELLS, _CELLS_PER_CLUSTER, _ROWS_PER_CELL = 200, 5, 8
# Merging takes time and memory that are quadratic in the number of cells: 4 s and 300 MiB.
_MOST_CELLS = 4_000
# Points in the graph of neighbours, or _GRAPH_ROWS_PER_CELL per cell where that is more.
_GRAPH_ROWS, _GRAPH_ROWS_PER_CELL = 20_000, 20
_ITERATIONS = 20
# Neighbours of a point: fewer where clusters are small, so that most are of its own cluster.
_NEIGHBOURS, _LEAST_NEIGHBOURS, _NEIGHBOURS_PER_CLUSTER = 20, 5, 10


@dataclass(frozen=True)
class RuleResult:
    """What several starts found with one rule of merging.

    Attributes:
        rule: "modularity", or the exponent p of E_ij / (n_i · n_j)^p.
        agreement: Mean adjusted Rand index of any two starts.
        firmness: Mean firmness of the clusters, each counting once; see ``firmness``.
        separation: See ``quality.separation``.
    """

    rule: Rule
    agreement: float
    firmness: float
    separation: float


@dataclass(frozen=True)
class MergedStart:
    """The first partition and where it came from.

    Attributes:
        cell_means_MD: Mean of the points of each cell; a row belongs to the nearest.
        group_M: Cluster of each cell, from 0 to K − 1.
        means_KD: Mean of the points of each cluster.
        rule: Rule of merging that was chosen.
        rules: All rules that were tried.
        firmness_K: How far the other starts have each cluster; see ``firmness``.
        starts: Number of starts.
        rows: Number of points in the graph of neighbours.
    """

    cell_means_MD: NDArray[np.float32]
    group_M: NDArray[np.int64]
    means_KD: NDArray[np.float32]
    rule: Rule
    rules: tuple[RuleResult, ...]
    firmness_K: NDArray[np.float64]
    starts: int
    rows: int


def cells_of(rows: int, clusters: int) -> int | None:
    """Number of cells to merge; None where points are too few, or clusters too many."""
    cells = min(max(_CELLS, _CELLS_PER_CLUSTER * clusters), rows // _ROWS_PER_CELL)
    if clusters * 2 > _MOST_CELLS:
        return None
    return None if cells < 2 * clusters else min(cells, _MOST_CELLS)


def merged_start(
    points_ND: NDArray[np.float32], clusters: int, *, cells: int, starts: int, seed: int
) -> MergedStart:
    """Merge the cells of several over-clusterings and take the partition that agrees best.

    Args:
        points_ND: Embedded sample, in random order.
        clusters: K.
        cells: M, number of cells; see ``cells_of``.
        starts: S, number of over-clusterings.
        seed: Same seed and points, same result on the same number of threads.
    """
    rows = min(len(points_ND), max(_GRAPH_ROWS, _GRAPH_ROWS_PER_CELL * cells))
    points_ND = np.ascontiguousarray(points_ND[:rows])
    few = rows // (_NEIGHBOURS_PER_CLUSTER * clusters)
    near_NM = nearest_neighbours(points_ND, rows, min(_NEIGHBOURS, max(_LEAST_NEIGHBOURS, few)))
    found = [_cells(points_ND, near_NM, cells, seed + number) for number in range(starts)]
    tried = [_tried(near_NM, found, clusters, rule) for rule in (*RULES, UNEVEN)]
    *even, uneven = tried
    # Agreement alone is that of large clusters.
    chosen = max(even, key=lambda one: one.result.agreement * one.result.firmness)
    if uneven.result.separation > chosen.result.separation + _LEAST_GAIN:
        chosen = uneven
    return MergedStart(
        cell_means_MD=found[chosen.best].means_MD,
        group_M=chosen.group_M,
        means_KD=_means(points_ND, chosen.labels_N, clusters),
        rule=chosen.result.rule,
        rules=tuple(one.result for one in tried),
        firmness_K=chosen.firmness_K,
        starts=starts,
        rows=rows,
    )


@dataclass(frozen=True)
class _Tried:
    result: RuleResult
    best: int  # the start that agrees best with all others
    group_M: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    firmness_K: NDArray[np.float64]


def _tried(near_NM: NDArray[np.int64], found: list[_Cells], clusters: int, rule: Rule) -> _Tried:
    """All starts with one rule, and the one that agrees best with all others."""
    groups = [merge_cells(c.edges_MM, c.rows_M, c.means_MD, clusters, rule) for c in found]
    labels = [group_M[c.labels_N] for group_M, c in zip(groups, found, strict=True)]
    agreement_S = mutual_agreement(labels)
    best = int(agreement_S.argmax())
    labels_N = labels[best]
    firmness_K = firmness(labels_N, labels[:best] + labels[best + 1 :])
    score = separation(near_NM, labels_N, clusters)
    result = RuleResult(rule, float(agreement_S.mean()), float(firmness_K.mean()), score)
    return _Tried(result, best, groups[best], labels_N, firmness_K)


@dataclass(frozen=True)
class _Cells:
    means_MD: NDArray[np.float32]
    rows_M: NDArray[np.int64]
    edges_MM: NDArray[np.float64]
    labels_N: NDArray[np.int64]


def _cells(
    points_ND: NDArray[np.float32], near_NM: NDArray[np.int64], cells: int, seed: int
) -> _Cells:
    """One over-clustering; cells without points are left out."""
    found = kmeans(points_ND, cells, restarts=1, iterations=_ITERATIONS, seed=seed)
    labels_N = nearest_centroid(points_ND, found.centroids_KD)
    labels_N = np.unique(labels_N, return_inverse=True)[1]
    rows_M = np.bincount(labels_N)
    means_MD = _means(points_ND, labels_N, len(rows_M))
    return _Cells(means_MD, rows_M, neighbour_pairs(near_NM, labels_N, len(rows_M)), labels_N)


def _means(
    points_ND: NDArray[np.float32], labels_N: NDArray[np.int64], groups: int
) -> NDArray[np.float32]:
    rows = np.maximum(np.bincount(labels_N, minlength=groups), 1)
    sums = [np.bincount(labels_N, weights=column, minlength=groups) for column in points_ND.T]
    means_MD: NDArray[np.float64] = np.stack(sums, axis=1) / rows[:, None]
    return means_MD.astype(np.float32)


def mutual_agreement(labels_SN: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Mean adjusted Rand index of each partition with all others, shape (S,)."""
    starts = len(labels_SN)
    pairs_SS = np.zeros((starts, starts))
    for first in range(starts):
        for second in range(first):
            table = contingency_of(labels_SN[first], labels_SN[second])
            pairs_SS[first, second] = pairs_SS[second, first] = adjusted_rand(table)
    mean_S: NDArray[np.float64] = pairs_SS.sum(axis=1) / max(1, starts - 1)
    return mean_S


def firmness(
    labels_N: NDArray[np.int64], others: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Mean over other partitions of the greatest Jaccard index of each cluster, shape (K,).

    1 for a cluster that all of them have (Hennig 2007, cluster-wise stability).
    """
    firm = [np.ones(labels_N.max() + 1)]
    for other_N in others:
        both = contingency_of(labels_N, other_N)
        either = both.sum(axis=1, keepdims=True) + both.sum(axis=0) - both
        firm.append((both / np.maximum(either, 1)).max(axis=1))
    mean_K: NDArray[np.float64] = np.mean(firm[1:] or firm, axis=0)
    return mean_K


def merge_cells(
    edges_MM: NDArray[np.float64],
    rows_M: NDArray[np.int64],
    means_MD: NDArray[np.floating],
    clusters: int,
    rule: Rule,
) -> NDArray[np.int64]:
    """Merge the two groups with the greatest score until ``clusters`` are left.

    By density, groups that no edge joins are merged only when no joined pair is left, those first
    that raise the squared distances to the means least (Ward 1963).

    Args:
        edges_MM: Pairs of neighbours, counted by their cells; symmetric.
        rows_M: Number of points in each cell, at least 1.
        means_MD: Mean of the points of each cell.
        clusters: K, at most M.
        rule: "modularity", or the exponent p of E_ij / (n_i · n_j)^p.

    Returns:
        Group of each cell, from 0 to K − 1 in the order of their first cells.
    """
    edges_MM, size_M = edges_MM.copy(), rows_M.astype(np.float64)
    mean_MD = means_MD.astype(np.float64)
    total, degrees_M = edges_MM.sum(), edges_MM.sum(axis=1)
    cells = len(rows_M)
    group_M, alive_M = np.arange(cells), np.ones(cells, bool)

    def scores(one: int) -> NDArray[np.float64]:
        all_M: NDArray[np.float64]
        if rule == "modularity":
            all_M = edges_MM[one] / total - degrees_M[one] * degrees_M / total**2
        else:
            all_M = edges_MM[one] / (size_M[one] * size_M) ** rule
            all_M[edges_MM[one] <= 0] = -np.inf
        all_M[~alive_M] = all_M[one] = -np.inf
        return all_M

    # The best partner of each group; only rows that lose theirs are searched again.
    table_MM = np.stack([scores(cell) for cell in range(cells)])
    partner_M = table_MM.argmax(axis=1)
    best_M = table_MM.max(axis=1)
    for _ in range(cells - clusters):
        kept = int(best_M.argmax())
        gone = int(partner_M[kept])
        if best_M[kept] == -np.inf:
            kept, gone = _closest(mean_MD, size_M, alive_M)
        kept, gone = min(kept, gone), max(kept, gone)
        share = size_M[gone] / (size_M[kept] + size_M[gone])
        mean_MD[kept] += share * (mean_MD[gone] - mean_MD[kept])
        for counts in (edges_MM, edges_MM.T, size_M, degrees_M):
            counts[kept] += counts[gone]
        alive_M[gone] = False
        group_M[group_M == gone] = kept
        table_MM[gone] = table_MM[:, gone] = best_M[gone] = -np.inf
        table_MM[kept] = table_MM[:, kept] = scores(kept)
        better_M = table_MM[kept] > best_M
        best_M[better_M], partner_M[better_M] = table_MM[kept, better_M], kept
        lost = np.flatnonzero(alive_M & ~better_M & np.isin(partner_M, (kept, gone)))
        lost = np.union1d(lost, [kept])
        partner_M[lost] = table_MM[lost].argmax(axis=1)
        best_M[lost] = table_MM[lost, partner_M[lost]]
    groups_M: NDArray[np.int64] = np.unique(group_M, return_inverse=True)[1]
    return groups_M


def _closest(
    means_MD: NDArray[np.float64], rows_M: NDArray[np.float64], alive_M: NDArray[np.bool_]
) -> tuple[int, int]:
    """The two groups whose merging adds least to Σ ‖x − mean of its group‖² (Ward 1963)."""
    left = np.flatnonzero(alive_M)
    means, rows = means_MD[left], rows_M[left]
    squares = np.square(means).sum(axis=1)
    added = np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0)
    added *= rows[:, None] * rows / (rows[:, None] + rows)
    np.fill_diagonal(added, np.inf)
    first, second = divmod(int(added.argmin()), len(left))
    return int(left[first]), int(left[second])
