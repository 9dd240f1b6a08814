"""Bins by hand, PSI by hand, and no alarm where nothing has changed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.clustering.drift import bin_counts, bin_edges, psi

INF = math.inf


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def alone_in_its_bin(x_N: np.ndarray, value: float) -> bool:
    """Whether no other value of the sample falls into the bin of this one."""
    edges = bin_edges(x_N[:, None])
    with_it, without = (bin_counts(rows[:, None], edges)[0] for rows in (x_N, x_N[x_N != value]))
    return not without[(with_it - without) > 0].any()


def test_bins_of_ten_distinct_values_hold_one_each() -> None:
    x_NF = column(*range(10))
    edges = bin_edges(x_NF)
    assert edges.tolist() == [list(range(9))]
    assert bin_counts(x_NF, edges).tolist() == [[1] * 10]


def test_a_bin_is_closed_above() -> None:
    edges = np.array([[1.0, 2.0, INF]])
    assert bin_counts(column(1, 1.5, 2, 2.1, 99, -99), edges).tolist() == [[2, 2, 2, 0]]


def test_many_distinct_values_make_bins_of_equal_size() -> None:
    x_NF = np.random.default_rng(0).normal(size=(5000, 3))
    counts = bin_counts(x_NF, bin_edges(x_NF))
    assert counts.tolist() == [[500] * 10] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_constant_that_changes_either_way_is_seen(dtype: type) -> None:
    x_NF = np.full((100, 1), 7, dtype)
    edges = bin_edges(x_NF)
    assert np.isfinite(edges).sum() == 2
    counts = bin_counts(np.array([[7], [7], [6], [8]], dtype), edges)
    assert counts.tolist() == [[1, 2, 1, *[0] * 7]]


def test_the_zeros_of_a_sparse_feature_are_alone() -> None:
    random = np.random.default_rng(0)
    x_N = np.where(random.random(1000) < 0.85, 0.0, random.random(1000))
    assert alone_in_its_bin(x_N, 0.0)
    counts = bin_counts(x_N[:, None], bin_edges(x_N[:, None]))[0]
    assert (counts > 0).sum() >= 2


def test_a_heavy_value_in_the_middle_is_alone() -> None:
    random = np.random.default_rng(0)
    x_N = np.where(random.random(1000) < 0.6, 0.0, random.normal(size=1000))
    assert alone_in_its_bin(x_N, 0.0)
    for few_below in (1, 30, 80):
        x_N = np.concatenate([-random.random(few_below), np.zeros(500), random.random(400)])
        assert alone_in_its_bin(x_N, 0.0)


def test_both_values_of_a_binary_feature_are_alone() -> None:
    x_N = (np.random.default_rng(0).random(1000) < 0.3).astype(np.float64)
    assert alone_in_its_bin(x_N, 0.0)
    assert alone_in_its_bin(x_N, 1.0)
    counts = bin_counts(column(-1, 0, 1, 2), bin_edges(x_N[:, None]))[0]
    assert counts[counts > 0].tolist() == [1, 1, 1, 1]


def test_missing_values_are_counted_nowhere_and_make_no_edge() -> None:
    x_NF = column(*range(10), math.nan, INF, -INF)
    edges = bin_edges(x_NF)
    assert edges.tolist() == [list(range(9))]
    assert bin_counts(x_NF, edges).sum() == 10
    nothing = np.full((5, 1), math.nan)
    assert bin_edges(nothing).tolist() == [[INF] * 9]
    assert bin_counts(nothing, edges).sum() == 0


def test_counts_are_those_of_a_plain_histogram_and_add_up() -> None:
    random = np.random.default_rng(3)
    x_NF = random.normal(size=(2000, 5)).astype(np.float32)
    other = random.normal(size=(700, 5)).astype(np.float32)
    edges = bin_edges(x_NF)
    for feature in range(5):
        bins = np.searchsorted(edges[feature], other[:, feature].astype(np.float64))
        expected = np.bincount(bins, minlength=10)
        assert bin_counts(other, edges)[feature].tolist() == expected.tolist()
    parts = bin_counts(other[:123], edges) + bin_counts(other[123:], edges)
    assert (parts == bin_counts(other, edges)).all()


def test_psi_by_hand() -> None:
    """(0.5 - 0.2) ln(0.5/0.2) + (0.5 - 0.8) ln(0.5/0.8), with so many rows that all else is 0."""
    many = 10**9
    found = psi(np.array([[2 * many, 8 * many]]), np.array([[5 * many, 5 * many]]))
    expected = 0.3 * math.log(0.5 / 0.2) - 0.3 * math.log(0.5 / 0.8)
    assert found == pytest.approx([expected], abs=1e-6)


def test_unused_bins_change_nothing_whatever_the_sizes() -> None:
    few, many = np.array([[30, 70]]), np.array([[30_000, 70_000]])
    unused = np.zeros((1, 8), np.int64)
    assert psi(few, many) == psi(np.hstack([few, unused]), np.hstack([many, unused])) == [0]


def test_a_bin_that_is_empty_on_one_side_alone_is_finite_and_grave() -> None:
    found = psi(np.array([[5000, 5000]]), np.array([[10_000, 0]]))
    assert 0.25 < found[0] < 20
    # A single stray row is not.
    assert psi(np.array([[10_000, 0]]), np.array([[9_999, 1]]))[0] < 0.01


def test_values_that_go_missing_are_drift() -> None:
    expected = np.array([[500, 500], [500, 500]])
    actual = np.array([[500, 500], [0, 0]])
    found = psi(expected, actual)
    assert found[0] == 0
    assert found[1] > 0.25


def test_a_night_without_rows_says_nothing() -> None:
    assert psi(np.array([[500, 500]]), np.zeros((1, 2), np.int64)).tolist() == [0]


@pytest.mark.parametrize("rows", [50, 200, 1000, 20_000])
@pytest.mark.parametrize("other_rows", [50, 1000])
def test_samples_of_one_distribution_raise_no_alarm(rows: int, other_rows: int) -> None:
    random = np.random.default_rng(rows + other_rows)

    def night(count: int) -> np.ndarray:
        x_NF = random.normal(size=(count, 300))
        x_NF[:, :100] = np.maximum(x_NF[:, :100], 0)  # half zeros
        x_NF[:, 100:120] = x_NF[:, 100:120] > 1.8  # rarely 1
        return x_NF

    reference = night(rows)
    edges = bin_edges(reference)
    expected = bin_counts(reference, edges)
    most = [psi(expected, bin_counts(night(other_rows), edges)).max() for _ in range(5)]
    assert max(most) < 0.1


def test_a_shift_by_one_deviation_is_an_alarm_from_some_hundred_rows_on() -> None:
    random = np.random.default_rng(0)
    for rows in (300, 3000):
        reference, tonight = random.normal(size=(2, rows, 50))
        tonight[:, 7] += 1
        edges = bin_edges(reference)
        found = psi(bin_counts(reference, edges), bin_counts(tonight, edges))
        assert found.argmax() == 7
        assert found[7] > 0.25
        assert np.delete(found, 7).max() < 0.1


def test_what_chance_adds_is_taken_off() -> None:
    """PSI of N(0.5, 1) against N(0, 1) by deciles is 0.237, also from some thousand rows."""
    random = np.random.default_rng(0)
    for rows in (2_000, 50_000):
        reference, tonight = random.normal(size=(2, rows, 20))
        edges = bin_edges(reference)
        found = psi(bin_counts(reference, edges), bin_counts(tonight + 0.5, edges))
        assert found.mean() == pytest.approx(0.237, abs=0.01)
