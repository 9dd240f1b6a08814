"""How many clusters there are: cells of an over-clustering are merged, from several starts.

k-means into many small cells, from different starts. In each of these partitions the two clusters
are merged again and again that are most connected, by the pairs of nearest neighbours that cross
between them. Where clusters are real, whatever the start, merging passes through the same
partition; where there are none, every start merges differently. So the number of clusters is the
one at which the partitions agree best, and the largest of those that agree about as well.

Shape letters: N points, D dimensions, M neighbours of a point, C cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.quality import nearest_neighbours

# Points that are merged, or _ROWS_PER_CELL for each cell where that is more. Their neighbours are
# looked for exactly, which takes the square: two seconds a core in ten dimensions.
_ROWS = 10_000
# Fewer, and the neighbours between two cells are too few to count.
_ROWS_PER_CELL = 20
_NEIGHBOURS = 10
# Starts: 28 pairs that may agree. Fewer make the number depend on their seeds.
_TREES = 8
_ITERATIONS = 20
# As good as the best. With 8 starts, the mean agreement of a sample's halves differs by as much.
_AS_GOOD = 0.03
# A single group, gaussian or uniform, comes to 0.1 in ten dimensions and to 0.5 in two; groups that
# people have names for came to more than 0.8.
_LEAST_AGREEMENT = 0.65


@dataclass(frozen=True)
class Step:
    """One number of clusters; see ``pipeline.artifacts.MergeStep``."""

    clusters: int
    agreement: float
    connectivity: float


@dataclass(frozen=True)
class Found:
    """A number of clusters, and how it was come to; see ``pipeline.artifacts.ClusterChoice``."""

    clusters: int
    cells: int
    trees: int
    rows: int
    path: tuple[Step, ...]
    why: str


@dataclass(frozen=True)
class Merge:
    """The two cells that became one.

    Attributes:
        kept: Cell that now stands for both.
        gone: The other.
        connectivity: Of the two, see ``connectivity_of``.
    """

    kept: int
    gone: int
    connectivity: float


def find_clusters(points_ND: NDArray[np.float32], most: int, seed: int) -> Found:
    """The number of clusters in these points, from 2 to ``most``.

    Args:
        points_ND: In random order or not, shape (n_points, dimensions).
        most: Clusters; merging begins at twice as many cells, or fewer where points are few.
        seed: Same seed, same points: same number.
    """
    wanted = 2 * most
    random = np.random.default_rng(seed)
    drawn = random.permutation(len(points_ND))[: max(_ROWS, _ROWS_PER_CELL * wanted)]
    points_ND = np.ascontiguousarray(points_ND[drawn])
    cells = max(4, min(wanted, len(points_ND) // _ROWS_PER_CELL))
    most = min(most, cells // 2)
    starts = [_cells(points_ND, cells, seed + number) for number in range(_TREES)]
    near_NM = nearest_neighbours(points_ND, len(points_ND), _NEIGHBOURS)
    trees = [merge_tree(neighbour_pairs(near_NM, labels_N, cells)) for labels_N in starts]
    agreement = _agreement(starts, trees, most)
    path = tuple(
        Step(
            clusters=clusters,
            agreement=agreement[clusters],
            connectivity=float(np.mean([tree[cells - clusters].connectivity for tree in trees])),
        )
        for clusters in range(most, 1, -1)
    )
    clusters, why = choose(path)
    return Found(clusters, cells, _TREES, len(points_ND), path, why)


def choose(path: Sequence[Step]) -> tuple[int, str]:
    """The number, and why: the largest that agrees within 0.03 of the best; 2 where none does."""
    best = max(path, key=lambda step: step.agreement)
    if best.agreement < _LEAST_AGREEMENT:
        return 2, (
            f"no number of clusters is found again from another start: agreement "
            f"{best.agreement:.2f} at most, of {best.clusters}; {_LEAST_AGREEMENT} is the least"
        )
    chosen = next(step for step in path if step.agreement >= best.agreement - _AS_GOOD)
    beside = "" if chosen is best else f", best {best.agreement:.2f} at {best.clusters}"
    why = f"found again from every start: agreement {chosen.agreement:.2f}{beside}"
    return chosen.clusters, why


def _cells(points_ND: NDArray[np.float32], cells: int, seed: int) -> NDArray[np.int64]:
    found = kmeans(points_ND, cells, restarts=1, iterations=_ITERATIONS, seed=seed)
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
    of the pairs that start in the one. The smaller of two clusters decides as little as the larger,
    so that a small cluster is not merged only for being small.

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


def merge_tree(pairs_CC: NDArray[np.float64]) -> list[Merge]:
    """Merge the two most connected clusters, until all are one.

    Args:
        pairs_CC: Symmetric, shape (cells, cells); see ``neighbour_pairs``.

    Returns:
        cells − 1 merges, in their order.
    """
    pairs_CC = pairs_CC.copy()
    cells = len(pairs_CC)
    within_C = np.diag(pairs_CC).copy()
    alive_C = np.ones(cells, bool)
    table_CC = np.stack(
        [connectivity_of(within_C[c], 2 * pairs_CC[c], within_C) for c in range(cells)]
    )
    np.fill_diagonal(table_CC, -1.0)
    merges = []
    for _ in range(cells - 1):
        kept, gone = sorted(divmod(int(table_CC.argmax()), cells))
        merges.append(Merge(kept, gone, float(table_CC[kept, gone])))
        pairs_CC[kept] += pairs_CC[gone]
        pairs_CC[:, kept] += pairs_CC[:, gone]
        within_C[kept] = pairs_CC[kept, kept]
        alive_C[gone] = False
        row_C = connectivity_of(within_C[kept], 2 * pairs_CC[kept], within_C)
        row_C[~alive_C] = row_C[kept] = -1.0
        table_CC[kept] = table_CC[:, kept] = row_C
        table_CC[gone] = table_CC[:, gone] = -1.0
    return merges


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
