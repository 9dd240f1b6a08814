"""First partition for refinement: cells of an over-clustering, merged on the graph of neighbours.

k-means prefers round clusters of one size. Here it only makes many small cells; then the two groups
with the greatest score are merged until as many groups are left as there are to be clusters. Two
rules score a pair: the gain in modularity, which suits classes of similar size, and the density of
edges between them, E_ij / (n_i · n_j)^p, which does not care for sizes, or with p below 1 prefers
to let large groups grow.

The result depends on the cells, so merging is started several times, both on the scaled rows, which
depend on no network, and on their embeddings. Per rule, the partition that agrees best with all
others of both spaces is kept, never the best by a score.

Shape letters: N points, D dimensions, C cells, M neighbours of a point, K clusters, S starts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.agreement import adjusted_rand
from pipeline.clustering.kmeans import affordable, kmeans, nearest_centroid
from pipeline.clustering.merging import neighbour_pairs
from pipeline.clustering.quality import contingency_of, nearest_neighbours, separation

log = logging.getLogger(__name__)

Rule = float | Literal["modularity"]
# Where a start makes its cells.
Space = Literal["embeddings", "features"]

# Names of the rules. Of the first two, the starts agree more on the one that is right; the third is
# for tables with one class of most rows.
RULES: Mapping[str, Rule] = {"modularity": "modularity", "density": 1.0, "density^0.5": 0.5}
_UNEVEN = "density^0.5"
# Neighbours of a point: fewer where clusters are small, so that most are of its own cluster.
_NEIGHBOURS, _LEAST_NEIGHBOURS, _NEIGHBOURS_PER_CLUSTER = 20, 5, 10
ITERATIONS = 20
_LEAST_CELLS, _CELLS_PER_CLUSTER, _MOST_CELLS = 200, 5, 4_000
_ROWS, _ROWS_PER_CELL, _LEAST_ROWS_PER_CELL = 20_000, 20, 8
# Multiplications that the cells of all starts in a space, or the neighbours of scaled rows, may
# take: about a minute on two cores.
WORK = 2 * 10**12
# Lead in separation that the rule for uneven tables needs, in either space. Decision 0039 has the
# measurements.
_LEAD = 0.3


@dataclass(frozen=True)
class MergedStart:
    """A partition of merged cells, and how far other starts agree with it.

    Attributes:
        space: Space of the cells.
        cells_CD: Centroids of the cells, of embeddings or of scaled rows.
        cluster_C: Cluster of each cell.
        centroids_KD: Means of the clusters' embeddings.
        rule: Rule of merging, a key of ``RULES``.
        agreement: Mean adjusted Rand index between two starts, by rule.
        firmness_K: For each cluster, the mean over the other starts of its Jaccard index with the
            cluster there that is most like it: 1 where all starts find it.
        starts: Number of starts, in both spaces.
    """

    space: Space
    cells_CD: NDArray[np.float32]
    cluster_C: NDArray[np.int64]
    centroids_KD: NDArray[np.float32]
    rule: str
    agreement: Mapping[str, float]
    firmness_K: NDArray[np.float64]
    starts: int

    def scaled(self, factor: float) -> MergedStart:
        """The same of embeddings that are multiplied with a factor."""
        by = np.float32(factor)
        cells_CD = self.cells_CD * by if self.space == "embeddings" else self.cells_CD
        return replace(self, cells_CD=cells_CD, centroids_KD=self.centroids_KD * by)


def cells_and_rows(rows: int, clusters: int) -> tuple[int, int]:
    """Number of cells, and of the points that make them; 0 cells where merging cannot help.

    Fewer than two cells a cluster leave nothing to merge: there are too few points, or more than
    two thousand clusters, whose graph of cells would not fit in memory.
    """
    cells = min(max(_LEAST_CELLS, _CELLS_PER_CLUSTER * clusters), _MOST_CELLS)
    cells = min(cells, rows // _LEAST_ROWS_PER_CELL)
    return (cells if cells >= 2 * clusters else 0), min(rows, max(_ROWS, _ROWS_PER_CELL * cells))


def merged_start(
    spaces: Mapping[Space, NDArray[np.float32]], clusters: int, *, starts: int, seed: int
) -> MergedStart | None:
    """Merge the cells of several over-clusterings, and keep the one that the others agree with.

    Args:
        spaces: The same rows in each space, shape (rows, its dimensions); at least ``clusters``.
        clusters: K.
        starts: Starts in each space, at most; of large samples fewer, to bound the time.
        seed: Same seed and points, same result.

    Returns:
        The start; None where merging cannot help, which is logged.
    """
    embedding_ND = spaces["embeddings"]
    cells, rows = cells_and_rows(len(embedding_ND), clusters)
    if not cells:
        sampled = len(embedding_ND)
        too_few = sampled < 2 * clusters * _LEAST_ROWS_PER_CELL
        why = f"{sampled:,} sampled rows are too few" if too_few else "they are too many"
        log.info("first centroids of %d clusters are those of k-means: %s", clusters, why)
        return None
    drawn = np.random.default_rng(seed).permutation(len(embedding_ND))[:rows]
    few = max(_LEAST_NEIGHBOURS, rows // (_NEIGHBOURS_PER_CLUSTER * clusters))
    found: list[_Cells] = []
    near: list[NDArray[np.int64]] = []
    for space, points_ND in spaces.items():
        if space == "features" and rows * rows * points_ND.shape[1] > WORK:
            log.info(
                "cells are made of embeddings alone: %d features are too many", points_ND.shape[1]
            )
            continue
        some_ND = np.ascontiguousarray(points_ND[drawn])
        near.append(nearest_neighbours(some_ND, rows, min(_NEIGHBOURS, few)))
        number, iterations = affordable(
            some_ND.size * cells, restarts=starts, iterations=ITERATIONS, work=WORK
        )
        found += [
            _Cells.of(space, some_ND, near[-1], cells, iterations, seed + n) for n in range(number)
        ]
    medoids = {name: _medoid(found, clusters, rule) for name, rule in RULES.items()}
    name = _best_rule(medoids, near, clusters)
    chosen = medoids[name]
    best = found[chosen.number]
    labels_N = chosen.cluster_C[nearest_centroid(spaces[best.space], best.means_CD)]
    rows_K = np.bincount(labels_N, minlength=clusters)
    centroids_KD = np.zeros((clusters, embedding_ND.shape[1]))
    np.add.at(centroids_KD, labels_N, embedding_ND)
    return MergedStart(
        space=best.space,
        cells_CD=best.means_CD,
        cluster_C=chosen.cluster_C,
        centroids_KD=(centroids_KD / np.maximum(rows_K, 1)[:, None]).astype(np.float32),
        rule=name,
        agreement={name: medoid.agreement for name, medoid in medoids.items()},
        firmness_K=chosen.firmness_K,
        starts=len(found),
    )


@dataclass(frozen=True)
class _Cells:
    """One over-clustering, without empty cells."""

    space: Space
    labels_N: NDArray[np.int64]
    means_CD: NDArray[np.float32]
    rows_C: NDArray[np.int64]
    edges_CC: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        space: Space,
        points_ND: NDArray[np.float32],
        near_NM: NDArray[np.int64],
        cells: int,
        iterations: int,
        seed: int,
    ) -> _Cells:
        found = kmeans(points_ND, cells, restarts=1, iterations=iterations, seed=seed)
        used, labels_N = np.unique(
            nearest_centroid(points_ND, found.centroids_KD), return_inverse=True
        )
        edges_CC = neighbour_pairs(near_NM, labels_N, len(used))
        return cls(space, labels_N, found.centroids_KD[used], np.bincount(labels_N), edges_CC)


@dataclass(frozen=True)
class _Medoid:
    """The start whose partition agrees best with those of all others, under one rule."""

    number: int
    cluster_C: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    agreement: float
    firmness_K: NDArray[np.float64]


def _medoid(starts: Sequence[_Cells], clusters: int, rule: Rule) -> _Medoid:
    groups = [merge_cells(s.edges_CC, s.rows_C, s.means_CD, clusters, rule) for s in starts]
    partitions = [group[s.labels_N] for group, s in zip(groups, starts, strict=True)]
    number = len(starts)
    mutual_SS = np.eye(number)
    for one in range(number):
        for other in range(one):
            shared = contingency_of(partitions[one], partitions[other])
            mutual_SS[one, other] = mutual_SS[other, one] = adjusted_rand(shared)
    best = int(mutual_SS.sum(axis=1).argmax())
    others = [p for n, p in enumerate(partitions) if n != best]
    firmness = [_jaccards(partitions[best], other) for other in others]
    return _Medoid(
        number=best,
        cluster_C=groups[best],
        labels_N=partitions[best],
        agreement=float((mutual_SS.sum() - number) / max(1, number * (number - 1))),
        firmness_K=np.mean(firmness, axis=0) if firmness else np.ones(clusters),
    )


def _jaccards(ours_N: NDArray[np.int64], theirs_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Jaccard index of each of our clusters with the one of theirs that is most like it."""
    shared = contingency_of(ours_N, theirs_N)
    either = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
    best_K: NDArray[np.float64] = (shared / np.maximum(either, 1)).max(axis=1)
    return best_K


def _best_rule(
    medoids: Mapping[str, _Medoid], near: Sequence[NDArray[np.int64]], clusters: int
) -> str:
    """The rule on which the starts agree most, as partitions and cluster by cluster.

    Sizes as uneven as the third rule makes them need more than agreement, for starts agree on one
    huge cluster, too: its clusters must lie far further apart, in both spaces.
    """

    def agreed(name: str) -> float:
        return medoids[name].agreement * float(medoids[name].firmness_K.mean())

    even = max((name for name in medoids if name != _UNEVEN), key=agreed)
    leads = (
        separation(near_NM, medoids[_UNEVEN].labels_N, clusters)
        - separation(near_NM, medoids[even].labels_N, clusters)
        for near_NM in near
    )
    return _UNEVEN if min(leads) > _LEAD else even


def merge_cells(
    edges_CC: NDArray[np.float64],
    rows_C: NDArray[np.int64],
    means_CD: NDArray[np.float32],
    clusters: int,
    rule: Rule,
) -> NDArray[np.int64]:
    """Merge the two groups with the greatest score until ``clusters`` are left.

    By density, groups that no edge joins are merged only when no joined pair is left, those first
    that raise the squared distances to the means least (Ward 1963).

    Args:
        edges_CC: Pairs of neighbours, counted by their cells; symmetric.
        rows_C: Number of points in each cell, at least 1.
        means_CD: Mean of the points of each cell.
        clusters: K, at most C.
        rule: "modularity", or the exponent p of E_ij / (n_i · n_j)^p.

    Returns:
        Group of each cell, from 0 to K − 1 in the order of their first cells.
    """
    edges_CC, means64_CD = edges_CC.astype(np.float64), means_CD.astype(np.float64)
    size_C = rows_C.astype(np.float64)
    total, degrees_C = edges_CC.sum(), edges_CC.sum(axis=1)
    cells = len(size_C)
    group_C, alive_C = np.arange(cells), np.ones(cells, bool)

    def scores(one: int) -> NDArray[np.float64]:
        if rule == "modularity":
            all_C: NDArray[np.float64] = (
                edges_CC[one] / total - degrees_C[one] * degrees_C / total**2
            )
        else:
            all_C = edges_CC[one] / (size_C[one] * size_C) ** rule
            all_C[edges_CC[one] <= 0] = -np.inf
        all_C[~alive_C] = all_C[one] = -np.inf
        return all_C

    # The best partner of each group; only rows that lose theirs are searched again.
    table_CC = np.stack([scores(cell) for cell in range(cells)])
    partner_C = table_CC.argmax(axis=1)
    best_C = table_CC.max(axis=1)
    for _ in range(cells - clusters):
        kept = int(best_C.argmax())
        gone = int(partner_C[kept])
        if best_C[kept] == -np.inf:
            kept, gone = _closest(means64_CD, size_C, alive_C)
        kept, gone = min(kept, gone), max(kept, gone)
        share = size_C[gone] / (size_C[kept] + size_C[gone])
        means64_CD[kept] += share * (means64_CD[gone] - means64_CD[kept])
        for counts in (edges_CC, edges_CC.T, size_C, degrees_C):
            counts[kept] += counts[gone]
        alive_C[gone] = False
        group_C[group_C == gone] = kept
        table_CC[gone] = table_CC[:, gone] = best_C[gone] = -np.inf
        table_CC[kept] = table_CC[:, kept] = scores(kept)
        better_C = table_CC[kept] > best_C
        best_C[better_C], partner_C[better_C] = table_CC[kept, better_C], kept
        lost = np.flatnonzero(alive_C & ~better_C & np.isin(partner_C, (kept, gone)))
        lost = np.union1d(lost, [kept])
        partner_C[lost] = table_CC[lost].argmax(axis=1)
        best_C[lost] = table_CC[lost, partner_C[lost]]
    merged_C: NDArray[np.int64] = np.unique(group_C, return_inverse=True)[1]
    return merged_C


def _closest(
    means_CD: NDArray[np.float64], rows_C: NDArray[np.float64], alive_C: NDArray[np.bool_]
) -> tuple[int, int]:
    """The two groups whose merging adds least to Σ ‖x − mean of its group‖² (Ward 1963)."""
    left = np.flatnonzero(alive_C)
    means, rows = means_CD[left], rows_C[left]
    squares = np.square(means).sum(axis=1)
    added = np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0)
    added *= rows[:, None] * rows / (rows[:, None] + rows)
    np.fill_diagonal(added, np.inf)
    first, second = divmod(int(added.argmin()), len(left))
    return int(left[first]), int(left[second])
