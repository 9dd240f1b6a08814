"""Merged starts: merging by hand and against a plain loop, and points whose groups are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.clustering.starts import (
    RULES,
    UNEVEN,
    Rule,
    cells_of,
    firmness,
    merge_cells,
    merged_start,
    mutual_agreement,
)


def plainly_merged(
    edges_MM: NDArray[np.float64], rows_M: NDArray[np.int64], clusters: int, rule: Rule
) -> NDArray[np.int64]:
    """The same merges, with all scores computed anew at each step."""
    groups = [[cell] for cell in range(len(rows_M))]
    total, degrees_M = edges_MM.sum(), edges_MM.sum(axis=1)
    while len(groups) > clusters:
        scores = {}
        for i, first in enumerate(groups):
            for j, second in enumerate(groups[:i]):
                between = edges_MM[np.ix_(first, second)].sum()
                if rule == "modularity":
                    chance = degrees_M[first].sum() * degrees_M[second].sum() / total
                    scores[j, i] = (between - chance) / total
                else:
                    scores[j, i] = between / (rows_M[first].sum() * rows_M[second].sum()) ** rule
        kept, gone = max(scores, key=scores.__getitem__)
        groups[kept] += groups.pop(gone)
    group_M = np.empty(len(rows_M), np.int64)
    for number, group in enumerate(sorted(groups, key=min)):
        group_M[group] = number
    return group_M


def test_the_pair_with_the_densest_edges_is_merged_first() -> None:
    # Cells 0 and 1 share most edges, but 2 and 3 share more for their sizes.
    edges = np.array([[90, 30, 0, 0], [30, 90, 2, 0], [0, 2, 9, 4], [0, 0, 4, 9]], float)
    rows, means = np.array([20, 20, 2, 2]), np.zeros((4, 1))
    np.testing.assert_array_equal(merge_cells(edges, rows, means, 3, 1.0), [0, 1, 2, 2])
    np.testing.assert_array_equal(merge_cells(edges, rows, means, 3, 0.1), [0, 0, 1, 2])


def test_groups_that_no_edge_joins_are_merged_by_distance() -> None:
    means = np.array([[0.0], [10.0], [11.0], [30.0]])
    group = merge_cells(np.eye(4), np.ones(4, np.int64), means, 2, 1.0)
    np.testing.assert_array_equal(group, [0, 0, 0, 1])


@pytest.mark.parametrize("rule", [*RULES, UNEVEN])
def test_merging_equals_a_plain_loop(rule: Rule) -> None:
    random = np.random.default_rng(0)
    edges = random.uniform(1, 9, (30, 30)) * (random.uniform(size=(30, 30)) < 0.3)
    edges, rows = edges + edges.T + 0.01, random.integers(1, 50, 30)
    for clusters in (2, 5, 29):
        group = merge_cells(edges, rows, np.zeros((30, 1)), clusters, rule)
        np.testing.assert_array_equal(group, plainly_merged(edges, rows, clusters, rule))


def test_firmness_is_the_jaccard_index_with_the_most_similar_cluster() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    other = np.array([0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(
        firmness(labels, [labels, other]), [(1 + 2 / 3) / 2, (1 + 3 / 4) / 2]
    )
    np.testing.assert_allclose(mutual_agreement([labels, labels]), [1, 1])


def two_arcs_and_specks(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two interleaved half circles of 4,000 points and three groups of 100."""
    random = np.random.default_rng(seed)
    angles = random.uniform(0, np.pi, 4_000)
    upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lower = np.stack([1 - np.cos(angles), 0.4 - np.sin(angles)], axis=1)
    specks = [np.tile([x, 3.0], (100, 1)) for x in (-2, 0.5, 3)]
    labels = np.repeat(np.arange(5), [4_000, 4_000, 100, 100, 100])
    points = np.concatenate([upper, lower, *specks])
    points += random.normal(scale=0.06, size=points.shape)
    order = random.permutation(len(points))
    return points[order].astype(np.float32), labels[order]


def test_a_merged_start_finds_groups_that_are_neither_round_nor_of_one_size() -> None:
    points, labels = two_arcs_and_specks(0)
    cells = cells_of(len(points), 5)
    assert cells == 200
    start = merged_start(points, 5, cells=cells, starts=3, seed=0)
    nearest = ((points[:, None] - start.cell_means_MD) ** 2).sum(axis=2).argmin(axis=1)
    agreement = mutual_agreement([start.group_M[nearest], labels])[0]
    assert agreement > 0.99
    assert start.firmness_K.min() > 0.9
    assert [one.rule for one in start.rules] == [*RULES, UNEVEN]


def test_one_group_may_have_most_of_the_rows() -> None:
    random = np.random.default_rng(1)
    # A long curved group that k-means would cut, and six small ones far from it.
    bend = random.uniform(-3, 3, 8_000)
    large = np.stack([bend, bend**2 / 3, np.sin(bend)], axis=1)
    centers = np.array([[0, 6, 0], [4, -3, 2], [-4, -3, 2], [0, -3, -4], [6, 1, -3], [-6, 1, -3]])
    small = np.repeat(centers, 300, axis=0)
    labels = np.repeat(np.arange(7), [8_000, *[300] * 6])
    points = np.concatenate([large, small]) + 0.35 * random.standard_t(4, size=(9_800, 3))
    order = random.permutation(len(points))
    start = merged_start(points[order].astype(np.float32), 7, cells=200, starts=3, seed=0)
    nearest = ((points[:, None] - start.cell_means_MD) ** 2).sum(axis=2).argmin(axis=1)
    assert mutual_agreement([start.group_M[nearest], labels])[0] > 0.9


def test_fifty_groups_are_all_found() -> None:
    random = np.random.default_rng(3)
    centers, labels = random.integers(0, 256, (50, 16)), np.arange(5_000) % 50
    points = centers[labels] + random.normal(scale=12, size=(5_000, 16))
    start = merged_start(points.astype(np.float32), 50, cells=250, starts=3, seed=0)
    nearest = ((points[:, None] - start.cell_means_MD) ** 2).sum(axis=2).argmin(axis=1)
    assert mutual_agreement([start.group_M[nearest], labels])[0] == 1


@pytest.mark.parametrize(
    ("rows", "clusters", "cells"),
    [
        (100_000, 10, 200),
        (100_000, 100, 500),
        (100_000, 1_500, 4_000),
        (1_000, 3, 125),
        (100, 8, None),  # 12 cells of 8 points would not do
        (1_000_000, 10_000, None),
    ],
)
def test_cells_grow_with_clusters_and_rows(rows: int, clusters: int, cells: int | None) -> None:
    assert cells_of(rows, clusters) == cells
