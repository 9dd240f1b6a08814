"""Merged cells: the first partition of refinement."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import make_moons
from sklearn.metrics import adjusted_rand_score

from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.starts import (
    RULES,
    MergedStart,
    Rule,
    Space,
    cells_and_rows,
    merge_cells,
    merged_start,
)


def in_a_plain_loop(
    edges: NDArray[np.float64], rows: NDArray[np.int64], clusters: int, rule: Rule
) -> NDArray[np.int64]:
    """Every pair is scored anew before each merge."""
    groups = [{cell} for cell in range(len(rows))]
    total = edges.sum()

    def score(a: set[int], b: set[int]) -> float:
        across = edges[np.ix_([*a], [*b])].sum()
        if rule == "modularity":
            degrees = [edges[[*group]].sum() for group in (a, b)]
            return float(across / total - degrees[0] * degrees[1] / total**2)
        if across <= 0:
            return -np.inf
        sizes = [rows[[*group]].sum() for group in (a, b)]
        return float(across / (sizes[0] * sizes[1]) ** rule)

    while len(groups) > clusters:
        pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
        i, j = max(pairs, key=lambda pair: score(groups[pair[0]], groups[pair[1]]))
        groups[i] |= groups.pop(j)
    found = np.empty(len(rows), np.int64)
    for number, group in enumerate(groups):
        found[[*group]] = number
    return found


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_merges_are_those_of_a_plain_loop(rule: Rule) -> None:
    random = np.random.default_rng(1)
    edges = random.random((40, 40)) * (random.random((40, 40)) < 0.3)
    edges, rows = edges + edges.T, random.integers(1, 100, 40)
    means = random.random((40, 2)).astype(np.float32)
    for clusters in (30, 10, 3):
        found = merge_cells(edges, rows, means, clusters, rule)
        expected = in_a_plain_loop(edges, rows, clusters, rule)
        assert adjusted_rand_score(found, expected) == 1
        assert found.max() == clusters - 1


def test_groups_that_no_edge_joins_are_merged_by_their_means() -> None:
    means = np.array([[0.0], [1], [10], [11.5], [30]], np.float32)
    found = merge_cells(np.diag(np.ones(5)), np.full(5, 10), means, 3, 1.0)
    assert found.tolist() == [0, 0, 1, 1, 2]


def moons(rows: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    points, truth = make_moons(rows, noise=0.06, random_state=3)
    return points.astype(np.float32), truth


def in_both(points: NDArray[np.float32]) -> dict[Space, NDArray[np.float32]]:
    """As if the encoder left rows as they are."""
    return {"embeddings": points, "features": points}


def labels_of(start: MergedStart, points: NDArray[np.float32]) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = start.cluster_C[nearest_centroid(points, start.cells_CD)]
    return labels


def test_groups_of_any_shape_are_found_where_kmeans_cuts_them() -> None:
    points, truth = moons()
    start = merged_start(in_both(points), 2, starts=5, seed=0)
    assert start is not None
    labels = labels_of(start, points)
    assert adjusted_rand_score(truth, labels) > 0.98
    plain = kmeans(points, 2, restarts=5, iterations=20, seed=0)
    assert adjusted_rand_score(truth, nearest_centroid(points, plain.centroids_KD)) < 0.6
    assert start.starts == 10
    assert start.agreement[start.rule] > 0.95
    assert (start.firmness_K > 0.95).all()
    for k in range(2):
        np.testing.assert_allclose(
            start.centroids_KD[k], points[labels == k].mean(axis=0), rtol=1e-4, atol=1e-5
        )
    again = merged_start(in_both(points), 2, starts=5, seed=0)
    assert again is not None
    assert (again.cluster_C == start.cluster_C).all()


@pytest.mark.parametrize("useless", ["embeddings", "features"])
def test_cells_are_made_in_the_space_on_which_starts_agree(useless: Space) -> None:
    """A network that learnt nothing does no harm, nor do rows that only an encoder untangles."""
    points, truth = moons()
    spaces = in_both(points)
    spaces[useless] = np.random.default_rng(0).normal(size=points.shape).astype(np.float32)
    start = merged_start(spaces, 2, starts=5, seed=0)
    assert start is not None
    assert start.space != useless
    labels = labels_of(start, points)
    assert adjusted_rand_score(truth, labels) > 0.98
    means = [spaces["embeddings"][labels == k].mean(axis=0) for k in range(2)]
    np.testing.assert_allclose(start.centroids_KD, means, rtol=1e-4, atol=1e-5)
    # Scaling the embeddings scales their cells, and leaves those of rows alone.
    by = np.float32(3 if start.space == "embeddings" else 1)
    np.testing.assert_array_equal(start.scaled(3.0).cells_CD, start.cells_CD * by)
    np.testing.assert_array_equal(
        start.scaled(3.0).centroids_KD, start.centroids_KD * np.float32(3)
    )


def test_a_cluster_that_few_starts_find_is_less_firm() -> None:
    random = np.random.default_rng(5)
    far, ball = random.normal(8, 0.3, (300, 2)), random.normal(0, 1, (900, 2))
    points = np.concatenate([far, ball]).astype(np.float32)  # and a ball that has no halves
    start = merged_start(in_both(points), 3, starts=7, seed=0)
    assert start is not None
    firmness = start.firmness_K[labels_of(start, points)]
    assert np.median(firmness[:300]) > 0.98
    assert np.median(firmness[300:]) < 0.95


@pytest.mark.parametrize(
    ("rows", "clusters", "why"), [(100, 8, "too few"), (100_000, 4000, "too many")]
)
def test_where_merging_cannot_help_kmeans_is_the_start(
    rows: int, clusters: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        spaces = in_both(np.zeros((rows, 2), np.float32))
        assert merged_start(spaces, clusters, starts=2, seed=0) is None
    assert why in caplog.text


@pytest.mark.parametrize("clusters", [2, 10, 50, 500, 2000])
def test_cells_and_rows_grow_with_the_clusters(clusters: int) -> None:
    cells, rows = cells_and_rows(10**6, clusters)
    assert 2 * clusters <= cells <= 4000
    assert 20_000 <= rows <= 80_000
