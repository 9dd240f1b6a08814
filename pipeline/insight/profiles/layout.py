"""The layout of profiles: which columns they hold, and how much of each, within fixed bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.explanations import ProfiledColumn
from pipeline.artifacts.inputs import FeatureColumn
from pipeline.artifacts.records import Record
from pipeline.schema import EXEMPLAR_KINDS, exemplar_key

VERSION = 1  # of the files' content: with another one, every slice is labelled again

# Clusters × features in a profile: about 20 bytes each as stored, so that one takes 10 MB at most,
# beside a slice of 64 MiB.
MOST_CELLS = 2**19
# Quantile points of all clusters and columns: they are sorted whenever profiles are merged.
_MOST_POINTS = 2**20
_POINTS, _FEWEST_POINTS = 64, 8  # of one cluster and column
# Categories: clusters × values of all columns, and values of one.
_MOST_VALUES, _VALUES = 2**22, 256
# Exemplars of all clusters, and numbers in their features.
_MOST_EXEMPLARS, _MOST_EXEMPLAR_VALUES = 2**20, 2**19

# Names that no key column has.
CATEGORY_SCHEMA = pa.schema(
    [
        pa.field("dec_cluster_id", pa.int32()),
        pa.field("dec_column", pa.int32()),  # index in Layout.categories
        pa.field("dec_value", pa.string()),  # null: all other values together
        pa.field("dec_rows", pa.int64()),
    ]
)
EXEMPLAR_FIELDS = (
    pa.field("dec_cluster_id", pa.int32()),
    pa.field("dec_kind", pa.int8()),  # index in EXEMPLAR_KINDS
    pa.field("dec_order", pa.float32()),  # the smallest comes first
    pa.field("dec_shard", pa.string()),  # ties: the first by shard and row number
    pa.field("dec_row_number", pa.int64()),
    pa.field("dec_cluster_id_2", pa.int32()),
    pa.field("dec_confidence", pa.float32()),
    pa.field("dec_confidence_2", pa.float32()),
    pa.field("dec_distance", pa.float32()),
    pa.field("dec_features", pa.list_(pa.float32())),
)


def profiled_exemplar_schema(keys: pa.Schema) -> pa.Schema:
    """Schema of a profile's exemplars; the key columns last, named as in cluster_exemplars."""
    # Rows of the file's other sections have no keys.
    fields = [field.with_name(exemplar_key(field.name)).with_nullable(True) for field in keys]
    return pa.schema([*EXEMPLAR_FIELDS, *fields])


class Layout(Record):
    """Content and order of a profile."""

    # All profiled columns: the features in their order, then ``explain.columns``.
    columns: tuple[ProfiledColumn, ...]
    kept: tuple[int, ...]  # indices in ``columns`` of those within the bounds
    points: int  # quantile points per cluster and column in the profile of a part; 0: no quantiles
    values: int  # values per category column; rarer ones are counted together
    exemplars: int
    features: int  # exemplars per cluster and kind that keep their features: the first ones
    left_out: tuple[str, ...] = ()
    version: int = VERSION

    @classmethod
    def of(
        cls,
        clusters: int,
        features: Sequence[FeatureColumn],
        explained: Sequence[ProfiledColumn],
        exemplars: int,
        dtype: str = "number",
    ) -> Layout:
        """Fit a layout into the bounds; the same for every slice of a table.

        ``explained`` are further columns, from ``pipeline.input.profiled_columns``.
        """
        columns = [*(_profiled_feature(column, dtype) for column in features), *explained]
        room, left_out = MOST_CELLS // max(1, clusters), []
        by_kind = {
            kind: [n for n, column in enumerate(columns) if column.kind == kind]
            for kind in ("category", "number", "vector")
        }
        kept = by_kind["category"]
        for place in (*by_kind["number"], *by_kind["vector"]):
            if columns[place].width <= room:
                kept.append(place)
                room -= columns[place].width
        kept_names = {columns[n].name for n in kept}
        if lost := [column.name for column in columns if column.name not in kept_names]:
            named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            left_out.append(f"profiles of {named}: too wide for {clusters:,} clusters")
        scalars = sum(n in kept for n in by_kind["number"])
        points = min(_POINTS, _MOST_POINTS // max(1, scalars * clusters))
        if scalars and points < _FEWEST_POINTS:
            points = 0
            left_out.append(f"quantiles of {scalars:,} columns in {clusters:,} clusters")
        categories = sum(column.kind == "category" for column in columns)
        values = max(8, min(_VALUES, _MOST_VALUES // max(1, categories * clusters)))
        groups = len(EXEMPLAR_KINDS) * clusters
        fewer = min(exemplars, max(1, _MOST_EXEMPLARS // max(1, groups)))
        if fewer < exemplars:
            left_out.append(
                f"more than {fewer} exemplars of each kind in each of {clusters:,} clusters"
            )
        width = sum(column.width for column in features)
        with_features = min(fewer, _MOST_EXEMPLAR_VALUES // max(1, groups * width))
        if with_features < fewer:
            but = f" except the first {with_features} of each kind" if with_features else ""
            left_out.append(f"features of exemplars{but}")
        return cls(
            columns=tuple(columns),
            kept=tuple(sorted(kept)),
            points=points,
            values=values,
            exemplars=fewer,
            features=with_features,
            left_out=tuple(left_out),
        )

    def _of_kind(self, *kinds: str) -> list[ProfiledColumn]:
        return [self.columns[n] for n in self.kept if self.columns[n].kind in kinds]

    @property
    def categories(self) -> list[ProfiledColumn]:
        """Category columns that are kept."""
        return self._of_kind("category")

    @property
    def measured(self) -> list[ProfiledColumn]:
        """Columns with moments, in the order of the moments' features."""
        return self._of_kind("number", "vector")

    @property
    def extra(self) -> list[ProfiledColumn]:
        """Measured columns that rows are not clustered by: the last ones."""
        return [column for column in self.measured if not column.clustered]

    @property
    def starts(self) -> list[int]:
        """First index of each measured column among the moments' features, then their number."""
        return [int(start) for start in np.cumsum([0, *(c.width for c in self.measured)])]

    @property
    def scalars(self) -> list[int]:
        """Indices of the number columns, which quantiles are kept of, in the moments' features."""
        places = zip(self.starts, self.measured, strict=False)
        return [start for start, column in places if column.kind == "number"]

    def features_kept(self) -> slice | NDArray[np.int64]:
        """Indices of the values of a raw row that have moments."""
        clustered = [c for c in self.columns if c.clustered and c.kind != "category"]
        starts = np.cumsum([0, *(column.width for column in clustered)])
        kept = [n for n in self.kept if self.columns[n] in clustered]
        if len(kept) == len(clustered):
            return slice(None)
        places = [np.arange(starts[n], starts[n + 1]) for n in kept]
        return np.concatenate([np.zeros(0, np.int64), *places])


def _profiled_feature(column: FeatureColumn, dtype: str) -> ProfiledColumn:
    """A feature as in raw rows; a feature stored as codes is profiled by its original values."""
    kind: Literal["number", "vector", "code"] = "vector" if column.vector else "number"
    if column.type in ("category", "boolean"):
        kind = "code"
    return ProfiledColumn(
        name=column.name,
        kind=kind,
        type="timestamp[s]" if column.type == "timestamp" else dtype,
        clustered=True,
        width=column.width,
    )
