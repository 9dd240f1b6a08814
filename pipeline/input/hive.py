"""Hive partitioning: columns with their values in names of folders, such as ``country=nl``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa


def hive_values(url: str) -> dict[str, str | None]:
    """Values of the folder columns of a URL, by name."""
    values: dict[str, str | None] = {}
    for folder in url.split("/")[:-1]:
        name, separator, value = folder.partition("=")
        if separator and name:
            null = value == "__HIVE_DEFAULT_PARTITION__"
            values[unquote(name)] = None if null else unquote(value)
    return values


def folders_above(urls: Iterable[str], roots: Iterable[str]) -> set[str]:
    """Columns that only folders above these roots have; each URL lies below one of them."""
    above, below = set[str](), set[str]()
    tops = {root.rstrip("/") for root in roots}
    for url in urls:
        folder = url.rpartition("/")[0]
        while folder and folder not in tops:
            name, separator, _ = folder.rpartition("/")[2].partition("=")
            if separator and name:
                below.add(unquote(name))
            folder = folder.rpartition("/")[0]
        above.update(hive_values(f"{folder}/"))
    return above - below


def hive_types_of(urls: Iterable[str]) -> dict[str, pa.DataType]:
    """Types of folder columns: int64 where all values are integers, else string."""
    values: dict[str, set[str]] = {}
    for url in urls:
        for name, value in hive_values(url).items():
            values.setdefault(name, set()).update([] if value is None else [value])
    # "007" is a code: as a number it would lose its zeros.
    number = re.compile(r"-?(0|[1-9]\d{0,17})")
    return {
        name: pa.int64() if seen and all(map(number.fullmatch, seen)) else pa.string()
        for name, seen in values.items()
    }


def hive_column(value: str | None, rows: int, kind: pa.DataType) -> pa.Array:
    """A constant column."""
    return pa.repeat(pa.scalar(value, pa.string()).cast(kind), rows)


def with_hive_columns(schema: pa.Schema, url: str, types: dict[str, pa.DataType]) -> pa.Schema:
    """The schema of a file with the columns of its folders; the file's own win.

    Folders whose type is not given are no columns.
    """
    for name in hive_values(url):
        if name in types and name not in schema.names:
            schema = schema.append(pa.field(name, types[name]))
    return schema
