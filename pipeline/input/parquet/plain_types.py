"""Plain Arrow types in place of views, which much of Arrow cannot compare, group or take."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without views."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_field)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field)
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """The same values in their ``plain_type``."""
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if not pa.types.is_nested(kind):
        return array.cast(kind)
    # Arrow's own cast shifts the lists behind a null one.
    lengths = pc.list_value_length(array).fill_null(0)
    width = pa.int64() if pa.types.is_large_list(kind) else pa.int32()
    ends = pc.cumulative_sum(lengths.cast(width))
    offsets = pa.concat_arrays([pa.array([0], width), ends])
    lists = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    missing = array.is_null() if array.null_count else None
    return lists.from_arrays(offsets, array.flatten(), type=kind, mask=missing)
