"""The map: near stays near, the same seed gives the same map, and it says how far it can be
believed."""

import numpy as np
import pytest

from pipeline.clustering.projection import project


def groups(rows: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    centers = np.repeat([[-20.0], [0.0], [20.0]], rows, axis=0) * np.ones((1, 6))
    return centers + random.normal(size=centers.shape)


def test_groups_stay_together_and_apart() -> None:
    found = project(groups(), seed=0)
    xy = found.xy_N2
    assert xy.dtype == np.float32
    assert np.abs(xy).max() == pytest.approx(1)
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    group = np.repeat(np.arange(3), 40)
    assert (group[apart.argmin(1)] == group).all()
    assert 0.3 < found.kept_neighbours <= 1
    assert 0.3 < found.distance_correlation <= 1


def test_the_same_seed_gives_the_same_map() -> None:
    first, again = project(groups(20), seed=3), project(groups(20), seed=3)
    assert np.array_equal(first.xy_N2, again.xy_N2)


def test_wide_rows_and_equal_rows_have_a_map_too() -> None:
    wide = np.random.default_rng(0).normal(size=(60, 80))
    assert np.isfinite(project(wide, seed=0).xy_N2).all()
    assert np.isfinite(project(np.zeros((8, 3)), seed=0).xy_N2).all()


def test_too_few_rows_have_none() -> None:
    with pytest.raises(ValueError, match="z_ND has 4 rows; a map needs at least 5"):
        project(np.zeros((4, 2)), seed=0)
