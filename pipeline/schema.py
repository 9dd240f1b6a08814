"""Names and types of the published columns, which other jobs rely on."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Key of a row where the config names none: the shard's path below the source, and the row's
# position in the shard.
SHARD_KEY_COLUMNS = ("shard", "row_number")
SHARD_KEY_FIELDS = (pa.field("shard", pa.string()), pa.field("row_number", pa.int64()))

# A dictionary stores a value that all rows of a file share only once.
_CONSTANT = pa.dictionary(pa.int32(), pa.string())

ASSIGNMENT_FIELDS = (
    pa.field("cluster_id", pa.int32(), nullable=False),  # -1: outlier
    pa.field("confidence", pa.float32(), nullable=False),  # soft assignment q of that cluster
    pa.field("cluster_id_2", pa.int32(), nullable=False),  # second nearest cluster
    pa.field("confidence_2", pa.float32(), nullable=False),
    pa.field("distance", pa.float32(), nullable=False),  # to the centroid, ‖z − μ‖
    pa.field("is_outlier", pa.bool_(), nullable=False),
    pa.field("model_id", _CONSTANT, nullable=False),
    # The run that labelled the row, and its ds. Rows of unchanged shards keep those of the night
    # that labelled them; only the snapshot tells which rows a ds consists of.
    pa.field("run_id", _CONSTANT, nullable=False),
    pa.field("ds", _CONSTANT, nullable=False),
)

RESERVED_COLUMNS = tuple(field.name for field in ASSIGNMENT_FIELDS)

# The ds of a run without a logical date.
UNDATED = "undated"


def assignment_schema(carried: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Schema of the assignments table: the keys, unchanged, then the columns of DEC.

    ``carried`` has a field for each key, and possibly more. Without ``keys``, shard name and row
    number are the keys.
    """
    key_fields = [carried.field(name) for name in keys] or SHARD_KEY_FIELDS
    return pa.schema([*key_fields, *ASSIGNMENT_FIELDS])


# Run ids, ds and model ids: safe as names of folders, in SQL and in HTML.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

_RUN_FIELDS = tuple(pa.field(n, pa.string(), nullable=False) for n in ("ds", "run_id", "model_id"))

# cluster_profile: one row per cluster and feature, in the units of the user's columns.
PROFILE_SCHEMA = pa.schema(
    [
        *_RUN_FIELDS,
        pa.field("cluster_id", pa.int32(), nullable=False),  # -1: outliers
        pa.field("rows", pa.int64(), nullable=False),  # rows of the cluster
        # How far the starts of merged cells agreed on the cluster, 0 to 1; null: it came otherwise.
        pa.field("firmness", pa.float32()),
        pa.field("feature", pa.string(), nullable=False),  # the user's column
        pa.field("kind", pa.string(), nullable=False),  # number, category, vector, component
        pa.field("component", pa.int32()),  # index in the vector
        pa.field("value", pa.string()),  # a category's value; null: all values without a row
        # Statistics of the non-null values; for a category, of an indicator that is 1 for rows with
        # this value. Timestamps are in seconds since 1970: in UTC where their column has a time
        # zone, by the column's own clock where it has none. A feature whose type is timestamp is
        # always by its own clock, that of its zone: its calendar is what rows are clustered by.
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),
        pa.field("min", pa.float64()),
        pa.field("max", pa.float64()),
        *(pa.field(name, pa.float64()) for name in ("p05", "p25", "p50", "p75", "p95")),
        pa.field("null_share", pa.float64(), nullable=False),
        # (mean - mean of all other rows) / standard deviation of all rows; for a vector, the length
        # of the difference of the mean vectors / square root of the sum of all variances.
        pa.field("difference", pa.float64(), nullable=False),
        # 1: largest absolute difference in the cluster; components are ranked among themselves.
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("mean_vector", pa.list_(pa.float32())),  # vectors only, unless too large
        # Vectors only: mean - mean of all other rows of each component, in its units; null where
        # either has no values.
        pa.field("difference_vector", pa.list_(pa.float32())),
    ]
)

# Rules of the surrogate tree, in the user's columns and units, as the stage describe writes them.
RULE_SCHEMA = pa.schema(
    [
        pa.field("cluster_id", pa.int32()),  # null: clusters that are too small to have rules
        pa.field("rule", pa.string(), nullable=False),  # all conditions as text
        pa.field(
            "conditions",
            pa.list_(
                pa.struct(
                    [
                        pa.field("feature", pa.string()),  # a component with its index: x[17]
                        # A category's value: the condition is on its indicator, 1 or 0.
                        pa.field("value", pa.string()),
                        pa.field("low", pa.float64()),  # low < x; null: no lower bound
                        pa.field("high", pa.float64()),  # x <= high; null: no upper bound
                        pa.field("missing", pa.bool_()),  # whether missing values match
                    ]
                )
            ),
            nullable=False,
        ),
        pa.field("rows", pa.int64(), nullable=False),  # matching rows among the fitted ones
        pa.field("share", pa.float64(), nullable=False),  # rows / all fitted rows
        pa.field("held_out", pa.int64(), nullable=False),  # matching rows among the held-out ones
        # Matching held-out rows that the model, too, puts into the cluster.
        pa.field("correct", pa.int64(), nullable=False),
        pa.field("precision", pa.float64()),  # correct / held_out
    ]
)
# Name of each cluster with rows or a name, and the fidelity of its rules on held-out rows.
DESCRIBED_SCHEMA = pa.schema(
    [
        pa.field("cluster_id", pa.int32(), nullable=False),
        pa.field("name", pa.string()),
        # Origin of the name. registry: existing name; features, openai: the namer; null: no name.
        pa.field("named_by", pa.string()),
        pa.field("held_out", pa.int64()),  # held-out rows of the cluster, by the model
        pa.field("predicted", pa.int64()),  # held-out rows of the cluster, by the rules
        pa.field("correct", pa.int64()),  # held-out rows of the cluster by both
        pa.field("precision", pa.float64()),  # correct / predicted
        pa.field("recall", pa.float64()),  # correct / held_out
    ]
)

# cluster_exemplars, besides the user's keys.
_EXEMPLAR_FIELDS = (
    *_RUN_FIELDS,
    pa.field("cluster_id", pa.int32(), nullable=False),
    # central: smallest distance; typical: highest confidence; ambiguous: smallest confidence -
    # confidence_2. Ties: the first by shard and row number.
    pa.field("kind", pa.string(), nullable=False),
    pa.field("rank", pa.int32(), nullable=False),  # from 1
    pa.field("cluster_id_2", pa.int32(), nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),
    pa.field("confidence_2", pa.float32(), nullable=False),
    pa.field("distance", pa.float32(), nullable=False),
    pa.field("features", pa.list_(pa.float32())),  # the raw row, unless too wide
)
EXEMPLAR_KINDS = ("central", "typical", "ambiguous")
_RESERVED_EXEMPLAR_NAMES = frozenset(field.name for field in _EXEMPLAR_FIELDS)


def exemplar_key(name: str) -> str:
    """Name of a key column in cluster_exemplars: with a prefix where the name is reserved."""
    return f"key_{name}" if name in _RESERVED_EXEMPLAR_NAMES else name


def exemplar_schema(carried: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Schema of cluster_exemplars: origin, cluster, kind and rank, the keys, the features.

    For the arguments see ``assignment_schema``.
    """
    key_fields = [carried.field(name) for name in keys] or SHARD_KEY_FIELDS
    renamed = [field.with_name(exemplar_key(field.name)) for field in key_fields]
    return pa.schema([*_EXEMPLAR_FIELDS[:6], *renamed, *_EXEMPLAR_FIELDS[6:]])


def value_type(kind: pa.DataType) -> pa.DataType:
    """Type of a column's values, also where a dictionary holds them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type below extension types such as UUIDs, and Arrow's and Ray's tensors."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes, which JSON has as hex digits."""
    found = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in found)


def decoded(column: Any) -> Any:
    """Array, chunked or not, with its values in place of a dictionary's codes."""
    kind = value_type(column.type)
    return column if kind == column.type else column.cast(kind)


def cast_to(column: Any, kind: pa.DataType) -> Any:
    """Array, chunked or not, in a type that was chosen to hold its values.

    Raises:
        pyarrow.ArrowException: It does not.
    """
    if column.type == kind:
        return column
    column = decoded(column)
    return column.cast(storage_type(column.type)).cast(kind)


def comparable(column: Any) -> Any:
    """Array, chunked or not, with equal values in a type that Arrow groups, sorts and looks up."""
    column = decoded(column)
    kind = storage_type(column.type)
    if pa.types.is_float16(kind):
        kind = pa.float32()
    elif pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        kind = pa.decimal128(kind.precision, kind.scale)
    return column if kind == column.type else column.cast(storage_type(column.type)).cast(kind)


def classes_in(label: Any) -> Any:
    """Values of a label, array or chunked array; null where it is missing, which NaN is too."""
    label = comparable(label)
    if not pa.types.is_floating(label.type):
        return label
    return pc.if_else(pc.is_nan(label), pa.scalar(None, label.type), label)


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """Values as texts, which ``from_texts`` reads back: bytes as hex digits, UUIDs as usual.

    Durations are numbers of their unit.
    """
    column = decoded(column)
    if is_uuid(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    column = column.cast(storage_type(column.type))
    if is_bytes(column.type):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    return column.cast(pa.string(), safe=False).to_pylist()  # type: ignore[no-any-return]


def from_texts(texts: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    """Values of a type from texts as of ``texts_of``.

    Raises:
        ValueError, pyarrow.ArrowException: A text is no value of the type.
    """
    storage = storage_type(kind)
    if is_uuid(kind):
        values = [None if text is None else uuid.UUID(text).bytes for text in texts]
        return pa.array(values, storage).cast(kind)
    if is_bytes(storage):
        return pa.array([None if t is None else bytes.fromhex(t) for t in texts], storage)
    found = pa.array(texts, pa.string())
    if pa.types.is_null(storage):
        return pa.nulls(len(texts))
    if pa.types.is_duration(storage):
        found = found.cast(pa.int64())
    elif pa.types.is_time(storage):
        dated = pc.binary_join_element_wise("1970-01-01", found, " ")
        found = dated.cast(pa.timestamp(storage.unit))
    return found.cast(storage).cast(kind)


def is_uuid(kind: pa.DataType) -> bool:
    """Whether it is Arrow's type of UUIDs."""
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def vectors(values_NF: NDArray[np.generic]) -> pa.FixedSizeListArray:
    """The rows of a matrix as a column of lists."""
    flat = np.ascontiguousarray(values_NF).ravel()
    return pa.FixedSizeListArray.from_arrays(flat, values_NF.shape[1])


def matrix_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists of one length as a matrix, a view of Arrow's memory where possible."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)  # type: ignore[no-any-return]


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with other values, of the same type, in one column."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)
