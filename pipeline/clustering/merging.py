"""Number of clusters: merge the cells of an over-clustering until boundaries are real.

k-means makes many small cells. Then the two clusters with the highest connectivity are merged, step
by step: the pairs of nearest neighbours that cross from one to the other, relative to those that
cross where k-means cuts each of the two in half (relative interconnectivity, as in Chameleon:
Karypis, Han & Kumar 1999). A boundary inside a group is crossed as often as a cut through it; one
between groups far less. How much less depends on the table, so the threshold is where the
connectivities of the last merges separate best into high and low; there is one cluster more than
low merges. The result depends on the cells: it is the geometric mean of fifteen starts. Decision
0031 has the measurements.

Shape letters: N points, D dimensions, M neighbours of a point, C cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import geometric_mean

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.agreement import adjusted_rand
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.quality import nearest_neighbours

# Points that are merged, or _ROWS_PER_CELL per cell where that is more. Their exact neighbours take
# quadratic time: two seconds a core in ten dimensions.
_ROWS = 10_000
# With fewer, neighbours in two cells are too rare to count.
_ROWS_PER_CELL = 20
# With fewer, nearly all merges that the boundary is found from are between groups.
_CELLS = 60
NEIGHBOURS = 10
# Starts. On pen digits one differs from the next by 5 clusters, the mean of fifteen by 1.
TREES = 15
ITERATIONS = 20
_CUT_ITERATIONS = 10
# A cluster of fewer points is not cut in two: it counts as having no boundary.
_LEAST_CUT = 8
# Range of the boundary. Single groups, of any shape that was tried, have more than the upper limit
# at all but a few of their merges; clusters below the lower limit are always two.
_LEAST_BOUNDARY, _GREATEST_BOUNDARY = 0.2, 0.7
# Lower values are no more separate in the logarithm: groups 8 standard deviations apart have 0.00.
_NOTHING = 0.1


@dataclass(frozen=True)
class Step:
    """One number of clusters; see ``pipeline.artifacts.models.MergeStep``."""

    clusters: int
    agreement: float
    connectivity: float


@dataclass(frozen=True)
class Found:
    """A number of clusters and its reasons; see ``pipeline.artifacts.models.ClusterChoice``."""

    clusters: int
    cells: int
    trees: int
    rows: int
    boundary: float
    votes: tuple[int, ...]
    path: tuple[Step, ...]
    why: str


@dataclass(frozen=True)
class Merge:
    """Two cells that became one, ``kept``."""

    kept: int
    gone: int
    connectivity: float  # connectivity of the two, relative to that of the halves of each


def find_clusters(points_ND: NDArray[np.float32], most: int, seed: int) -> Found:
    """The number of clusters in these points, from 2 to ``most``.

    Merging starts from twice as many cells as ``most``, at least 60, or fewer where points are few.
    The last half of the merges counts. Same seed and points, same number.
    """
    rows, cells = rows_and_cells(len(points_ND), most)
    last = cells // 2
    drawn = np.random.default_rng(seed).permutation(len(points_ND))[:rows]
    points_ND = np.ascontiguousarray(points_ND[drawn])
    most = min(most, last)
    starts = [_cells(points_ND, cells, seed + number) for number in range(TREES)]
    near_NM = nearest_neighbours(points_ND, len(points_ND), NEIGHBOURS)
    trees = [merge_tree(points_ND, near_NM, labels_N, cells) for labels_N in starts]
    agreement = _agreement(starts, trees, most)
    path = []
    for clusters in range(most, 1, -1):
        connectivity = float(np.mean([tree[cells - clusters].connectivity for tree in trees]))
        path.append(Step(clusters, agreement[clusters], connectivity))
    ends = [tree[1 - last :] for tree in trees]
    boundaries = [boundary_of(merges) for merges in ends]
    votes = tuple(sorted(min(most, found) for found in map(groups_in, ends, boundaries)))
    # 5 and 20 are equally far from 10.
    average = round(geometric_mean(votes))
    clusters, boundary = max(2, average), geometric_mean(boundaries)
    why = _why(average, votes, agreement)
    return Found(clusters, cells, TREES, len(points_ND), boundary, votes, tuple(path), why)


def rows_and_cells(rows: int, most: int) -> tuple[int, int]:
    """Number of points that are merged, and of cells that merging starts from."""
    rows = min(rows, max(_ROWS, _ROWS_PER_CELL * 2 * most))
    return rows, max(4, min(max(2 * most, _CELLS), rows // _ROWS_PER_CELL))


def boundary_of(merges: Sequence[Merge]) -> float:
    """Connectivity below which two clusters are kept apart.

    Logarithms of connectivities are split into high and low with the least squared deviations
    within the two (Otsu 1979). The boundary is halfway between the two means.
    """
    connectivity = [merge.connectivity for merge in merges]
    logs = np.sort(np.log(np.clip(connectivity, _NOTHING, 1.0)))
    sums, low = np.cumsum(logs), np.arange(1, len(logs))
    if not len(low):
        return _GREATEST_BOUNDARY
    high = len(logs) - low
    means_low, means_high = sums[:-1] / low, (sums[-1] - sums[:-1]) / high
    best = int((low * high * (means_high - means_low) ** 2).argmax())
    halfway = np.exp((means_low[best] + means_high[best]) / 2)
    return float(np.clip(halfway, _LEAST_BOUNDARY, _GREATEST_BOUNDARY))


def groups_in(merges: Sequence[Merge], boundary: float) -> int:
    """Number of groups: one more than the merges below the boundary.

    They are counted wherever they are on the path: halves of cells of few rows can mislead, so that
    a low merge may come before a high one.
    """
    return 1 + sum(merge.connectivity < boundary for merge in merges)


def _why(clusters: int, votes: Sequence[int], agreement: Mapping[int, float]) -> str:
    if clusters < 2:
        return "no boundary was found, and 2 is the least"
    spread = f"{votes[0]}" if votes[0] == votes[-1] else f"{votes[0]} to {votes[-1]}"
    return (
        f"geometric mean of {len(votes)} starts, which found {spread}; "
        f"their partitions have an adjusted Rand index of {agreement[clusters]:.2f}"
    )


def _cells(
    points_ND: NDArray[np.float32], cells: int, seed: int, iterations: int = ITERATIONS
) -> NDArray[np.int64]:
    found = kmeans(points_ND, cells, restarts=1, iterations=iterations, seed=seed)
    return nearest_centroid(points_ND, found.centroids_KD)


def neighbour_pairs(
    near_NM: NDArray[np.int64], labels_N: NDArray[np.int64], cells: int
) -> NDArray[np.float64]:
    """Pairs of a point and its neighbour, counted by the cells of both, shape (C, C), symmetric."""
    starts_E = np.repeat(labels_N, near_NM.shape[1])
    pairs_CC = _counted(starts_E, labels_N[near_NM.ravel()], cells)
    return (pairs_CC + pairs_CC.T) / 2


def _counted(
    rows_E: NDArray[np.int64], columns_E: NDArray[np.int64], cells: int
) -> NDArray[np.float64]:
    counts = np.bincount(rows_E * cells + columns_E, minlength=cells * cells)
    return counts.reshape(cells, cells).astype(np.float64)


def connectivity_of(
    within: NDArray[np.float64] | float,
    crossing: NDArray[np.float64],
    within_others: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Connectivity of a cluster with others; 1 means no boundary at all.

    The share of pairs of neighbours that cross, over the share 2·p·(1 − p) expected if neighbours
    did not depend on the boundary, where p is the share of the pairs that start in the cluster. So
    it does not depend on sizes: few pairs between small clusters are expected.

    Args:
        within: Pairs within the cluster.
        crossing: Pairs between it and each of the others, both ways.
        within_others: Pairs within each of the others.
    """
    own, other = within + crossing / 2, within_others + crossing / 2
    every = own + other
    expected = 2 * own * other / np.maximum(every, 1)
    # An empty cell is merged before all others, whose connectivity is at most 2.
    return np.where(expected > 0, crossing / np.maximum(expected, 1e-12), 3.0)


def merge_tree(
    points_ND: NDArray[np.float32],
    near_NM: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    cells: int,
) -> list[Merge]:
    """Merge the two clusters with the highest relative connectivity until one is left.

    Returns:
        C − 1 merges, in their order.
    """
    labels_N, pairs_CC = labels_N.copy(), neighbour_pairs(near_NM, labels_N, cells)
    rows_C = np.bincount(labels_N, minlength=cells).astype(np.float64)
    halves_C = np.array([_between_halves(points_ND, near_NM, labels_N, c) for c in range(cells)])
    alive_C = np.ones(cells, bool)

    def relative(cluster: int) -> NDArray[np.float64]:
        within_C = np.diag(pairs_CC)
        crossed_C = connectivity_of(within_C[cluster], 2 * pairs_CC[cluster], within_C)
        inner_C = rows_C[cluster] * halves_C[cluster] + rows_C * halves_C
        row_C: NDArray[np.float64] = crossed_C * (rows_C[cluster] + rows_C)
        row_C /= np.maximum(inner_C, 1e-12)
        row_C[~alive_C] = row_C[cluster] = -1.0
        return row_C

    table_CC = np.stack([relative(cell) for cell in range(cells)])
    merges = []
    for _ in range(cells - 1):
        kept, gone = sorted(divmod(int(table_CC.argmax()), cells))
        merges.append(Merge(kept, gone, float(table_CC[kept, gone])))
        pairs_CC[kept] += pairs_CC[gone]
        pairs_CC[:, kept] += pairs_CC[:, gone]
        rows_C[kept] += rows_C[gone]
        alive_C[gone] = False
        labels_N[labels_N == gone] = kept
        halves_C[kept] = _between_halves(points_ND, near_NM, labels_N, kept)
        table_CC[kept] = table_CC[:, kept] = relative(kept)
        table_CC[gone] = table_CC[:, gone] = -1.0
    return merges


def _between_halves(
    points_ND: NDArray[np.float32],
    near_NM: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    cluster: int,
) -> float:
    """Connectivity of the two halves that k-means cuts a cluster into."""
    members = np.flatnonzero(labels_N == cluster)
    if len(members) < _LEAST_CUT:
        return 1.0
    halves = _cells(points_ND[members], 2, seed=0, iterations=_CUT_ITERATIONS)
    half_N = np.full(len(labels_N), 2)  # 2: of another cluster
    half_N[members] = halves
    starts = np.repeat(halves, near_NM.shape[1])
    pairs = _counted(starts, half_N[near_NM[members].ravel()], 3)
    within, crossing = np.diag(pairs), np.array([pairs[0, 1] + pairs[1, 0]])
    return float(connectivity_of(within[0], crossing, within[1:2])[0])


def _agreement(
    starts: Sequence[NDArray[np.int64]], trees: Sequence[Sequence[Merge]], most: int
) -> dict[int, float]:
    """Mean adjusted Rand index of the partitions of any two trees, by number of clusters."""
    sums: dict[int, float] = {}
    pairs = list(combinations(range(len(trees)), 2))
    for first, second in pairs:
        counts_CC = _counted(starts[first], starts[second], len(trees[first]) + 1)
        clusters = len(counts_CC)
        for row, column in zip(trees[first][:-1], trees[second][:-1], strict=True):
            clusters -= 1
            counts_CC[row.kept] += counts_CC[row.gone]
            counts_CC[row.gone] = 0
            counts_CC[:, column.kept] += counts_CC[:, column.gone]
            counts_CC[:, column.gone] = 0
            if clusters <= most:
                sums[clusters] = sums.get(clusters, 0.0) + adjusted_rand(counts_CC)
    return {clusters: total / len(pairs) for clusters, total in sums.items()}
