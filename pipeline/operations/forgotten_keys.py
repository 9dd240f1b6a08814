"""Keys of rows to forget or locate: compared exactly, and never shown.

Messages quote no value, so they do not quote Arrow's errors, which do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.input.parquet.opening import ShardFile
from pipeline.schema import comparable, from_texts, is_uuid, storage_type, texts_of, value_type
from pipeline.storage import absolute, open_input, sha256, why


class KeySet:
    """Distinct keys of one or more columns; null equals null. ``source`` is for messages."""

    def __init__(self, keys: pa.Table, source: str) -> None:
        self._source = source
        fields = [pa.field(field.name, value_type(field.type)) for field in keys.schema]
        self._schema = pa.schema(fields)
        compared = pa.table([comparable(column) for column in keys.columns], keys.column_names)
        if len(compared):
            compared = compared.group_by(compared.column_names).aggregate([])
        self._keys = compared
        self._values = [column.unique() for column in self._keys.columns]
        self._spans = [_span(values) for values in self._values]
        # For each column but the first: which pairs of (key so far, value of this column) occur.
        self._pairs: list[NDArray[np.int64]] = []
        code_B = self._places(0, self._keys)
        for level in range(1, len(self._values)):
            pair_B = code_B * len(self._values[level]) + self._places(level, self._keys)
            self._pairs.append(np.unique(pair_B))
            code_B = np.searchsorted(self._pairs[-1], pair_B)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeySet({len(self)} keys)"  # without their values

    @property
    def names(self) -> list[str]:
        """The key columns."""
        names: list[str] = self._keys.column_names
        return names

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the key columns."""
        return self._schema

    def cast(self, schema: pa.Schema) -> KeySet:
        """The same keys in the types of a table.

        Raises:
            InputError: A key cannot be converted.
        """
        fields = [pa.field(name, value_type(schema.field(name).type)) for name in self.names]
        if pa.schema(fields).equals(self._schema):
            return self
        columns = []
        for field in fields:
            try:
                columns.append(_converted(self._typed(field.name), field.type))
            except (pa.ArrowException, ValueError):
                raise InputError(
                    f"{self._source}: column {field.name} has "
                    f"{self._schema.field(field.name).type} values that cannot be "
                    f"converted to {field.type}, its type in the assignments; nothing was removed"
                ) from None
        return KeySet(pa.table(columns, schema=pa.schema(fields)), self._source)

    def _typed(self, name: str) -> pa.ChunkedArray:
        """The distinct keys' values of a column in its own type."""
        kind = self._schema.field(name).type
        return self._keys[name].cast(storage_type(kind)).cast(kind)

    def found_in(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Whether each row has one of the keys, shape (rows,); its columns have the keys' types."""
        code_B = self._places(0, rows)
        for level, pairs in enumerate(self._pairs, start=1):
            place_B = self._places(level, rows)
            pair_B = code_B * len(self._values[level]) + place_B
            at_B = np.minimum(np.searchsorted(pairs, pair_B), max(0, len(pairs) - 1))
            there_B = (code_B >= 0) & (place_B >= 0)
            there_B &= pairs[at_B] == pair_B if len(pairs) else False
            code_B = np.where(there_B, at_B, -1)
        return code_B >= 0

    def may_be_in(self, row_group: pq.RowGroupMetaData) -> bool:
        """Whether the row group's statistics allow any of the keys."""
        columns = [row_group.column(n) for n in range(row_group.num_columns)]
        by_name = {column.path_in_schema: column for column in columns}
        if len(by_name) < len(columns):  # a column is called like the leaf of a list
            return True
        for name, span in zip(self.names, self._spans, strict=True):
            statistics = by_name[name].statistics if name in by_name else None
            if span is None or statistics is None or not statistics.has_min_max:
                continue
            try:
                if span[1] < statistics.min or statistics.max < span[0]:
                    return False
            except TypeError:  # a logical type that Parquet compares as another one
                continue
        return True

    def hashes(self, salt: str) -> tuple[str, ...]:
        """SHA-256 of salt and key, as a JSON list of the values' texts; sorted, hex."""
        texts = [texts_of(self._typed(name)) for name in self.names]
        keys = (f"{salt}{json.dumps(key)}".encode() for key in zip(*texts, strict=True))
        return tuple(sorted(map(sha256, keys)))

    def _places(self, level: int, rows: pa.Table) -> NDArray[np.int64]:
        """Index of each row's value among those of this column; −1 where it is not among them."""
        values = self._values[level]
        found = pc.index_in(comparable(rows[self.names[level]]), value_set=values).fill_null(-1)
        return found.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def read_keys(location: str, names: Sequence[str]) -> KeySet:
    """Read the key columns of a Parquet or CSV file; it may have others.

    Raises:
        InputError: It does not exist, cannot be read, or lacks a column.
    """
    location = absolute(location)
    try:
        with open_input(location) as source:
            if location.lower().endswith(".csv"):
                # As text, until the assignments give the type: "007" may be text. An empty field
                # is empty text, not null.
                convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
                table = pa.csv.read_csv(source, convert_options=convert)
            else:
                file = ShardFile(source, f"--keys {location}")
                table = file.read_all([name for name in names if name in file.names])
    except OSError as error:
        raise InputError(f"--keys {location} cannot be read: {why(error)}") from None
    except pa.ArrowException:
        raise InputError(
            f"--keys {location} is neither a Parquet file nor a CSV file with one header and the "
            "same number of fields in each line; name a CSV file .csv"
        ) from None
    if missing := [name for name in names if name not in table.column_names]:
        raise InputError(
            f"--keys {location} lacks {', '.join(missing)}; it must have a column for each of "
            f"source.keys={list(names)}"
        )
    if not len(table):
        raise InputError(f"--keys {location} has no keys")
    table = table.select(list(names))
    fields = [pa.field(f.name, value_type(f.type)) for f in table.schema]
    try:
        return KeySet(table.cast(pa.schema(fields)), location)
    except pa.ArrowException:
        described = ", ".join(f"{field.name}: {field.type}" for field in fields)
        raise InputError(f"--keys {location}: {described} cannot be keys") from None


def key_table(texts: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Keys that were written as JSON, in the types of a table.

    A text is an object of values by column, as ``keys_as_json`` in ``pipeline.registry.clusters``
    writes them, a list of values, or one bare value.

    Raises:
        InputError: A text cannot be read.
    """
    try:
        rows = [_as_row(json.loads(text), schema.names) for text in texts]
        columns = [
            from_texts([_as_text(row[n]) for row in rows], value_type(field.type))
            for n, field in enumerate(schema)
        ]
    except (pa.ArrowException, ValueError, IndexError):
        raise InputError(
            f"exemplars of a clusters table cannot be read as keys {schema.names}; nothing was "
            "removed. Use the config that it was written with"
        ) from None
    return pa.table(columns, names=schema.names)


def _as_row(value: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(value, dict):
        return [value.get(name) for name in names]
    return value if isinstance(value, list) else [value]


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def _converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Keys in another type; texts of a CSV file too."""
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if text and (is_uuid(kind) or pa.types.is_duration(kind) or pa.types.is_time(kind)):
        return pa.chunked_array([from_texts(column.to_pylist(), kind)])
    column = column.cast(storage_type(column.type))
    if text and pa.types.is_float16(storage_type(kind)):
        column = column.cast(pa.float32())
    return column.cast(storage_type(kind)).cast(kind)


def _span(values: pa.Array) -> tuple[Any, Any] | None:
    """Least and greatest value; None where they do not compare with a row group's statistics."""
    kind = values.type
    comparable = pa.types.is_signed_integer(kind) or pa.types.is_string(kind)
    if not comparable or values.null_count or not len(values):
        return None
    least_and_greatest = pc.min_max(values)
    return least_and_greatest["min"].as_py(), least_and_greatest["max"].as_py()
