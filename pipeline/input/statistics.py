"""What the sample says of the rows: moments of every feature, and how often categories' values are.

Mergeable, and bounded, however many different values there are. A category with no more than
``SLICE_VALUES`` in any slice, and ``MERGED_VALUES`` in all, is counted exactly. Else a slice
reports its most frequent ones, and where slices are put together rare ones are dropped by Misra and
Gries (Agarwal et al. 2012, "Mergeable summaries"): what a value loses there is less than
1 / ``MERGED_VALUES`` of the rows, a thirtieth of the share that one with a place of its own has.
How many different values there are is then an estimate, by the smallest of their hashes (Bar-Yossef
et al. 2002), good to about 3 %.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from pipeline.schema import decoded

log = logging.getLogger(__name__)

# Values of a category that a slice reports, and that are kept where slices are put together: about
# 5 MB a column there.
SLICE_VALUES, MERGED_VALUES = 1024, 65_536
_HASHES = 1024  # the estimate's relative error is about 1 / sqrt of it
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
        hashes: Of each category: the smallest hashes of its values, ascending.
        cut: Categories of which values were dropped.
    """

    moments: Moments
    values: pa.Table
    hashes: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()

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
        stored = {} if block.stored is None else dict(_columns(block.stored))
        counted = {name: _counted(name, column) for name, column in stored.items()}
        hashes = {
            name: _smallest(code_hashes(table["code"].to_numpy()))
            for name, table in counted.items()
        }
        values = pa.concat_tables([VALUE_COUNTS.empty_table(), *counted.values()])
        return cls(Moments.of(x_BF), values, hashes)

    @classmethod
    def merged(cls, some: Iterable[RowStatistics]) -> RowStatistics:
        """Statistics of all the rows together; at least one of them is given."""
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
        """The same with the most frequent values of each category alone, as they are."""
        return self._cut(most, lambda of: of.slice(0, most))

    def merged_with(self, part: RowStatistics, most: int = MERGED_VALUES) -> RowStatistics:
        """Statistics of both, no larger for it; see above. The order of parts makes a difference.

        All counts become smaller by that of the first value that has no place.
        """

        def lessened(of: pa.Table) -> pa.Table:
            less = pc.subtract(of["rows"], of["rows"][most])
            of = of.set_column(of.schema.get_field_index("rows"), VALUE_COUNTS.field("rows"), less)
            return of.filter(pc.greater(less, 0))

        return RowStatistics.merged([self, part])._cut(most, lessened)

    def different(self, name: str) -> int:
        """Different values of a category; about, where some were dropped."""
        kept = pc.sum(pc.equal(self.values["column"], name)).as_py() or 0
        if name not in self.cut or len(self.hashes[name]) < _HASHES:
            return int(kept)
        share = float(self.hashes[name][-1]) / 2**64  # of all hashes, as far as these reach
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


def _columns(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    yield from zip(table.column_names, table.columns, strict=True)


def _smallest(*hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.unique(np.concatenate(hashes))[:_HASHES]


def _counted(name: str, column: pa.ChunkedArray) -> pa.Table:
    """How many rows have each value, nulls left out."""
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
    different, about = statistics.different(name), "about " * (name in statistics.cut)
    if total >= _TELLING_ROWS and different > _MOST_DIFFERENT * total:
        raise InputError(
            f"column {name}: {about}{different:,} different values in {total:,} sampled rows; a "
            "category has values that many rows share, and this one names rows. Take it out of "
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
