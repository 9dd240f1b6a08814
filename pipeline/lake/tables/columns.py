"""Which columns the table formats can hold, as the part files have them."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.schema import value_type

_NAME = {"iceberg": "Apache Iceberg", "delta": "Delta Lake"}


def check_columns(table_format: str, columns: pa.Schema) -> None:
    """Refuse what the format has no exact type for: nothing is converted, and nothing is cut off.

    Raises:
        InputError: Names the first column that does not fit.
    """
    instead = "leave it out of source.keys, or set lake.format: parquet"
    seen: dict[str, str] = {}
    for field in columns:
        if remedy := _misfit(table_format, value_type(field.type)):
            raise InputError(
                f"key column {field.name} is {field.type}, which {_NAME[table_format]} has no type "
                f"for; {remedy} in the input, {instead}"
            )
        if table_format == "delta" and set(field.name) & set(" ,;{}()\n\t="):
            raise InputError(
                f"key column {field.name!r} cannot be a column of a Delta table, whose names have "
                f"none of ' ,;{{}}()='; rename it in the input, {instead}"
            )
        if (other := seen.setdefault(field.name.lower(), field.name)) != field.name:
            raise InputError(
                f"columns {other} and {field.name} differ in case only, which engines that read "
                f"{_NAME[table_format]} take for the same; rename one in the input, {instead}"
            )


def _misfit(table_format: str, kind: pa.DataType) -> str | None:
    """What to do about a type that the format lacks; None where it has it."""
    types = pa.types
    if types.is_unsigned_integer(kind):
        return "cast it to int64"
    if types.is_timestamp(kind):
        if kind.unit in ("s", "ns"):
            return "cast it to timestamp[us]"
        return None if kind.tz in (None, "UTC") else "cast it to timestamp[us, tz=UTC]"
    known = (
        *(types.is_boolean, types.is_signed_integer, types.is_float32, types.is_float64),
        *(types.is_decimal128, types.is_date32, types.is_string, types.is_large_string),
        *(types.is_binary, types.is_large_binary),
    )
    fits = any(is_kind(kind) for is_kind in known)
    if table_format == "iceberg":
        fits = fits or types.is_fixed_size_binary(kind) or kind == pa.time64("us")
    return None if fits else "cast it to a string or a number"


def check_same_columns(location: str, there: pa.Schema, columns: pa.Schema) -> None:
    """Refuse to mix runs with other keys in one table.

    Raises:
        InputError: What the table has, and what the assignments have.
    """
    has, wants = _described(there), _described(columns)
    if has != wants:
        raise InputError(
            f"{location} has the columns {_listed(has, wants)}, this run's assignments "
            f"{_listed(wants, has)}; keep source.keys and their types, or use another table"
        )


def table_schema(columns: pa.Schema) -> pa.Schema:
    """The table's columns for files with these: nullable, and without encodings."""
    return pa.schema([pa.field(field.name, value_type(field.type)) for field in columns])


# Names of the same type, as far as a table is concerned: formats give back what they keep.
_SAME = {
    "large_string": "string",
    "string_view": "string",
    "large_binary": "binary",
    "binary_view": "binary",
    "int8": "int32",
    "int16": "int32",
}


def _described(columns: pa.Schema) -> dict[str, str]:
    described = {}
    for field in columns:
        kind = value_type(field.type)
        if pa.types.is_timestamp(kind):
            kind = pa.timestamp("us", kind.tz)
        described[field.name] = _SAME.get(str(kind), str(kind))
    return described


def _listed(described: dict[str, str], other: dict[str, str]) -> str:
    """Those that the other lacks, and how many more."""
    different = [f"{name} {kind}" for name, kind in described.items() if other.get(name) != kind]
    rest = len(described) - len(different)
    return ", ".join([*different, f"and {rest} that agree"])
