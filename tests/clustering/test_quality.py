"""Measures of a partition, against values worked out by hand and against scikit-learn."""

import math

import networkx
import numpy as np
import pytest
from sklearn.datasets import make_circles
from sklearn.metrics import adjusted_rand_score, silhouette_samples, silhouette_score
from sklearn.neighbors import NearestNeighbors

from pipeline.clustering.quality import (
    balance,
    contingency_of,
    macro_silhouette,
    modularity,
    nearest_neighbours,
    objective_ratio,
    separation,
    stability,
    stratified_rows,
)

# On a line: 0 and 2 in one cluster, 10 in the other.
LINE = np.array([[0.0], [2.0], [10.0]], np.float32)


def grouped(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping groups of very different sizes, and the group of each point."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, rows, p=[0.94, 0.05, 0.01])
    points = random.normal(size=(rows, 4)) + 2 * labels[:, None]
    return points.astype(np.float32), labels


# ---------------------------------------------------------------------------------- silhouette


def test_silhouette_by_hand() -> None:
    # a = 2, b = 10 and a = 2, b = 8: 0.8 and 0.75; alone in its cluster: 0.
    expected = ((0.8 + 0.75) / 2 + 0) / 2
    assert macro_silhouette(LINE, np.array([0, 0, 1])) == pytest.approx(expected)


def test_silhouette_is_the_mean_of_scikit_learns_over_clusters() -> None:
    points, labels = grouped(600)
    each = silhouette_samples(points, labels)
    expected = np.mean([each[labels == k].mean() for k in range(3)])
    assert macro_silhouette(points, labels) == pytest.approx(expected)
    assert abs(expected - silhouette_score(points, labels)) > 0.01  # which counts rows


def test_silhouette_does_not_depend_on_the_numbers_of_clusters() -> None:
    points, labels = grouped(300)
    renamed = np.array([7, 0, 3])[labels]
    assert macro_silhouette(points, renamed) == pytest.approx(macro_silhouette(points, labels))


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_silhouette_where_there_is_nothing_to_compare(labels: list[int]) -> None:
    assert macro_silhouette(LINE, np.array(labels)) == 0


def test_silhouette_of_drawn_rows_is_close_to_that_of_all() -> None:
    points, labels = grouped(6000)
    drawn = stratified_rows(labels, 3, seed=0)
    assert len(drawn) < 700
    whole = macro_silhouette(points, labels)
    assert macro_silhouette(points[drawn], labels[drawn]) == pytest.approx(whole, abs=0.03)


def test_drawn_rows() -> None:
    labels = np.repeat([0, 1, 2, 4], [1000, 150, 3, 500])
    drawn = stratified_rows(labels, 5, seed=1)
    assert np.bincount(labels[drawn]).tolist() == [200, 150, 3, 0, 200]
    assert (np.diff(drawn) > 0).all()  # each once
    np.testing.assert_array_equal(drawn, stratified_rows(labels, 5, seed=1))
    assert not np.array_equal(drawn, stratified_rows(labels, 5, seed=2))


@pytest.mark.parametrize(("clusters", "most"), [(2, 200), (100, 50), (2000, 10)])
def test_how_many_rows_are_drawn(clusters: int, most: int) -> None:
    labels = np.zeros(1000, np.int64)
    assert len(stratified_rows(labels, clusters, seed=0)) == most


def test_of_very_many_clusters_some_are_drawn_whole() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4000, 100_000)
    drawn = stratified_rows(labels, 4000, seed=0)
    assert len(drawn) == 10_000
    assert set(np.bincount(labels[drawn])) == {0, 10}
    renamed = random.permutation(4000)[labels]
    np.testing.assert_array_equal(drawn, stratified_rows(renamed, 4000, seed=0))


def test_equal_partitions_are_measured_on_the_same_rows() -> None:
    _, labels = grouped(3000)
    renamed = np.array([2, 0, 1])[labels]
    np.testing.assert_array_equal(stratified_rows(labels, 3, 0), stratified_rows(renamed, 3, 0))


# --------------------------------------------------------------------- objective, balance, ARI


def test_objective_ratio_by_hand() -> None:
    # Within: 1 + 1 around 1; in all: 16 + 4 + 36 around 4.
    assert objective_ratio(LINE, np.array([0, 0, 1]), 2) == pytest.approx(2 / 56)
    assert objective_ratio(LINE, np.array([0, 0, 0]), 2) == pytest.approx(1)
    assert objective_ratio(LINE, np.array([2, 1, 0]), 3) == pytest.approx(0)


def test_objective_ratio_ignores_place_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = grouped(500)
    expected = objective_ratio(points, labels, 3)
    assert objective_ratio(100 * points, labels, 3) == pytest.approx(expected)
    moved = (points.astype(np.float64) + 1e3).astype(np.float32)
    assert objective_ratio(moved, labels, 3) == pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr("pipeline.clustering.quality._CHUNK", 28)  # seven points at a time
    assert objective_ratio(points, labels, 3) == pytest.approx(expected)


def test_objective_ratio_of_a_space_that_collapsed() -> None:
    assert objective_ratio(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1]), 2) == 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([5, 5, 5], 1.0),
        ([9, 0, 0], 0.0),
        ([5, 5, 0, 0], 0.5),
        ([3, 1], (2 * math.log(2) - 0.75 * math.log(3)) / math.log(2)),
    ],
)
def test_balance(rows: list[int], expected: float) -> None:
    assert balance(np.array(rows)) == pytest.approx(expected)


def test_stability_is_the_adjusted_rand_index() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, 400), random.integers(0, 4, 400)
    second[:200] = first[:200] % 4
    assert stability(first, second) == pytest.approx(adjusted_rand_score(first, second))
    assert stability(first, np.array([3, 1, 4, 0, 2])[first]) == pytest.approx(1)


def test_contingency_leaves_out_unknown_classes() -> None:
    counted = contingency_of(np.array([0, 1, 1, 2]), np.array([1, 0, -1, 1]))
    assert counted.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert contingency_of(np.array([0, 1]), np.array([-1, -1])).sum() == 0


# ----------------------------------------------------------------------------------- modularity


def test_modularity_by_hand() -> None:
    near = nearest_neighbours(LINE, queries=3, neighbours=1)
    assert near.tolist() == [[1], [0], [1]]
    # Edges 0→1, 1→0, 2→1; two of three within, starts 2/3 and 1/3, all ends in the first cluster.
    assert modularity(near, np.array([0, 0, 1]), 2) == pytest.approx(2 / 3 - 2 / 3)
    assert modularity(near, np.array([0, 1, 1]), 2) == pytest.approx(1 / 3 - (1 + 2 * 2) / 9)
    assert modularity(near, np.array([0, 0, 0]), 1) == 0


def test_modularity_is_that_of_networkx() -> None:
    points, labels = grouped(400)
    near = nearest_neighbours(points, queries=400, neighbours=7)
    graph = networkx.DiGraph((i, int(j)) for i in range(400) for j in near[i])
    expected = networkx.community.modularity(
        graph, [set(np.flatnonzero(labels == k)) for k in range(3)]
    )
    assert modularity(near, labels, 3) == pytest.approx(expected)


def test_neighbours_are_those_of_scikit_learn() -> None:
    points, _ = grouped(300)
    expected = NearestNeighbors(n_neighbors=5).fit(points).kneighbors(return_distance=False)
    np.testing.assert_array_equal(nearest_neighbours(points, 300, 5), expected)
    np.testing.assert_array_equal(nearest_neighbours(points, 20, 5), expected[:20])


def test_neighbours_do_not_depend_on_where_the_origin_is() -> None:
    points = np.random.default_rng(4).normal(size=(500, 64)).round(2).astype(np.float32)
    there = nearest_neighbours(points + np.float32(4096), 500, 5)
    assert (there == nearest_neighbours(points, 500, 5)).mean() > 0.98


def test_a_point_is_not_its_own_neighbour_where_all_are_equal() -> None:
    near = nearest_neighbours(np.ones((30, 4), np.float32), queries=30, neighbours=3)
    assert near.shape == (30, 3)
    assert (near != np.arange(30)[:, None]).all()


def test_few_points_have_fewer_neighbours() -> None:
    assert nearest_neighbours(LINE, queries=10, neighbours=10).shape == (3, 2)


def test_modularity_knows_clusters_of_any_shape_and_the_silhouette_does_not() -> None:
    points, rings = make_circles(1000, factor=0.4, noise=0.05, random_state=0)
    points = points.astype(np.float32)
    halves = (points[:, 0] > 0).astype(np.int64)  # as k-means would cut it
    near = nearest_neighbours(points, 1000, 10)
    assert modularity(near, rings, 2) > modularity(near, halves, 2) + 0.01
    assert macro_silhouette(points, rings) < macro_silhouette(points, halves)


def test_modularity_is_near_0_for_labels_that_say_nothing() -> None:
    points, _ = grouped(2000)
    near = nearest_neighbours(points, 2000, 10)
    random = np.random.default_rng(1)
    assert abs(modularity(near, random.integers(0, 5, 2000), 5)) < 0.01
    # Nor does one cluster with nearly everything get anything for it.
    assert abs(modularity(near, (random.random(2000) < 0.01).astype(np.int64), 2)) < 0.01


def test_separation_counts_crossing_edges_and_sizes() -> None:
    near = np.array([[1], [0], [3], [2]])
    sizes = 1.5 * np.log(2)
    apart = separation(near, np.array([0, 0, 1, 1]), 2)
    assert apart == pytest.approx(sizes + np.log(0.5 / 0.125))  # as if half an edge of 4 crossed
    cut = separation(near, np.array([0, 1, 0, 1]), 2)
    assert cut == pytest.approx(sizes + np.log(0.5 / 1))
