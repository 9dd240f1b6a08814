"""How many clusters: merging by hand, and points whose number is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.clustering.merging import (
    Merge,
    boundary_of,
    connectivity_of,
    find_clusters,
    groups_in,
    merge_tree,
    neighbour_pairs,
)
from pipeline.errors import NumericalError


def groups(sizes: list[int], dimensions: int = 5, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian groups of these sizes, 10 standard deviations apart or more."""
    random = np.random.default_rng(seed)
    centers: list[NDArray[np.float64]] = []
    while len(centers) < len(sizes):
        center = random.uniform(-20, 20, dimensions)
        if all(np.linalg.norm(center - other) > 10 for other in centers):
            centers.append(center)
    points = [c + random.normal(size=(n, dimensions)) for c, n in zip(centers, sizes, strict=True)]
    return random.permutation(np.concatenate(points)).astype(np.float32)


def test_pairs_of_neighbours_are_counted_by_the_cells_of_both() -> None:
    # Two points in cell 0, one in cell 1, one in cell 2; a neighbour each.
    near = np.array([[1], [0], [1], [2]])
    pairs = neighbour_pairs(near, np.array([0, 0, 1, 2]), 3)
    np.testing.assert_array_equal(pairs, [[2, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]])


def test_connectivity_is_1_where_the_boundary_means_nothing() -> None:
    # 30 pairs start in the one and 10 in the other: 2 · ¾ · ¼ · 40 = 15 cross by chance.
    chance = connectivity_of(22.5, np.array([15.0]), np.array([2.5]))
    np.testing.assert_allclose(chance, [1.0])
    assert connectivity_of(22.5, np.array([0.0]), np.array([2.5]))[0] == 0
    empty = connectivity_of(22.5, np.array([0.0]), np.array([0.0]))[0]
    assert empty > connectivity_of(0.0, np.array([9.0]), np.array([0.0]))[0]  # all that there is


def test_the_most_connected_are_merged_first() -> None:
    # Two pairs of cells on a line that adjoin, and nothing between the pairs.
    ends = [(0, 1), (1, 2), (10, 11), (11, 12)]
    x = np.concatenate([np.linspace(low, high, 50, endpoint=False) for low, high in ends])
    near = np.stack([np.argsort(np.abs(x - at), kind="stable")[1:5] for at in x])
    points = x[:, None].astype(np.float32)
    labels = np.repeat(np.arange(4), 50)
    tree = merge_tree(points, near, labels, 4)
    assert {(merge.kept, merge.gone) for merge in tree[:2]} == {(0, 1), (2, 3)}
    assert (tree[2].kept, tree[2].gone) == (0, 2)
    # A cell is as long as its half is twice: the share of pairs that cross halves with the length.
    assert all(0.4 < merge.connectivity < 0.7 for merge in tree[:2])
    assert tree[2].connectivity == 0
    np.testing.assert_array_equal(labels, np.repeat(np.arange(4), 50))  # the caller's own
    assert groups_in(tree, boundary_of(tree)) == 2


def test_there_is_one_group_more_than_merges_between_groups() -> None:
    tree = [Merge(0, 1, 0.3), Merge(0, 2, 0.9), Merge(0, 3, 0.39), Merge(0, 4, 0.8)]
    assert groups_in(tree, 0.4) == 3
    assert groups_in(tree, 0.2) == 1


@pytest.mark.parametrize(
    ("connectivity", "boundary"),
    [
        # √(0.8 · 0.2), wherever the low ones are.
        ([0.8, 0.2, 0.8, 0.2], 0.4),
        # No boundary: all are as if there were none, more than that included.
        ([0.9, 1.4, 2.0, 1.0], 0.7),
        # All are boundaries; and those that nothing crosses weigh no more than 0.1 does.
        ([0.13, 0.12, 0.06, 0.0], 0.2),
        ([1.0, 0.0, 0.0, 0.0], 0.1**0.5),
        # One alone cannot be parted.
        ([0.1], 0.7),
    ],
)
def test_the_boundary_parts_high_connectivities_from_low_ones(
    connectivity: list[float], boundary: float
) -> None:
    tree = [Merge(0, 1, value) for value in connectivity]
    assert boundary_of(tree) == pytest.approx(boundary)


@pytest.mark.parametrize(
    ("sizes", "dimensions"),
    [
        ([300] * 3, 5),
        ([120] * 7, 10),
        ([500, 200, 100, 60], 5),
        ([100] * 20, 10),
        ([400, 400], 2),
    ],
)
def test_separate_groups_are_found(sizes: list[int], dimensions: int) -> None:
    points = groups(sizes, dimensions)
    found = find_clusters(points, 30, seed=3)
    assert found.clusters == len(sizes)
    # A start may put two groups in one cell, or leave an odd cell of few points.
    assert len(sizes) - 1 <= found.votes[0] <= found.votes[-1] <= len(sizes) + 1
    assert len(found.votes) == found.trees == 15
    assert 0.2 < found.boundary < 0.7
    agreement = {step.clusters: step.agreement for step in found.path}
    assert agreement[len(sizes)] > 0.97
    assert found.why.endswith(f"an adjusted Rand index of {agreement[len(sizes)]:.2f}")
    assert found.path[0].clusters == min(30, found.cells // 2)
    assert [step.clusters for step in found.path][-1] == 2


@pytest.mark.parametrize("shape", ["ball", "disc", "box", "ellipse"])
def test_a_single_group_is_not_cut_up(shape: str) -> None:
    random = np.random.default_rng(1)
    points = {
        "ball": random.normal(size=(1500, 10)),
        "disc": random.normal(size=(1500, 2)),
        "box": random.uniform(size=(1500, 3)),
        "ellipse": random.normal(size=(1500, 6)) * [9, 5, 2, 1, 1, 0.3],
    }[shape]
    found = find_clusters(points.astype(np.float32), 30, seed=0)
    assert found.clusters == 2  # the least there can be
    assert np.mean(found.votes) < 2  # of few rows, a start may see a boundary by chance
    assert found.why == "no boundary was found, and 2 is the least"


def test_the_same_seed_gives_the_same() -> None:
    points = groups([100, 100, 100], 4)
    assert find_clusters(points, 10, seed=3) == find_clusters(points, 10, seed=3)


def test_a_low_most_only_caps_the_number() -> None:
    points = groups([100] * 7)
    found = find_clusters(points, 5, seed=3)
    assert (found.clusters, found.cells) == (5, 35)
    assert [step.clusters for step in found.path] == [5, 4, 3, 2]
    assert find_clusters(points, 9, seed=3).clusters == 7


def test_few_points_equal_points_and_broken_ones() -> None:
    few = find_clusters(groups([50, 50], 3), 30, seed=0)
    assert (few.clusters, few.cells, few.rows) == (2, 5, 100)
    assert find_clusters(np.ones((300, 4), np.float32), 30, seed=0).clusters >= 2
    with pytest.raises(NumericalError):
        find_clusters(np.full((300, 4), np.nan, np.float32), 30, seed=0)
