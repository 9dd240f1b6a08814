"""Mergeable statistics of clusters, against what numpy says of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.clustering import profile
from pipeline.clustering.profile import Contrast, GroupMoments, Points, first_of_each, ranks


def rows(seed: int, number: int = 500, clusters: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Clusters and values of some rows; a column of large numbers, one of few, some missing."""
    random = np.random.default_rng(seed)
    ids = random.integers(-1, clusters - 1, number)
    x = random.normal(size=(number, 4)) * 3 + ids[:, None]
    x[:, 1] += 1.7e9  # seconds since 1970
    x[:, 2] = np.round(x[:, 2])
    x[random.random(number) < 0.2, 3] = np.nan
    x[random.random(number) < 0.05, 3] = np.inf
    x[random.random(number) < 0.5, 1] = np.nan
    return ids, x


def in_batches(ids: np.ndarray, x: np.ndarray, sizes: list[int]) -> GroupMoments:
    found = GroupMoments.none(x.shape[1])
    for part in np.split(np.arange(len(ids)), np.cumsum(sizes)):
        found = found.merge(GroupMoments.of(ids[part], x[part]))
    return found


@pytest.mark.parametrize("large", [1, 70, 10**9])  # cluster by cluster, some of them, or together
def test_moments_of_batches_are_those_of_all_rows(
    monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(profile, "_LARGE_ROWS", large)
    monkeypatch.setattr(profile, "_LARGE_VALUES", 10**9)
    ids, x = rows(0)
    found = in_batches(ids, x, [1, 120, 3, 0, 200])
    np.testing.assert_array_equal(found.ids_K, np.unique(ids))
    for place, cluster in enumerate(found.ids_K):
        own = x[ids == cluster]
        assert found.rows_K[place] == len(own)
        for column in range(4):
            values = own[np.isfinite(own[:, column]), column]
            assert found.count_KF[place, column] == len(values)
            np.testing.assert_allclose(found.mean_KF[place, column], values.mean(), rtol=1e-14)
            variance = found.m2_KF[place, column] / len(values)
            away = values - values[0]  # exactly
            np.testing.assert_allclose(variance, away.var(), rtol=1e-6)
            assert found.min_KF[place, column] == values.min()
            assert found.max_KF[place, column] == values.max()


def test_float32_rows_are_added_up_in_float64() -> None:
    ids, x = rows(1, 5_000, 2)
    x = (x[:, :1] + 1e4).astype(np.float32)
    found = GroupMoments.of(ids, x)
    for place, cluster in enumerate(found.ids_K):
        own = x[ids == cluster].astype(np.float64)
        np.testing.assert_allclose(found.mean_KF[place], own.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.m2_KF[place] / len(own), own.var(axis=0), rtol=1e-9)


def test_a_cluster_that_misses_all_values_and_equal_values() -> None:
    x = np.array([[np.nan, 0.1], [np.nan, 0.1], [1.0, 0.1]])
    found = GroupMoments.of(np.array([4, 4, 9]), x)
    assert found.count_KF.tolist() == [[0, 2], [1, 1]]
    assert found.m2_KF.tolist() == [[0, 0], [0, 0]]
    again = found.merge(GroupMoments.of(np.array([4]), np.array([[3.0, 0.1]])))
    assert again.mean_KF.tolist() == [[3.0, 0.1], [1.0, 0.1]]


def test_differences_are_from_all_other_rows() -> None:
    ids, x = rows(2)
    contrast = Contrast.of(in_batches(ids, x, [100, 300]))
    difference = contrast.differences()
    length = contrast.lengths(slice(0, 3))
    spread = np.sqrt(np.nanvar(x[:, :3], axis=0).sum())
    for place, cluster in enumerate(np.unique(ids)):
        own, rest = (x[mask].copy() for mask in (ids == cluster, ids != cluster))
        for part in (own, rest):
            part[~np.isfinite(part)] = np.nan
        every = np.where(np.isfinite(x), x, np.nan)
        away = np.nanmean(own, axis=0) - np.nanmean(rest, axis=0)
        np.testing.assert_allclose(difference[place], away / np.nanstd(every, axis=0), rtol=1e-5)
        np.testing.assert_allclose(length[place], np.linalg.norm(away[:3]) / spread, rtol=1e-5)


def test_one_cluster_differs_from_nothing() -> None:
    contrast = Contrast.of(GroupMoments.of(np.zeros(3, int), np.array([[1.0], [2.0], [3.0]])))
    assert contrast.differences().tolist() == [[0.0]]
    constant = Contrast.of(GroupMoments.of(np.arange(3), np.ones((3, 1))))
    assert constant.differences().tolist() == [[0.0]] * 3
    assert constant.lengths(slice(0, 1)).tolist() == [0.0] * 3


SHARES = [0.05, 0.25, 0.5, 0.75, 0.95]


def merged_points(parts: list[tuple[np.ndarray, np.ndarray]], most: int) -> tuple[Points, object]:
    moments = [GroupMoments.of(ids, x) for ids, x in parts]
    pieces = [(Points.of(ids, x, most), own) for (ids, x), own in zip(parts, moments, strict=True)]
    total = moments[0]
    for own in moments[1:]:
        total = total.merge(own)
    return Points.merged(pieces, range(x_width(parts)), 4 * most), total


def x_width(parts: list[tuple[np.ndarray, np.ndarray]]) -> int:
    return parts[0][1].shape[1]


def test_quantiles_of_few_rows_are_exact() -> None:
    parts = [rows(seed, 40) for seed in range(3)]
    points, moments = merged_points(parts, 64)
    assert isinstance(moments, GroupMoments)
    found = points.quantiles(SHARES, moments.count_KF)
    ids, x = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    for place, cluster in enumerate(points.ids_K):
        for column in range(4):
            values = x[ids == cluster, column]
            values = values[np.isfinite(values)]
            np.testing.assert_allclose(found[place, column], np.quantile(values, SHARES))


def test_quantiles_of_many_rows_are_within_a_hundredth_of_the_ranks() -> None:
    random = np.random.default_rng(0)
    parts = []
    for part in range(40):  # that differ: each has values of its own
        x = random.lognormal(part / 20, 1.0, size=(3_000, 2))
        parts.append((random.integers(0, 3, 3_000), x))
    points, moments = merged_points(parts, 64)
    assert isinstance(moments, GroupMoments)
    assert points.number_KS.max() == 256
    found = points.quantiles(SHARES, moments.count_KF)
    ids, x = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    for cluster in range(3):
        for column in range(2):
            values = np.sort(x[ids == cluster, column])
            rank = np.searchsorted(values, found[cluster, column]) / len(values)
            assert np.abs(rank - SHARES).max() < 0.01


def test_points_do_not_depend_on_the_order_of_rows() -> None:
    ids, x = rows(5, 2_000)
    order = np.random.default_rng(1).permutation(len(ids))
    one, two = Points.of(ids, x, 16), Points.of(ids[order], x[order], 16)
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.number_KS, two.number_KS)


def test_a_column_without_values_has_no_quantiles() -> None:
    ids, x = np.zeros(5, int), np.full((5, 1), np.nan)
    points = Points.of(ids, x, 8)
    merged = Points.merged([(points, GroupMoments.of(ids, x))], [0], 32)
    assert np.isnan(merged.quantiles(SHARES, np.zeros((1, 1), int))).all()


def test_first_of_each_cluster() -> None:
    ids = np.array([2, 1, 2, 2, 1, 2])
    by = np.array([5.0, 1.0, 3.0, 3.0, 0.0, 9.0])
    assert first_of_each(ids, 2, by).tolist() == [4, 1, 2, 3]  # of equals, the first row
    then = np.array([0, 0, 1, 0, 0, 0])
    assert first_of_each(ids, 1, by, then).tolist() == [4, 3]
    assert first_of_each(ids, 9, by).tolist() == [4, 1, 2, 3, 0, 5]


def test_ranks_by_absolute_difference() -> None:
    assert ranks(np.array([[0.5, -2.0, 0.5], [0.0, 0.0, 1.0]])).tolist() == [[2, 1, 3], [2, 3, 1]]
