"""Feature columns: Arrow types that can be features, and Arrow → one matrix without row loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.inputs import ColumnType, FeatureColumn
from pipeline.errors import InputError
from pipeline.schema import storage_type, value_type

Column: TypeAlias = pa.Array | pa.ChunkedArray


class RaggedVectors(Exception):
    """Rows of a vector column differ in width."""


def is_vector(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of fixed width or not."""
    kind = storage_type(kind)
    return bool(
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def number_type(kind: pa.DataType) -> pa.DataType | None:
    """Type of the numbers in a feature column; None where it does not hold numbers."""
    kind = storage_type(kind)
    kind = storage_type(kind.value_type) if is_vector(kind) else value_type(kind)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return kind if numeric or pa.types.is_boolean(kind) else None


# Storage types of each type of feature column, for messages.
EXPECTED: dict[ColumnType, str] = {
    "number": "integers, floats or decimals",
    "boolean": "booleans",
    "category": "strings, integers or a dictionary of them",
    "timestamp": "timestamps or dates",
    "vector": "lists of numbers, of one width",
}


def type_of_bytes(kind: pa.DataType, dtype: str | None) -> pa.DataType:
    """The type of a column whose bytes are vectors of ``dtype``; other types as they are.

    Raises:
        ValueError: The bytes are not a whole number of values.
    """
    if dtype is None or not pa.types.is_fixed_size_binary(kind):
        return kind
    width, rest = divmod(kind.byte_width, np.dtype(dtype).itemsize)
    if rest or not width:
        raise ValueError(f"{kind.byte_width} bytes are not a whole number of {dtype}")
    return pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)


def _vectors_of_bytes(array: pa.Array, dtype: str) -> pa.Array:
    """Fixed-size bytes as vectors in the same memory."""
    kind = type_of_bytes(array.type, dtype)
    valid, content = array.buffers()
    rows = array.offset + len(array)
    values = pa.Array.from_buffers(kind.value_type, rows * kind.list_size, [None, content])
    return pa.Array.from_buffers(
        kind, len(array), [valid], array.null_count, array.offset, children=[values]
    )


def column_type(kind: pa.DataType) -> ColumnType | None:
    """Type of a feature column of this Arrow type; None where it cannot be a feature."""
    kind = storage_type(kind)
    if is_vector(kind):
        return "vector" if number_type(kind) is not None else None
    if pa.types.is_boolean(kind):
        return "boolean"
    if category_family(kind) is not None and not pa.types.is_integer(kind):
        return "category"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    return "number" if number_type(kind) is not None else None


def may_be(kind: pa.DataType, wanted: ColumnType) -> bool:
    """Whether a column of this Arrow type can be a feature of the wanted type."""
    if wanted == "category":
        return category_family(kind) is not None
    if wanted == "number":
        return number_type(kind) is not None and not is_vector(kind)
    return column_type(kind) == wanted


def category_family(kind: pa.DataType) -> str | None:
    """Kind of a category's values, "text" or "integers": never equal across both; else None."""
    kind = value_type(storage_type(kind))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return "integers" if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else None


def unknown_zone(kind: pa.DataType) -> str | None:
    """Reason why the local time of a timestamp's zone is unknown here; None where it is known."""
    kind = storage_type(kind)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pc.local_timestamp(pa.array([0], kind))
        except pa.ArrowException as error:
            return str(error).splitlines()[0]
    return None


def raw_type(kind: pa.DataType, of: ColumnType | None) -> pa.DataType | None:
    """Type of number that holds the values of a feature column in a raw row."""
    if of == "timestamp":
        return pa.float64()  # float32 cannot tell two seconds of one minute apart
    if of == "category":
        plain = value_type(storage_type(kind))
        small = category_family(plain) == "integers" and plain.bit_width <= 16
        return plain if small else pa.float64()
    return number_type(kind)


def memory_dtype(kinds: Sequence[pa.DataType], *, may_miss: bool) -> str:
    """Narrowest numpy type that holds a raw row of these number types, of all columns and shards.

    Small integers stay small (an image of 784 bytes need not become 3 KiB); what float32 cannot
    hold exactly stays float64 until it is scaled. Where values ``may_miss``, as NaN, it is a float.
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
    """Put feature columns side by side: ``layout`` has their names and widths, in the same order.

    Returns:
        The matrix, shape (rows, features), a view of Arrow's memory where possible; and a mask of
        the rows with a missing value (null, NaN or infinite) in a column without a type, or None
        where there is no such row. Columns with a type encode missing values, which are NaN here.

    Raises:
        RaggedVectors: A vector is wider or narrower than the layout says.
    """
    parts = [_numbers(column, spec) for column, spec in zip(columns, layout, strict=True)]
    missing = [
        ~np.isfinite(part).all(axis=1)
        for part, spec in zip(parts, layout, strict=True)
        if spec.type is None and _has_missing(part)
    ]
    missing_B = np.logical_or.reduce(missing) if missing else None
    with np.errstate(invalid="ignore"):
        if len(parts) == 1:
            return parts[0].astype(dtype, copy=False), missing_B
        matrix = np.empty((len(parts[0]), sum(spec.width for spec in layout)), dtype)
        np.concatenate(parts, axis=1, out=matrix, casting="unsafe")
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
    if spec.dtype and pa.types.is_fixed_size_binary(array.type):
        array = _vectors_of_bytes(array, spec.dtype)
    if pa.types.is_null(array.type):
        return np.full((len(array), spec.width), np.nan)
    if spec.type == "category":
        return category_codes(array).reshape(-1, 1)
    if spec.type == "timestamp":
        local = pa.types.is_timestamp(array.type) and array.type.tz is not None
        array = pc.local_timestamp(array) if local else array
        return seconds_since_1970(array).reshape(-1, 1)
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
    """The error of ``source.nulls: error``."""
    return InputError(
        f"shard {shard}, column {', '.join(names)}: {rows} of {total} rows hold null, NaN or "
        "infinite values; expected finite numbers. Clean the column, or set source.nulls to "
        "mean or drop"
    )


# Integers up to here are their own codes; float64 holds all of them, and as many again above.
_PLAIN_CODES = 2**52
# Constants of splitmix64; the first is the golden ratio in 64 bits.
GOLDEN, _FIRST, _SECOND = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def category_codes(array: pa.Array) -> NDArray[np.float64]:
    """Codes of a category's values: equal for equal values, in any shard.

    They need no vocabulary, so raw rows do not depend on a model. An integer up to 2^52 is its own
    code; larger ones and strings are hashed to 52 bits (two of a thousand values collide in one of
    ten thousand million columns).

    Returns:
        Codes, shape (rows,); NaN for null.
    """
    if isinstance(array, pa.DictionaryArray) and array.dictionary.null_count:
        array = array.dictionary_decode()
    if not pa.types.is_dictionary(array.type) and category_family(array.type) == "text":
        # A hash for each value, not for each row; Arrow does not encode views.
        array = array.cast(pa.large_string()) if pa.types.is_string_view(array.type) else array
        array = array.dictionary_encode()
    if isinstance(array, pa.DictionaryArray):
        codes = category_codes_of_values(array.dictionary)
        if not len(codes):
            return np.full(len(array), np.nan)
        places = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        found: NDArray[np.float64] = codes[places]
    else:
        found = category_codes_of_values(array)
    if array.null_count:
        found[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return found


def category_codes_of_values(values: pa.Array) -> NDArray[np.float64]:
    """Codes of strings or integers, one by one; those of nulls are arbitrary."""
    if category_family(values.type) == "text":
        return (_string_hashes(values) >> np.uint64(12)).astype(np.float64)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    wide = numbers.astype(np.int64)  # the same bits for what only uint64 holds
    hashed = _PLAIN_CODES + (splitmix64(wide.view(np.uint64)) >> np.uint64(12)).astype(np.float64)
    plain = (numbers > -_PLAIN_CODES) & (numbers < _PLAIN_CODES)
    return np.where(plain, wide.astype(np.float64), hashed)


def _string_hashes(values: pa.Array) -> NDArray[np.uint64]:
    """A polynomial of each string's bytes, mixed; modulo 2^64, as numpy's products are."""
    values = values.cast(pa.large_binary())
    _, offsets, content = values.buffers()
    edges = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    first, last = int(edges[0]), int(edges[-1])
    letters = np.frombuffer(content or b"", np.uint8)[first:last].astype(np.uint64)
    edges = edges - first
    lengths = np.diff(edges)
    place = np.arange(len(letters)) - np.repeat(edges[:-1], lengths)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(int(lengths.max(initial=0)), GOLDEN))
        sums = np.cumsum(splitmix64(letters + np.uint64(1)) * powers[place], dtype=np.uint64)
        sums = np.concatenate([np.zeros(1, np.uint64), sums])
        return splitmix64(sums[edges[1:]] - sums[edges[:-1]] + lengths.astype(np.uint64))


def code_hashes(codes_N: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Evenly distributed hashes of codes, to estimate the number of distinct ones."""
    return splitmix64(codes_N.view(np.uint64))


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix each number so that every bit depends on all of its bits (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = numbers + GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        return mixed ^ (mixed >> np.uint64(31))


_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def seconds_since_1970(column: Column) -> NDArray[np.float64]:
    """Timestamps or dates in seconds since 1970, in UTC where they have a zone; null as NaN."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(column.type) else "ms"))
    numbers = column.cast(pa.int64()).cast(pa.float64(), safe=False).fill_null(np.nan)
    return numbers.to_numpy() / _PER_SECOND[column.type.unit]  # type: ignore[no-any-return]
