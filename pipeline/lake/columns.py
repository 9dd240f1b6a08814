"""Feature columns: which Arrow types can be features, and Arrow → one matrix without row loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts import FeatureColumn
from pipeline.errors import InputError

Column: TypeAlias = pa.Array | pa.ChunkedArray


class RaggedVectors(Exception):
    """Rows of a vector column differ in width."""


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type below extension types such as Arrow's and Ray's tensors."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def is_vector(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of fixed width or not."""
    kind = storage_type(kind)
    return bool(
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def number_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the numbers in a feature column; None when it does not hold numbers."""
    kind = storage_type(kind)
    if is_vector(kind):
        kind = storage_type(kind.value_type)
    elif pa.types.is_dictionary(kind):
        kind = kind.value_type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return kind if numeric or pa.types.is_boolean(kind) else None


def memory_dtype(kinds: Sequence[pa.DataType], *, may_miss: bool) -> str:
    """The narrowest type that holds a row of these number types for the network.

    Small integers stay small (an image of 784 bytes need not become 3 KiB); what float32 cannot
    hold exactly stays float64 until it is scaled.

    Args:
        kinds: Number types of all feature columns, in all shards.
        may_miss: Whether missing values are kept, as NaN, which only floats can hold.
    """
    small = {"bool": "uint8", "uint8": "uint8", "int8": "int8"}
    single = {"halffloat", "float", "int16", "uint16"}
    names = {str(kind) for kind in kinds}
    if not may_miss:
        if len(held := {small.get(name) for name in names}) == 1 and None not in held:
            return str(held.pop())
        if names == {"halffloat"}:
            return "float16"
    return "float32" if names <= single | set(small) else "float64"


def feature_matrix(
    columns: Sequence[Column], layout: Sequence[FeatureColumn], dtype: str
) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """Put feature columns side by side.

    Args:
        columns: One a feature column, of the same number of rows.
        layout: Their names and widths, in the same order.
        dtype: numpy type of the result, from ``memory_dtype``.

    Returns:
        The matrix, shape (rows, features), a view of Arrow's memory where that is possible; and
        which rows miss a value (null, NaN or infinite), or None when no row does.

    Raises:
        RaggedVectors: A vector is wider or narrower than the layout says.
    """
    parts = [_numbers(column, spec) for column, spec in zip(columns, layout, strict=True)]
    missing = [~np.isfinite(part).all(axis=1) for part in parts if _has_missing(part)]
    missing_B = np.logical_or.reduce(missing) if missing else None
    if len(parts) == 1:
        matrix = parts[0]
        with np.errstate(invalid="ignore"):
            return matrix.astype(dtype, copy=False), missing_B
    width = sum(spec.width for spec in layout)
    matrix = np.empty((len(parts[0]), width), dtype=dtype)
    start = 0
    with np.errstate(invalid="ignore"):
        for part in parts:
            matrix[:, start : start + part.shape[1]] = part
            start += part.shape[1]
    return matrix, missing_B


def _has_missing(part: NDArray[np.generic]) -> bool:
    # A sum is finite when every term is, unless it overflows; only then look at each value.
    if not np.issubdtype(part.dtype, np.floating):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(part, dtype=np.promote_types(part.dtype, np.float32))
    return not np.isfinite(total) and not bool(np.isfinite(part).all())


def _numbers(column: Column, spec: FeatureColumn) -> NDArray[np.generic]:
    """One column as a matrix of shape (rows, width); nulls as NaN."""
    array = column
    if isinstance(column, pa.ChunkedArray):  # combine_chunks copies a single chunk too
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not spec.vector:
        return _flat_numbers(array).reshape(-1, 1)
    widths = pc.min_max(pc.list_value_length(array))
    if array.null_count < len(array) and not (
        widths["min"].as_py() == widths["max"].as_py() == spec.width
    ):
        raise RaggedVectors(spec.name, widths["min"].as_py(), widths["max"].as_py())
    flat = _flat_numbers(array.flatten())  # leaves out null rows
    if not array.null_count:
        return flat.reshape(-1, spec.width)
    matrix = np.full((len(array), spec.width), np.nan)
    matrix[array.is_valid().to_numpy(zero_copy_only=False)] = flat.reshape(-1, spec.width)
    return matrix


def _flat_numbers(array: pa.Array) -> NDArray[np.generic]:
    """A flat array of numbers as numpy, without a copy where Arrow's memory allows it."""
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if array.null_count and not pa.types.is_floating(array.type):
        array = array.cast(pa.float64(), safe=False)
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def missing_values_error(shard: str, names: Sequence[str], rows: int, total: int) -> InputError:
    """What ``source.nulls: error`` says."""
    return InputError(
        f"shard {shard}, column {', '.join(names)}: {rows} of {total} rows hold null, NaN or "
        "infinite values; expected finite numbers. Clean the column, or set source.nulls to "
        "mean or drop"
    )
