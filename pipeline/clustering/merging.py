"""How many clusters there are: cells of an over-clustering are merged until boundaries are real.

k-means into many small cells. Then the two clusters are merged, again and again, that are most
connected: by the pairs of nearest neighbours that cross from one to the other, against those that
cross where k-means cuts each of the two in half (relative interconnectivity, as in Chameleon:
Karypis, Han & Kumar 1999). A boundary through the midst of a group is crossed as often as a cut
through it; one between groups by far less. How much less depends on the table, so the boundary
is where the connectivities of the last merges part best into high and low, and there is one cluster
more than merges that are low. That depends on the cells, so it is done from fifteen starts, and the
geometric mean of their numbers is taken. Decision 0031 has what was measured.

Shape letters: N points, D dimensions, M neighbours of a point, C cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import geometric_mean

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.quality import nearest_neighbours

# Points that are merged, or _ROWS_PER_CELL for each cell where that is more. Their neighbours are
# looked for exactly, which takes the square: two seconds a core in ten dimensions.
_ROWS = 10_000
# Fewer, and the neighbours between two cells are too few to count.
_ROWS_PER_CELL = 20
# Fewer, and nearly all merges that the boundary is found from are between groups.
_CELLS = 60
NEIGHBOURS = 10
# Starts. One alone differs from the next by 5 on pen digits, the mean of fifteen by 1.
TREES = 15
ITERATIONS = 20
_CUT_ITERATIONS = 10
# A cluster of fewer points is not cut in two: it counts as one without any boundary.
_LEAST_CUT = 8
# Where the boundary may lie. More connected, and two clusters are one: a single group of any shape
# that was tried has more at all but a few of its merges. Less, and they are two.
_LEAST_BOUNDARY, _GREATEST_BOUNDARY = 0.2, 0.7
# Of what is less, the logarithm says nothing more: groups 8 standard deviations apart have 0.00.
_NOTHING = 0.1


@dataclass(frozen=True)
class Step:
    """One number of clusters; see ``pipeline.artifacts.models.MergeStep``."""

    clusters: int
    agreement: float
    connectivity: float


@dataclass(frozen=True)
class Found:
    """A number of clusters, and how it was come to; see `ClusterChoice`."""

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
    """The two cells that became one.

    Attributes:
        kept: Cell that now stands for both.
        gone: The other.
        connectivity: Of the two, relative to that of the halves of each.
    """

    kept: int
    gone: int
    connectivity: float


def find_clusters(points_ND: NDArray[np.float32], most: int, seed: int) -> Found:
    """The number of clusters in these points, from 2 to ``most``.

    Args:
        points_ND: In random order or not, shape (n_points, dimensions).
        most: Clusters; merging begins at twice as many cells and 60 at least, or at fewer where
            points are few. The last half of the merges counts.
        seed: Same seed, same points: same number.
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
    path = tuple(
        Step(
            clusters=clusters,
            agreement=agreement[clusters],
            connectivity=float(np.mean([tree[cells - clusters].connectivity for tree in trees])),
        )
        for clusters in range(most, 1, -1)
    )
    ends = [tree[1 - last :] for tree in trees]
    boundaries = [boundary_of(merges) for merges in ends]
    votes = tuple(sorted(min(most, found) for found in map(groups_in, ends, boundaries)))
    # As far above as below: of 5 and 20, 10.
    average = round(geometric_mean(votes))
    clusters, boundary = max(2, average), geometric_mean(boundaries)
    why = _why(average, votes, agreement)
    return Found(clusters, cells, TREES, len(points_ND), boundary, votes, path, why)


def rows_and_cells(rows: int, most: int) -> tuple[int, int]:
    """Points that are merged, of so many, and the cells that merging begins with."""
    rows = min(rows, max(_ROWS, _ROWS_PER_CELL * 2 * most))
    return rows, max(4, min(max(2 * most, _CELLS), rows // _ROWS_PER_CELL))


def boundary_of(merges: Sequence[Merge]) -> float:
    """Connectivity under which two clusters stay two.

    Logarithms of connectivities are parted into high and low so that squared deviations within the
    two parts are least (Otsu 1979). The boundary is halfway between the two means.
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
    """Clusters that are left after every merge within a group: one more than those between groups.

    Counted and not looked for along the path: a merge that is less connected than the boundary may
    come before one that is more, when the halves of a cell or two of a few rows mislead.
    """
    return 1 + sum(merge.connectivity < boundary for merge in merges)


def _why(clusters: int, votes: Sequence[int], agreement: Mapping[int, float]) -> str:
    if clusters < 2:
        return "no boundary was found, and 2 is the least"
    spread = f"{votes[0]}" if votes[0] == votes[-1] else f"{votes[0]} to {votes[-1]}"
    return (
        f"geometric mean of {len(votes)} starts, which came to {spread}; "
        f"their partitions agree by {agreement[clusters]:.2f}"
    )


def _cells(
    points_ND: NDArray[np.float32], cells: int, seed: int, iterations: int = ITERATIONS
) -> NDArray[np.int64]:
    found = kmeans(points_ND, cells, restarts=1, iterations=iterations, seed=seed)
    return nearest_centroid(points_ND, found.centroids_KD)


def neighbour_pairs(
    near_NM: NDArray[np.int64], labels_N: NDArray[np.int64], cells: int
) -> NDArray[np.float64]:
    """Pairs of a point and its neighbour by the cells of both, shape (cells, cells), symmetric.

    Args:
        near_NM: Neighbours of every point, shape (n_points, neighbours).
        labels_N: Cell of each, shape (n_points,).
        cells: C.
    """
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
    """How strongly a cluster is connected with others, 1 as if there were no boundary at all.

    Of the pairs of neighbours within the two together, the share that crosses, over the share
    2·p·(1 − p) that would if who is a neighbour had nothing to do with the boundary; p is the share
    of the pairs that start in the one. So sizes do not decide: two small clusters have few pairs
    between them, and few are expected.

    Args:
        within: Pairs within the cluster.
        crossing: Pairs between it and each of the others, both ways.
        within_others: Pairs within each of those.
    """
    own, other = within + crossing / 2, within_others + crossing / 2
    every = own + other
    expected = 2 * own * other / np.maximum(every, 1)
    # An empty cell is no cluster: it is merged before all others, whose connectivity is 2 at most.
    return np.where(expected > 0, crossing / np.maximum(expected, 1e-12), 3.0)


def merge_tree(
    points_ND: NDArray[np.float32],
    near_NM: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    cells: int,
) -> list[Merge]:
    """Merge the two clusters that are most connected for what they are, until all are one.

    Args:
        points_ND: Shape (n_points, dimensions).
        near_NM: Their neighbours, shape (n_points, neighbours).
        labels_N: Cell of each point, shape (n_points,).
        cells: C.

    Returns:
        cells − 1 merges, in their order.
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
        found: NDArray[np.float64] = row_C
        return found

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
    """Connectivity of the two halves of a cluster, as k-means cuts it in two."""
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
    """Mean adjusted Rand index between the partitions of any two trees, by number of clusters."""
    sums: dict[int, float] = {}
    pairs = list(combinations(range(len(trees)), 2))
    for first, second in pairs:
        counts_CC = _counted(starts[first], starts[second], len(trees[first]) + 1)
        for clusters, index in _indices(counts_CC, trees[first], trees[second]):
            if clusters <= most:
                sums[clusters] = sums.get(clusters, 0.0) + index
    return {clusters: total / len(pairs) for clusters, total in sums.items()}


def _indices(
    counts_CC: NDArray[np.float64], rows: Sequence[Merge], columns: Sequence[Merge]
) -> Iterator[tuple[int, float]]:
    """Clusters and adjusted Rand index, as both partitions are merged step by step, down to 2."""
    clusters = len(rows) + 1
    for row, column in zip(rows[:-1], columns[:-1], strict=True):
        clusters -= 1
        counts_CC[row.kept] += counts_CC[row.gone]
        counts_CC[row.gone] = 0
        counts_CC[:, column.kept] += counts_CC[:, column.gone]
        counts_CC[:, column.gone] = 0
        yield clusters, adjusted_rand(counts_CC)


def adjusted_rand(counts: NDArray[np.float64]) -> float:
    """Adjusted Rand index of two partitions (Hubert & Arabie 1985), by their contingency table."""

    def in_pairs(sizes: NDArray[np.float64]) -> float:
        return float((sizes * (sizes - 1)).sum()) / 2

    every = in_pairs(counts.sum(keepdims=True))
    both = in_pairs(counts)
    first, second = in_pairs(counts.sum(axis=0)), in_pairs(counts.sum(axis=1))
    expected, greatest = first * second / max(every, 1.0), (first + second) / 2
    return 1.0 if greatest == expected else (both - expected) / (greatest - expected)
