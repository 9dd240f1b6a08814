"""Statistics of the sample: moments of every feature, and counts of the values of categories.

They are mergeable, and bounded for any number of distinct values. A category with at most
``SLICE_VALUES`` values in each slice and ``MERGED_VALUES`` in all is counted exactly. Otherwise a
slice reports its most frequent values, and merging drops rare ones by Misra and Gries (Agarwal et
al. 2012, "Mergeable summaries"): a count is then too low by less than 1 / ``MERGED_VALUES`` of the
rows, a thirtieth of the share that a value needs to be kept apart. The number of distinct values is
then estimated from the smallest of their hashes (Bar-Yossef et al. 2002), to about 3 %.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.inputs import FeatureColumn
from pipeline.config import Config, Feature
from pipeline.errors import InputError
from pipeline.input.columns import category_codes_of_values, code_hashes
from pipeline.input.reading import RowBlock
from pipeline.model.channels import ColumnSpec, TypedScaler, on_circles
from pipeline.model.scaling import Moments, Scaler
from pipeline.schema import decoded, with_column

log = logging.getLogger(__name__)

# Maximum number of a category's values that a slice reports, and that merging keeps: about 5 MB
# per column.
SLICE_VALUES, MERGED_VALUES = 1024, 65_536
_HASHES = 1024  # the relative error of the estimate is about 1 / sqrt(_HASHES)
# Values with fewer rows of the sample than this number or share are rare.
_LEAST_ROWS = 2
_LEAST_SHARE = 0.0005
# A column with more distinct values than this share of its rows identifies rows; with fewer rows
# than this, it is too early to say.
_MOST_DIFFERENT = 0.5
_TELLING_ROWS = 100
# Relative rounding of a sum of squares that is still precise enough for a scale.
_PRECISE = 1e-6

VALUE_COUNTS = pa.schema(
    [
        ("column", pa.string()),
        ("value", pa.string()),
        ("code", pa.float64()),  # in raw rows
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class RowStatistics:
    """Mergeable statistics of rows."""

    # Moments of the raw features, then of the positions of timestamps on their circles.
    moments: Moments
    values: pa.Table  # counts of the categories' values, of ``VALUE_COUNTS``
    # Smallest hashes of each category's values, ascending.
    hashes: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()  # categories with dropped values

    @classmethod
    def of(cls, block: RowBlock, features: tuple[FeatureColumn, ...]) -> RowStatistics:
        """Statistics of a block of rows."""
        x_BF = block.x_BF
        first_T = [
            first
            for first, column in zip(_firsts(features), features, strict=True)
            if column.type == "timestamp"
        ]
        if first_T:
            with np.errstate(invalid="ignore"):  # infinite values are missing values
                places = on_circles(np.asarray(x_BF[:, first_T], np.float64))
            x_BF = np.hstack([x_BF, places])
        stored = pa.table({}) if block.stored is None else block.stored
        counted = {name: _counted(name, stored[name]) for name in stored.column_names}
        hashes = {
            name: _smallest(code_hashes(table["code"].to_numpy()))
            for name, table in counted.items()
        }
        values = pa.concat_tables([VALUE_COUNTS.empty_table(), *counted.values()])
        return cls(Moments.of(x_BF), values, hashes)

    @classmethod
    def merged(cls, some: Iterable[RowStatistics]) -> RowStatistics:
        """Statistics of all rows together, from one or more."""
        first, *others = some
        moments, tables, cut = first.moments, [first.values], first.cut
        hashes = dict(first.hashes)
        for other in others:
            moments = moments.merge(other.moments)
            tables.append(other.values)
            cut |= other.cut
            for name, found in other.hashes.items():
                hashes[name] = _smallest(found, *([hashes[name]] if name in hashes else []))
        added = pa.concat_tables(tables).group_by(["column", "value", "code"])
        values = added.aggregate([("rows", "sum")]).rename_columns(VALUE_COUNTS.names)
        return cls(moments, values, hashes, cut)

    def bounded(self, most: int = SLICE_VALUES) -> RowStatistics:
        """The same with only the most frequent values of each category."""
        return self._cut(most, lambda of: of.slice(0, most))

    def merged_with(self, part: RowStatistics, most: int = MERGED_VALUES) -> RowStatistics:
        """Bounded statistics of both; the result depends on the order of parts.

        The count of the first value that is dropped is subtracted from all others.
        """

        def lessened(of: pa.Table) -> pa.Table:
            less = pc.subtract(of["rows"], of["rows"][most])
            return with_column(of, "rows", less).filter(pc.greater(less, 0))

        return RowStatistics.merged([self, part])._cut(most, lessened)

    def different(self, name: str) -> int:
        """Number of distinct values of a category; an estimate where values were dropped."""
        kept = pc.sum(pc.equal(self.values["column"], name)).as_py() or 0
        if name not in self.cut or len(self.hashes[name]) < _HASHES:
            return int(kept)
        share = float(self.hashes[name][-1]) / 2**64  # of all hashes, up to the largest one here
        return max(int(kept), round((_HASHES - 1) / share))

    def _cut(self, most: int, shorten: Callable[[pa.Table], pa.Table]) -> RowStatistics:
        counts = pc.value_counts(self.values["column"].combine_chunks()).to_pylist()
        if all(count["counts"] <= most for count in counts):
            return self
        tables, cut = [VALUE_COUNTS.empty_table()], set(self.cut)
        for name, rows in sorted((count["values"], count["counts"]) for count in counts):
            of = self.values.filter(pc.equal(self.values["column"], name))
            tables.append(of if rows <= most else shorten(_by_rows(of)))
            cut |= {name} if rows > most else set()
        return replace(self, values=pa.concat_tables(tables), cut=frozenset(cut))


def _smallest(*hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(np.concatenate(hashes))[:_HASHES]


def _counted(name: str, column: pa.ChunkedArray) -> pa.Table:
    """Number of rows with each value, without nulls."""
    counts = pc.value_counts(decoded(column).combine_chunks())
    values, rows = counts.field("values"), counts.field("counts")
    there = values.is_valid()
    values, rows = values.filter(there), rows.filter(there)
    columns = {
        "column": pa.repeat(pa.scalar(name), len(values)),
        "value": values.cast(pa.string()),
        "code": category_codes_of_values(values),
        "rows": rows,
    }
    return pa.table(columns, schema=VALUE_COUNTS)


def _by_rows(values: pa.Table) -> pa.Table:
    """Sort by number of rows, descending; ties by value."""
    return values.sort_by([("rows", "descending"), ("value", "ascending")])


def fit_scaler(
    config: Config, features: tuple[FeatureColumn, ...], statistics: RowStatistics
) -> Scaler:
    """Fit the scaler to statistics of the rows.

    Raises:
        InputError: A category identifies rows, no typed column varies, or values of a column are
            too large or too close to each other to be scaled.
    """
    moments = statistics.moments
    for first, column in zip(_firsts(features), features, strict=True):
        if column.type in (None, "number", "vector"):
            _check_range(config, column.name, moments, slice(first, first + column.width))
    if not any(column.type for column in features):
        return Scaler.fit(config.source.scaling, moments, [c.width for c in features])
    columns = [
        _spec(
            column,
            config.source.feature(column.name) or Feature(column=column.name),
            statistics,
            int(moments.count_F[first]),
        )
        for first, column in zip(_firsts(features), features, strict=True)
    ]
    try:
        return TypedScaler.fit_columns(columns, moments)
    except ValueError as error:
        raise InputError(
            f"source.features: {error} in the sample; there is nothing to cluster by"
        ) from None


def _spec(
    column: FeatureColumn, feature: Feature, statistics: RowStatistics, rows: int
) -> ColumnSpec:
    """The scaler's specification of a column with a value in ``rows`` rows."""
    weight = feature.weight
    if column.type == "category":
        kept = _kept_values(column.name, feature, statistics, rows)
        return ColumnSpec(
            "category",
            weight=weight,
            values=tuple(kept["value"].to_pylist()),
            codes=tuple(kept["code"].to_pylist()),
            rows=tuple(kept["rows"].to_pylist()),
        )
    kind = column.type or ("vector" if column.vector else "number")
    return ColumnSpec(kind, width=column.width, weight=weight, masks=column.type is not None)


def _check_range(config: Config, name: str, moments: Moments, some: slice) -> None:
    """Check that float64 holds what scaling computes of a column."""
    varies_F = moments.min_F[some] < moments.max_F[some]
    m2_F = np.where(varies_F, moments.m2_F[some], 0.0)
    if not moments.count_F[some].any():
        return
    least, most = float(moments.min_F[some].min()), float(moments.max_F[some].max())
    scaling = config.source.scaling
    too_large = {
        "standard": not np.isfinite([m2_F.sum(), moments.mean_F[some].sum()]).all(),
        "minmax": not np.isfinite(most - least),
        "none": max(-least, most) > float(np.finfo(np.float32).max),
        "unit_norm": False,
    }[scaling]
    tiny = float(np.finfo(np.float64).tiny)  # squares below lose their digits
    too_close = scaling == "standard" and varies_F.any() and m2_F.max() < tiny / _PRECISE
    if scaling == "minmax":
        too_close = 0 < most - least < tiny
    if too_large or too_close:
        what = "too large" if too_large else "too close to each other"
        raise InputError(
            f"column {name}: values from {least:g} to {most:g} in the sample are {what} for "
            f"source.scaling={scaling}; write the column in another unit, or take it out of "
            "source.features"
        )


def _kept_values(name: str, feature: Feature, statistics: RowStatistics, total: int) -> pa.Table:
    """The values of a category that are kept apart, the most frequent first."""
    values = statistics.values.filter(pc.equal(statistics.values["column"], name))
    different, about = statistics.different(name), "about " * (name in statistics.cut)
    if total >= _TELLING_ROWS and different > _MOST_DIFFERENT * total:
        raise InputError(
            f"column {name}: {about}{different:,} different values in {total:,} sampled rows; a "
            "category has values that many rows share, but this one identifies rows. Take it out "
            "of source.features; it may be a key, for source.keys"
        )
    least = max(_LEAST_ROWS, _LEAST_SHARE * total)
    kept = _by_rows(values.filter(pc.greater_equal(values["rows"], least)))
    kept = kept.slice(0, feature.values)
    known = int(kept["rows"].to_numpy().sum())
    if known < total / 2:
        log.warning(
            "column %s: %d values are kept apart, and %.0f %% of the rows have another one; raise "
            "its values in source.features, or group them",
            *(name, len(kept), 100 * (1 - known / max(1, total))),
        )
    return kept


def _firsts(features: tuple[FeatureColumn, ...]) -> list[int]:
    """Position of each column's first value in a raw row."""
    return list(itertools.accumulate((c.width for c in features[:-1]), initial=0))
