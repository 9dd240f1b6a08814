"""Mergeable statistics of each feature in each cluster.

Moments are exact over all rows. Quantiles come from points, which represent equal shares of a
cluster's rows: all values while they are few, else thinned evenly by rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Minimum rows or values of a cluster in a batch that justify its own calls of numpy.
_LARGE_ROWS, _LARGE_VALUES = 64, 16_384
# Rows and values processed at a time: as float64 they stay in a core's cache.
_CHUNK_ROWS, _CHUNK_VALUES = 32, 2**15


@dataclass(frozen=True)
class GroupMoments:
    """Moments of each feature in each cluster, without missing values."""

    ids_K: NDArray[np.int64]  # ids of clusters with rows, ascending
    rows_K: NDArray[np.int64]
    count_KF: NDArray[np.int64]  # number of values, shape (n_clusters, features), without missing
    mean_KF: NDArray[np.float64]
    m2_KF: NDArray[np.float64]  # Σ (x − mean)²
    min_KF: NDArray[np.float64]  # smallest value; +inf without values
    max_KF: NDArray[np.float64]  # largest value; −inf without values

    @classmethod
    def none(cls, features: int) -> GroupMoments:
        """Moments of no rows."""
        nothing, empty = np.zeros(0, np.int64), np.zeros((0, features))
        return cls(nothing, nothing, empty.astype(np.int64), empty, empty, empty, empty)

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # squares of extreme values are infinite
    def of(cls, ids_B: NDArray[np.integer], x_BF: NDArray[np.generic]) -> GroupMoments:
        """Moments of rows with these cluster ids; values that are not finite are missing."""
        if not len(ids_B):
            return cls.none(x_BF.shape[1])
        x_BF = np.ascontiguousarray(x_BF)  # once, not at every gather
        order_B = _by_id(ids_B)
        ids_K, starts_K, rows_K = np.unique(ids_B[order_B], return_index=True, return_counts=True)
        shape = (len(ids_K), x_BF.shape[1])
        count_KF = np.zeros(shape, np.int64)
        mean_KF, m2_KF, min_KF, max_KF = np.zeros((4, *shape))
        found = (count_KF, mean_KF, m2_KF, min_KF, max_KF)
        large_K = (rows_K >= _LARGE_ROWS) | (rows_K * x_BF.shape[1] >= _LARGE_VALUES)
        for place in np.flatnonzero(large_K).tolist():
            start, rows = int(starts_K[place]), int(rows_K[place])
            one = _of_one(x_BF, order_B[start : start + rows])
            for array, values in zip(found, one, strict=True):
                array[place] = values
        small = np.flatnonzero(~large_K)
        small = small[np.argsort(-rows_K[small], kind="stable")]  # similar sizes together
        some = max(1, _CHUNK_VALUES // max(1, x_BF.shape[1]))
        for first in range(0, len(small), some):
            places = small[first : first + some]
            many = _of_many(x_BF, order_B, starts_K[places], rows_K[places])
            for array, values in zip(found, many, strict=True):
                array[places] = values
        # Σ (x − mean)² of equal values may be rounding error.
        m2_KF[min_KF >= max_KF] = 0.0
        return cls(ids_K.astype(np.int64), rows_K, count_KF, mean_KF, m2_KF, min_KF, max_KF)

    def merge(self, other: GroupMoments) -> GroupMoments:
        """Moments of both sets of rows together (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        one, two = self, other
        if not np.array_equal(self.ids_K, other.ids_K):
            ids_K = np.union1d(self.ids_K, other.ids_K)
            one, two = self._of_clusters(ids_K), other._of_clusters(ids_K)
        count_KF = one.count_KF + two.count_KF
        share_KF = two.count_KF / np.maximum(count_KF, 1)
        delta_KF = two.mean_KF - one.mean_KF
        return GroupMoments(
            ids_K=one.ids_K,
            rows_K=one.rows_K + two.rows_K,
            count_KF=count_KF,
            mean_KF=one.mean_KF + delta_KF * share_KF,
            m2_KF=one.m2_KF + two.m2_KF + np.square(delta_KF) * one.count_KF * share_KF,
            min_KF=np.minimum(one.min_KF, two.min_KF),
            max_KF=np.maximum(one.max_KF, two.max_KF),
        )

    def beside(self, other: GroupMoments) -> GroupMoments:
        """Moments with further features of the same rows appended."""
        names = ("count_KF", "mean_KF", "m2_KF", "min_KF", "max_KF")
        both = {n: np.concatenate([getattr(self, n), getattr(other, n)], axis=1) for n in names}
        return GroupMoments(self.ids_K, self.rows_K, **both)

    def _of_clusters(self, ids_K: NDArray[np.int64]) -> GroupMoments:
        """The same, with added clusters without rows."""
        place_K = np.searchsorted(ids_K, self.ids_K)
        nothing = {"min_KF": np.inf, "max_KF": -np.inf}
        spread: dict[str, NDArray[Any]] = {}
        for name, values in vars(self).items():
            shape = (len(ids_K), *values.shape[1:])
            spread[name] = np.full(shape, nothing.get(name, 0), values.dtype)
            spread[name][place_K] = values
        return GroupMoments(**spread | {"ids_K": ids_K})

    def total(self) -> GroupMoments:
        """All clusters merged into one with id 0."""
        count_F = self.count_KF.sum(axis=0)
        mean_F = (self.count_KF * self.mean_KF).sum(axis=0) / np.maximum(count_F, 1)
        apart_F = (self.count_KF * np.square(self.mean_KF - mean_F)).sum(axis=0)
        return GroupMoments(
            ids_K=np.zeros(1, np.int64),
            rows_K=self.rows_K.sum(keepdims=True),
            count_KF=count_F[None],
            mean_KF=mean_F[None],
            m2_KF=(self.m2_KF.sum(axis=0) + apart_F)[None],
            min_KF=self.min_KF.min(axis=0)[None],
            max_KF=self.max_KF.max(axis=0)[None],
        )


@dataclass(frozen=True)
class Contrast:
    """Difference of clusters from all other rows."""

    # Mean minus that of all other rows; 0 where either side has no values.
    away_KF: NDArray[np.float64]
    spread_F: NDArray[np.float64]  # standard deviation of all rows

    @classmethod
    def of(cls, moments: GroupMoments) -> Contrast:
        """Contrast of every cluster with all others together."""
        if not len(moments.ids_K):
            return cls(moments.mean_KF, np.zeros(moments.mean_KF.shape[1]))
        total = moments.total()
        count_F, mean_F, m2_F = total.count_KF[0], total.mean_KF[0], total.m2_KF[0]
        rest_KF = count_F - moments.count_KF
        # mean − mean of the rest = (mean − mean of all) · n / (n − n_k)
        away_KF = (moments.mean_KF - mean_F) * (count_F / np.maximum(rest_KF, 1))
        away_KF[(rest_KF == 0) | (moments.count_KF == 0)] = 0.0
        return cls(away_KF, np.sqrt(m2_F / np.maximum(count_F, 1)))

    def differences(self) -> NDArray[np.float64]:
        """Differences in standard deviations of all rows; 0 where all have the same value."""
        found = np.zeros_like(self.away_KF)
        where = (self.spread_F > 0) & np.isfinite(self.spread_F)
        return np.divide(self.away_KF, self.spread_F, out=found, where=where)

    def lengths(self, of: slice) -> NDArray[np.float64]:
        """Length of the difference of mean vectors over the root of the summed variances."""
        length_K = np.sqrt(np.square(self.away_KF[:, of]).sum(axis=1))
        spread = float(np.sqrt(np.square(self.spread_F[of]).sum()))
        return length_K / spread if spread > 0 else np.zeros_like(length_K)


@dataclass(frozen=True)
class Points:
    """Values that represent equal shares of the rows of a cell: a cluster and a column."""

    ids_K: NDArray[np.int64]  # cluster ids, ascending
    number_KS: NDArray[np.int64]  # number of points of each cell, shape (n_clusters, columns)
    values: NDArray[np.float64]  # points of all cells, concatenated, ascending in each

    @classmethod
    def none(cls, columns: int) -> Points:
        """Points of no rows."""
        return cls(np.zeros(0, np.int64), np.zeros((0, columns), np.int64), np.zeros(0))

    @classmethod
    def of(cls, ids_B: NDArray[np.integer], x_BS: NDArray[np.generic], most: int) -> Points:
        """At most ``most`` points of each cell; all values where there are no more."""
        ids_K, place_B = np.unique(ids_B, return_inverse=True)
        columns = x_BS.shape[1]
        cell_BS = place_B[:, None] * columns + np.arange(columns)
        finite_BS = np.isfinite(x_BS)
        value, cell = x_BS[finite_BS].astype(np.float64), cell_BS[finite_BS]
        value = value[np.lexsort((value, cell))]
        number = np.bincount(cell, minlength=len(ids_K) * columns)
        kept = np.minimum(number, most)
        kept_KS = kept.reshape(len(ids_K), columns)
        return cls(ids_K.astype(np.int64), kept_KS, value[_even_places(number, kept)])

    @classmethod
    def merged(
        cls, pieces: Sequence[tuple[Points, GroupMoments]], columns: Sequence[int], most: int
    ) -> Points:
        """Points of all pieces' rows together, at most ``most`` in each cell.

        ``pieces`` are points with the moments of the same rows; ``columns``, the features of the
        moments that the points are of.
        """
        ids_K = np.unique(np.concatenate([moments.ids_K for _, moments in pieces]))
        cells: list[NDArray[np.int64]] = []
        weights: list[NDArray[np.float64]] = []
        for points, moments in pieces:
            place = np.searchsorted(ids_K, points.ids_K)
            cell_KS = place[:, None] * len(columns) + np.arange(len(columns))
            rows_KS = moments.count_KF[np.searchsorted(moments.ids_K, points.ids_K)][:, columns]
            number = points.number_KS.ravel()
            cells.append(np.repeat(cell_KS.ravel(), number))
            weights.append(np.repeat(rows_KS.ravel() / np.maximum(number, 1), number))
        value = np.concatenate([points.values for points, _ in pieces])
        cell, weight = np.concatenate(cells), np.concatenate(weights)
        order = np.lexsort((value, cell))
        value, cell, weight = value[order], cell[order], weight[order]
        size = len(ids_K) * len(columns)
        number = np.bincount(cell, minlength=size)
        heavy = np.bincount(cell[weight > 1], minlength=size)
        whole = (number <= most) & (heavy == 0)  # every row has its own point
        kept = np.where(whole | (number == 0), number, most)
        chosen = _by_weight(weight, number, kept, whole)
        return cls(ids_K, kept.reshape(len(ids_K), len(columns)), value[chosen])

    def quantiles(
        self, shares: Sequence[float], count_KS: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Quantiles of each cell, shape (n_clusters, columns, shares); NaN without points.

        ``count_KS`` is the number of values of each cell. Interpolated like numpy's where every row
        has its own point; else points are in the middle of the shares that they represent.
        """
        number = self.number_KS.ravel()
        start = np.cumsum(number) - number
        found = np.full((len(number), len(shares)), np.nan)
        some = number > 0
        exact = number == count_KS.ravel()
        for place, share in enumerate(shares):
            rank = np.where(exact, (number - 1) * share, number * share - 0.5)
            rank = np.clip(rank, 0, np.maximum(number - 1, 0))[some]
            below = np.floor(rank).astype(np.int64)
            above = np.minimum(below + 1, number[some] - 1)
            low, high = self.values[start[some] + below], self.values[start[some] + above]
            found[some, place] = low + (high - low) * (rank - below)
        return found.reshape(*self.number_KS.shape, len(shares))


def _by_id(ids_B: NDArray[np.integer]) -> NDArray[np.int64]:
    """Order of rows by cluster id; numpy sorts int16 by radix."""
    short = np.iinfo(np.int16)
    if short.min <= ids_B.min() and ids_B.max() <= short.max:
        ids_B = ids_B.astype(np.int16)
    return np.argsort(ids_B, kind="stable")


def _of_one(x_BF: NDArray[np.generic], rows_B: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Count, mean, Σ (x − mean)², minimum and maximum of the rows ``rows_B`` of one cluster.

    Deviations are from its first values, so that large ones keep their digits.
    """
    width = x_BF.shape[1]
    pivot_F = x_BF[rows_B[0]].astype(np.float64)
    if len(missing := np.flatnonzero(~np.isfinite(pivot_F))):
        value_BM = x_BF[np.ix_(rows_B, missing)].astype(np.float64)
        first_M = np.isfinite(value_BM).argmax(axis=0)  # 0 where there is none
        pivot_F[missing] = np.nan_to_num(
            value_BM[first_M, np.arange(len(missing))], nan=0.0, posinf=0.0, neginf=0.0
        )
    sum_F, square_F, count_F = np.zeros(width), np.zeros(width), np.zeros(width, np.int64)
    some = min(len(rows_B), max(_CHUNK_ROWS, _CHUNK_VALUES // max(1, width)))
    least_F, most_F = np.full(width, np.inf), np.full(width, -np.inf)
    # Reused buffers: new memory costs as much as the sums.
    values, away = np.empty((some, width), x_BF.dtype), np.empty((some, width))
    for start in range(0, len(rows_B), some):
        chosen_B = rows_B[start : start + some]
        number = len(chosen_B)
        value_BF, away_BF = values[:number], away[:number]
        # mode="raise" would make another copy.
        np.take(x_BF, chosen_B, axis=0, out=value_BF, mode="clip")
        np.subtract(value_BF, pivot_F, out=away_BF)
        more_F = away_BF.sum(axis=0)  # not by BLAS, whose order of additions varies
        low_F, high_F, number_F = value_BF.min(axis=0), value_BF.max(axis=0), number
        if not np.isfinite(more_F).all():
            finite_BF = np.isfinite(value_BF)
            number_F = finite_BF.sum(axis=0)
            away_BF[~finite_BF] = 0.0
            more_F = away_BF.sum(axis=0)
            low_F = np.where(finite_BF, value_BF, np.inf).min(axis=0)
            high_F = np.where(finite_BF, value_BF, -np.inf).max(axis=0)
        count_F += number_F
        sum_F += more_F
        square_F += np.square(away_BF, out=away_BF).sum(axis=0)
        np.minimum(least_F, low_F, out=least_F)
        np.maximum(most_F, high_F, out=most_F)
    away_F = sum_F / np.maximum(count_F, 1)
    mean_F = np.where(count_F > 0, pivot_F + away_F, 0.0)
    return count_F, mean_F, np.maximum(square_F - sum_F * away_F, 0.0), least_F, most_F


def _of_many(
    x_BF: NDArray[np.generic],
    order_B: NDArray[np.int64],
    starts_K: NDArray[np.int64],
    rows_K: NDArray[np.int64],
) -> tuple[NDArray[Any], ...]:
    """The same for small clusters: the first row of each, then the second of each, and so on.

    ``order_B`` has the rows of these clusters, one cluster after the other, and ``starts_K`` where
    each begins. ``rows_K`` descends, so that clusters with rows left come first.
    """
    with_row = [int(np.searchsorted(-rows_K, -row)) for row in range(int(rows_K[0]))]
    shape = (len(rows_K), x_BF.shape[1])
    sum_KF, m2_KF, count_KF = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    least_KF, most_KF = np.full(shape, np.inf), np.full(shape, -np.inf)
    for row, number in enumerate(with_row):
        value_KF = x_BF[order_B[starts_K[:number] + row]].astype(np.float64)
        finite_KF = np.isfinite(value_KF)
        if finite_KF.all():
            count_KF[:number] += 1
            low_KF = high_KF = value_KF
        else:
            count_KF[:number] += finite_KF
            low_KF, high_KF = (np.where(finite_KF, value_KF, end) for end in (np.inf, -np.inf))
            value_KF[~finite_KF] = 0.0
        sum_KF[:number] += value_KF
        np.minimum(least_KF[:number], low_KF, out=least_KF[:number])
        np.maximum(most_KF[:number], high_KF, out=most_KF[:number])
    mean_KF = sum_KF / np.maximum(count_KF, 1)
    for row, number in enumerate(with_row):
        value_KF = x_BF[order_B[starts_K[:number] + row]].astype(np.float64)
        value_KF -= mean_KF[:number]
        value_KF[~np.isfinite(value_KF)] = 0.0
        m2_KF[:number] += np.square(value_KF, out=value_KF)
    return count_KF, mean_KF, m2_KF, least_KF, most_KF


def _even_places(number: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of ``kept`` values of each cell among its ``number``, evenly by rank."""
    start = np.repeat(np.cumsum(number) - number, kept)
    turn = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    step = np.repeat(number / np.maximum(kept, 1), kept)
    places: NDArray[np.int64] = start + np.floor((turn + 0.5) * step).astype(np.int64)
    return places


def _by_weight(
    weight: NDArray[np.float64],
    number: NDArray[np.int64],
    kept: NDArray[np.int64],
    whole: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The same for weighted points, of which a heavy one may represent several shares."""
    total = np.append(0.0, np.cumsum(weight))
    end = np.cumsum(number)
    first = end - number
    base, held = total[first], total[end] - total[first]
    turn = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    target = np.repeat(base, kept) + (turn + 0.5) * np.repeat(held / np.maximum(kept, 1), kept)
    place = np.searchsorted(total[1:], target)
    place = np.clip(place, np.repeat(first, kept), np.repeat(np.maximum(end - 1, 0), kept))
    return np.where(np.repeat(whole, kept), np.repeat(first, kept) + turn, place)


def first_of_each(
    ids_B: NDArray[np.integer], most: int, *by: NDArray[np.generic]
) -> NDArray[np.int64]:
    """The first ``most`` rows of each cluster, ordered by cluster, then by ``by``, then by row.

    Of ``by``, the most significant comes first.
    """
    order_B = np.lexsort((*reversed(by), ids_B))
    sorted_B = ids_B[order_B]
    first_B = np.searchsorted(sorted_B, sorted_B)
    chosen: NDArray[np.int64] = order_B[np.arange(len(order_B)) - first_B < most]
    return chosen


def ranks(difference_KF: NDArray[np.float64]) -> NDArray[np.int32]:
    """Rank of each feature in its cluster by absolute difference, from 1; ties keep their order."""
    order_KF = np.argsort(-np.abs(difference_KF), axis=1, kind="stable")
    return (np.argsort(order_KF, axis=1) + 1).astype(np.int32)
