"""How many clusters: merging by hand, and points whose number is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from pipeline.clustering.merging import (
    Step,
    adjusted_rand,
    choose,
    connectivity_of,
    find_clusters,
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
    pairs = np.array([[80, 1, 0, 0], [1, 80, 0, 0], [0, 0, 40, 8], [0, 0, 8, 40.0]])
    tree = merge_tree(pairs)
    assert [(merge.kept, merge.gone) for merge in tree] == [(2, 3), (0, 1), (0, 2)]
    np.testing.assert_allclose(
        [merge.connectivity for merge in tree], [16 / 48, 2 / 81, 0], rtol=1e-12
    )
    assert pairs[0, 0] == 80  # the caller's table is as it was


def test_the_index_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 4, 200), random.integers(0, 3, 200)
    second[:100] = first[:100] % 3
    counts = np.zeros((4, 3))
    np.add.at(counts, (first, second), 1)
    assert adjusted_rand(counts) == pytest.approx(adjusted_rand_score(first, second))
    assert adjusted_rand(np.diag([3.0, 2.0])) == 1
    assert adjusted_rand(np.array([[5.0]])) == 1


def test_the_largest_that_agrees_about_as_well_is_chosen() -> None:
    path = [Step(5, 0.7, 0.5), Step(4, 0.91, 0.5), Step(3, 0.93, 0.1), Step(2, 0.8, 0.1)]
    assert choose(path) == (4, "found again from every start: agreement 0.91, best 0.93 at 3")
    clusters, why = choose([Step(3, 0.2, 0.9), Step(2, 0.1, 0.9)])
    assert clusters == 2
    assert "agreement 0.20 at most, of 3" in why


@pytest.mark.parametrize(
    ("sizes", "dimensions"),
    [
        ([300] * 3, 5),
        ([200] * 7, 10),
        ([1000, 400, 200, 100, 60], 5),
        ([100] * 20, 10),
        ([400, 400], 2),
    ],
)
def test_separate_groups_are_found(sizes: list[int], dimensions: int) -> None:
    points = groups(sizes, dimensions)
    found = find_clusters(points, 30, seed=3)
    assert found.clusters == len(sizes)
    assert found.path[0].clusters == min(30, found.cells // 2)
    assert [step.clusters for step in found.path][-1] == 2
    assert find_clusters(points, 30, seed=3) == found
    assert find_clusters(points[::-1], 30, seed=4).clusters == len(sizes)


@pytest.mark.parametrize("shape", ["ball", "disc", "box", "ellipse"])
def test_a_single_group_is_not_cut_up(shape: str) -> None:
    random = np.random.default_rng(1)
    points = {
        "ball": random.normal(size=(2000, 10)),
        "disc": random.normal(size=(2000, 2)),
        "box": random.uniform(size=(2000, 3)),
        "ellipse": random.normal(size=(2000, 6)) * [9, 5, 2, 1, 1, 0.3],
    }[shape]
    found = find_clusters(points.astype(np.float32), 30, seed=0)
    assert found.clusters == 2  # the least there can be
    assert found.why.startswith("no number of clusters is found again")


def test_few_points_equal_points_and_broken_ones() -> None:
    few = find_clusters(groups([50, 50], 3), 30, seed=0)
    assert (few.clusters, few.cells, few.rows) == (2, 5, 100)
    assert find_clusters(np.ones((300, 4), np.float32), 30, seed=0).clusters >= 2
    with pytest.raises(NumericalError):
        find_clusters(np.full((300, 4), np.nan, np.float32), 30, seed=0)
