"""A data file as the table sees it: live rows, columns of the table's names and types.

A table's columns are an Arrow schema whose fields say in their metadata how files store them: by
the ``id`` of the field in the files, or by names of the column there.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.inputs import LakeTable, decode_schema, encode_schema
from pipeline.errors import InputError
from pipeline.input.lake_tables.conditions import columns_of, constant, matching, parse
from pipeline.input.lake_tables.entries import FileEntry, TableFile
from pipeline.input.parquet.opening import ShardFile
from pipeline.schema import decoded, storage_type
from pipeline.storage import FoundFile

# Metadata of a field of a table.
FIELD_ID = b"id"
NAMES = b"names"  # as JSON
_FILE_ID = b"PARQUET:field_id"


@functools.lru_cache(maxsize=16)
def table_schema(table: LakeTable) -> pa.Schema:
    """The columns of a table, with metadata."""
    return decode_schema(table.columns)


def columns_identity(table: LakeTable, names: Sequence[str]) -> str:
    """Identity of what these columns are in the table's files; another one, and rows may differ."""
    schema = table_schema(table)
    asked = [schema.field(name) for name in dict.fromkeys(names) if name in schema.names]
    return encode_schema(pa.schema(asked))


class TableView:
    """One data file of a table."""

    def __init__(
        self, table: LakeTable, entry: FileEntry, shard: str, url: str, parquet: ShardFile
    ) -> None:
        self._schema, self._table_format = table_schema(table), table.format
        self._entry, self._shard, self._parquet = entry, shard, parquet
        self._stored = self._stored_names(parquet.footer.schema)
        self._where = parse(table.where, self._schema) if table.where and entry.filtered else None
        self._first_rows = np.cumsum([0, *parquet.footer.rows])
        self._keep: NDArray[np.bool_] | None = None
        if entry.deletes:
            self._keep = np.ones(self._first_rows[-1], bool)
            deleted = entry.deleted(shard, url)
            if len(deleted) and not 0 <= deleted.min() <= deleted.max() < len(self._keep):
                raise InputError(
                    f"shard {shard} of {table.location}: row {deleted.max()} is listed as deleted, "
                    f"but the file has {len(self._keep)}; repair the table"
                )
            self._keep[deleted] = False

    def _stored_names(self, file: pa.Schema) -> dict[str, str]:
        """Name in the file of each of the table's columns that it has."""
        ids = {
            int(field.metadata[_FILE_ID]): field.name
            for field in file
            if field.metadata and _FILE_ID in field.metadata
        }
        found = {}
        for field in self._schema:
            about = field.metadata or {}
            if FIELD_ID in about and ids:
                stored = ids.get(int(about[FIELD_ID]))
            else:
                if NAMES not in about:
                    raise InputError(
                        f"shard {self._shard} has no field ids, and the table has no names for "
                        "such files; set its property schema.name-mapping.default"
                    )
                names = json.loads(about[NAMES])
                stored = next((name for name in names if name in file.names), None)
            if stored is not None:
                found[field.name] = stored
        return found

    def stored(self, names: Sequence[str]) -> list[str]:
        """Columns of the file to read for columns of the table; for none of them, any."""
        wanted = [*names, *(columns_of(self._where) if self._where else ())]
        stored = (self._stored[name] for name in wanted if self._in_file(name))
        found = list(dict.fromkeys(stored))
        return found or self._parquet.names[:1]

    def _in_file(self, name: str) -> bool:
        """Whether a column's values are in the file, not in the table's log."""
        own = self._table_format == "iceberg" or name not in self._entry.constants
        return own and name in self._stored

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return pa.schema([field.remove_metadata() for field in self._schema])

    @property
    def renamed(self) -> dict[str, str]:
        """The table's name of each column of the file that it takes from there."""
        return {stored: name for name, stored in self._stored.items() if self._in_file(name)}

    def live(
        self, batch: pa.RecordBatch, names: Sequence[str], group: int, position: int
    ) -> tuple[pa.Table, NDArray[np.int64]]:
        """The live rows of a batch that begins at ``position`` in its row group.

        Returns them with these columns of the table, and their numbers in the file, shape (rows,).
        """
        first = int(self._first_rows[group]) + position
        numbers_B = np.arange(first, first + len(batch))
        keep_B = None if self._keep is None else self._keep[numbers_B]
        if self._where is not None:
            asked = self._table(batch, columns_of(self._where))
            match_B = matching(self._where, asked).to_numpy(zero_copy_only=False).astype(bool)
            keep_B = match_B if keep_B is None else keep_B & match_B
        if keep_B is not None and not keep_B.all():
            batch, numbers_B = batch.filter(pa.array(keep_B)), numbers_B[keep_B]
        return self._table(batch, names), numbers_B

    def live_columns(
        self, batches: Iterable[pa.RecordBatch], names: Sequence[str], group: int
    ) -> pa.Table:
        """These columns of the live rows of a row group, of which these are all batches."""
        found, position = [], 0
        for batch in batches:
            found.append(self.live(batch, names, group, position)[0])
            position += len(batch)
        return pa.concat_tables(found)

    def _table(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.Table:
        arrays = [self._column(batch, name) for name in names]
        return pa.table(arrays, [*names]) if names else pa.Table.from_batches([batch]).select([])

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        kind = self._schema.field(name).type
        if not self._in_file(name):  # of its partition, or added after the file was written
            text = self._entry.constants.get(name)
            if text is None:
                return pa.nulls(len(batch), kind)
            return pa.repeat(constant(text, kind), len(batch))
        column = batch.column(self._stored[name])
        # Vectors are read of any type; a type of Arrow's own is the table's by its storage.
        if pa.types.is_nested(storage_type(column.type)) or column.type == kind:
            return column
        if storage_type(column.type) == storage_type(kind):
            return column
        try:
            return decoded(column).cast(kind)
        except pa.ArrowException as error:
            raise InputError(
                f"shard {self._shard}, column {name}: a value of type {column.type} does not fit "
                f"{kind}, the type of the table: {error}"
            ) from None

    def live_rows(self) -> list[int]:
        """Live rows of each row group; reads the columns of the condition, where there is one."""
        edges = itertools.pairwise(self._first_rows.tolist())
        keep = self._keep
        if self._where is None and keep is None:
            return [end - begin for begin, end in edges]
        if self._where is None:
            assert keep is not None
            return [int(np.count_nonzero(keep[begin:end])) for begin, end in edges]
        found = []
        for group in range(len(self._parquet.footer.rows)):
            position = live = 0
            for batch in self._parquet.batches(group, self.stored(())):
                live += len(self.live(batch, (), group, position)[1])
                position += len(batch)
            found.append(live)
        return found


def view_of(file: FoundFile, parquet: ShardFile) -> TableView | None:
    """The view of a file in a table's plan; None for a plain file."""
    if not isinstance(file, TableFile):
        return None
    assert file.table is not None
    return TableView(file.table, file.entry, file.name, file.url, parquet)
