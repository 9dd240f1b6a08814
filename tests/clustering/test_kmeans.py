"""k-means on points whose answer is known."""

import math

import numpy as np
import pytest

from pipeline.clustering.kmeans import KMeansResult, kmeans
from pipeline.errors import InputError, NumericalError

# Two pairs, 2 apart within and 10 between: means (0, 1) and (10, 1), each point 1 from its own.
PAIRS = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], dtype=np.float32)


def run(points: np.ndarray, clusters: int, **settings: int) -> KMeansResult:
    return kmeans(points, clusters, **{"restarts": 3, "iterations": 10, "seed": 0, **settings})


def test_four_points_by_hand() -> None:
    result = run(PAIRS, 2, restarts=10)
    assert sorted(result.centroids_KD.tolist()) == [[0, 1], [10, 1]]
    assert result.cluster_rows == (2, 2)
    assert result.objective == 4


def test_as_many_clusters_as_points() -> None:
    result = run(PAIRS, 4)
    assert sorted(result.centroids_KD.tolist()) == sorted(PAIRS.tolist())
    assert result.objective == 0


def test_best_restart_wins() -> None:
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    result = run(points, 12, restarts=5, iterations=4)
    assert len(result.objectives) == 5
    assert len(set(result.objectives)) > 1  # else there was nothing to choose
    assert result.objective == min(result.objectives)


def test_every_point_counts() -> None:
    # 600 points for one centroid: FAISS alone would look at 256 of them.
    points = np.random.default_rng(1).normal(size=(600, 3)).astype(np.float32)
    result = run(points, 1)
    np.testing.assert_allclose(result.centroids_KD[0], points.mean(axis=0), atol=1e-5)
    assert result.cluster_rows == (600,)
    assert result.objective == pytest.approx(points.var(axis=0).sum() * 600, rel=1e-4)


def test_objective_and_sizes_belong_to_the_returned_centroids() -> None:
    points = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)
    result = run(points, 5, iterations=2)
    squared = np.square(points[:, None].astype(np.float64) - result.centroids_KD).sum(axis=2)
    assert result.objective == pytest.approx(squared.min(axis=1).sum(), rel=1e-4)
    assert result.cluster_rows == tuple(np.bincount(squared.argmin(axis=1), minlength=5))


def test_same_seed_same_centroids() -> None:
    points = np.random.default_rng(3).normal(size=(200, 2)).astype(np.float32)
    first, again, other = (run(points, 8, restarts=1, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.centroids_KD, again.centroids_KD)
    assert not np.array_equal(first.centroids_KD, other.centroids_KD)


def test_the_largest_seed_works() -> None:
    assert run(PAIRS, 2, seed=2**32 - 1, restarts=10).objective == 4


def test_points_need_not_be_contiguous() -> None:
    wide = np.zeros((4, 4), dtype=np.float32)
    wide[:, ::2] = PAIRS
    assert run(wide[:, ::2], 2, restarts=10).objective == 4


def test_identical_points_leave_every_row_in_a_cluster() -> None:
    result = run(np.ones((50, 2), dtype=np.float32), 3)
    assert np.isfinite(result.centroids_KD).all()
    assert sum(result.cluster_rows) == 50
    assert result.objective == pytest.approx(0, abs=1e-3)


def test_fewer_points_than_clusters() -> None:
    with pytest.raises(InputError, match=r"clusters=5 needs.*the sample has 4"):
        run(PAIRS, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_points_that_are_not_finite(value: float) -> None:
    points = PAIRS.copy()
    points[0, 0] = value
    with pytest.raises(NumericalError, match="not finite"):
        run(points, 2)


def test_work_is_bounded_by_fewer_restarts_and_then_fewer_iterations() -> None:
    points = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    iteration = points.size * 8
    many = kmeans(points, 8, restarts=6, iterations=20, seed=0, work=20 * 6 * iteration)
    assert len(many.objectives) == 6
    fewer = kmeans(points, 8, restarts=6, iterations=20, seed=0, work=20 * 2 * iteration)
    assert fewer.objectives == many.objectives[:2]
    short = kmeans(points, 8, restarts=6, iterations=20, seed=0, work=1)
    assert short.objectives == kmeans(points, 8, restarts=1, iterations=10, seed=0).objectives
