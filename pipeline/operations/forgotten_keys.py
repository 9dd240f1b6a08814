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
from pipeline.registry.clusters import is_bytes
from pipeline.schema import decoded, value_type
from pipeline.storage import absolute, open_input, sha256, why


class KeySet:
    """Distinct keys of one or more columns; null equals null. ``source`` is for messages."""

    def __init__(self, keys: pa.Table, source: str) -> None:
        self._source = source
        self._keys = keys.group_by(keys.column_names).aggregate([]) if len(keys) else keys
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
        return self._keys.schema

    def cast(self, schema: pa.Schema) -> KeySet:
        """The same keys in the types of a table.

        Raises:
            InputError: A key cannot be converted.
        """
        fields = [pa.field(name, value_type(schema.field(name).type)) for name in self.names]
        if pa.schema(fields).equals(self._keys.schema):
            return self
        columns = []
        for field in fields:
            column = self._keys[field.name]
            try:
                columns.append(column.cast(field.type))
            except (pa.ArrowException, ValueError):
                raise InputError(
                    f"{self._source}: column {field.name} has {column.type} values that cannot be "
                    f"converted to {field.type}, its type in the assignments; nothing was removed"
                ) from None
        return KeySet(pa.table(columns, schema=pa.schema(fields)), self._source)

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
        columns = (row_group.column(n) for n in range(row_group.num_columns))
        by_name = {column.path_in_schema: column for column in columns}
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
        texts = [_texts(column) for column in self._keys.columns]
        keys = (f"{salt}{json.dumps(key)}".encode() for key in zip(*texts, strict=True))
        return tuple(sorted(map(sha256, keys)))

    def _places(self, level: int, rows: pa.Table) -> NDArray[np.int64]:
        """Index of each row's value among those of this column; −1 where it is not among them."""
        values = self._values[level]
        found = pc.index_in(decoded(rows[self.names[level]]), value_set=values).fill_null(-1)
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
                table = pq.read_table(source)
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
            _from_texts([_as_text(row[n]) for row in rows], value_type(field.type))
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


def _from_texts(texts: list[str | None], kind: pa.DataType) -> pa.Array:
    if is_bytes(kind):  # hex digits
        return pa.array([None if text is None else bytes.fromhex(text) for text in texts], kind)
    return pa.array(texts, pa.string()).cast(kind)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    """Values as texts; bytes as hex digits."""
    if is_bytes(column.type):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    return column.cast(pa.string(), safe=False).to_pylist()  # type: ignore[no-any-return]


def _span(values: pa.Array) -> tuple[Any, Any] | None:
    """Least and greatest value; None where they do not compare with a row group's statistics."""
    kind = values.type
    comparable = pa.types.is_signed_integer(kind) or pa.types.is_string(kind)
    if not comparable or values.null_count or not len(values):
        return None
    least_and_greatest = pc.min_max(values)
    return least_and_greatest["min"].as_py(), least_and_greatest["max"].as_py()
