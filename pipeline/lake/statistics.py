"""What the sample says of the rows: moments of every feature, and how often categories' values are.

Mergeable, and bounded: of each category, the most frequent values of a slice. Where a slice has
more different values than are kept, rare ones are counted too low or not at all; those are values
that end in the bucket of all others anyway.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import FeatureColumn
from pipeline.config import Config, Feature
from pipeline.errors import InputError
from pipeline.lake.columns import category_codes_of_values
from pipeline.lake.reading import RowBlock
from pipeline.model.channels import ColumnSpec, TypedScaler, on_circles
from pipeline.model.scaling import Moments, Scaler

log = logging.getLogger(__name__)

# Values of a category that a slice reports.
_KEPT_VALUES = 1024
# A value that fewer rows of the sample have than this, or than this share, is rare.
_LEAST_ROWS = 2
_LEAST_SHARE = 0.0005
# A column that has a new value in more than this share of its rows names rows; among fewer rows
# than this nobody can tell.
_MOST_DIFFERENT = 0.5
_TELLING_ROWS = 100

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
    """Mergeable statistics of rows.

    Attributes:
        moments: Of the raw features; then of the places of timestamps on their circles.
        values: Of the categories, of ``VALUE_COUNTS``.
        cut: Of each category: values of slices that were not kept, summed.
    """

    moments: Moments
    values: pa.Table
    cut: Mapping[str, int] = field(default_factory=dict)

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
            with np.errstate(invalid="ignore"):  # of infinite values, which are missing
                places = on_circles(np.asarray(x_BF[:, first_T], np.float64))
            x_BF = np.hstack([x_BF, places])
        tables = [VALUE_COUNTS.empty_table()]
        if block.stored is not None:
            names = block.stored.column_names
            tables += [_counted(name, block.stored[name]) for name in names]
        return cls(Moments.of(x_BF), pa.concat_tables(tables))

    @classmethod
    def merged(cls, some: Iterable[RowStatistics]) -> RowStatistics:
        """Statistics of all the rows together; at least one of them is given."""
        first, *others = some
        moments, tables, cut = first.moments, [first.values], Counter(first.cut)
        for other in others:
            moments = moments.merge(other.moments)
            tables.append(other.values)
            cut.update(other.cut)
        added = pa.concat_tables(tables).group_by(["column", "value", "code"])
        values = added.aggregate([("rows", "sum")]).rename_columns(VALUE_COUNTS.names)
        return cls(moments, values, cut)

    def bounded(self) -> RowStatistics:
        """The same with the most frequent values of each category alone."""
        tables, cut = [VALUE_COUNTS.empty_table()], Counter(self.cut)
        for name in pc.unique(self.values["column"]).to_pylist():
            of = _by_rows(self.values.filter(pc.equal(self.values["column"], name)))
            tables.append(of.slice(0, _KEPT_VALUES))
            cut[name] += len(of) - len(tables[-1])
        return RowStatistics(self.moments, pa.concat_tables(tables), cut)


def _counted(name: str, column: pa.ChunkedArray) -> pa.Table:
    """How many rows have each value, nulls left out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    counts = pc.value_counts(column.combine_chunks())
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
    """The most frequent first; of equals, by the value, so that the order is always the same."""
    return values.sort_by([("rows", "descending"), ("value", "ascending")])


def fit_scaler(
    config: Config, features: tuple[FeatureColumn, ...], statistics: RowStatistics
) -> Scaler:
    """The scaler of the rows that statistics are of.

    Raises:
        InputError: A category is none, or no typed column varies.
    """
    moments = statistics.moments
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
    """What the scaler is told of a column that so many rows have a value of."""
    weight = feature.weight
    if column.type == "category":
        told = _told_apart(column.name, feature, statistics, rows)
        return ColumnSpec(
            "category",
            weight=weight,
            values=tuple(told["value"].to_pylist()),
            codes=tuple(told["code"].to_pylist()),
            rows=tuple(told["rows"].to_pylist()),
        )
    kind = column.type or ("vector" if column.vector else "number")
    return ColumnSpec(kind, width=column.width, weight=weight, masks=column.type is not None)


def _told_apart(name: str, feature: Feature, statistics: RowStatistics, total: int) -> pa.Table:
    """The values of a category that have a place of their own, the most frequent first."""
    values = statistics.values.filter(pc.equal(statistics.values["column"], name))
    different = len(values) + statistics.cut.get(name, 0)
    if total >= _TELLING_ROWS and different > _MOST_DIFFERENT * total:
        raise InputError(
            f"column {name}: {different:,} different values in {total:,} sampled rows; a category "
            "has values that many rows share, and this one names rows. Take it out of "
            "source.features; it may be one of source.keys"
        )
    least = max(_LEAST_ROWS, _LEAST_SHARE * total)
    told = _by_rows(values.filter(pc.greater_equal(values["rows"], least)))
    told = told.slice(0, feature.values)
    known = int(told["rows"].to_numpy().sum())
    if known < total / 2:
        log.warning(
            "column %s: %d values are told apart, and %.0f %% of the rows have another one; raise "
            "its values in source.features, or group them",
            *(name, len(told), 100 * (1 - known / max(1, total))),
        )
    return told


def _firsts(features: tuple[FeatureColumn, ...]) -> list[int]:
    """Where each column begins in a raw row."""
    return list(itertools.accumulate((c.width for c in features[:-1]), initial=0))
