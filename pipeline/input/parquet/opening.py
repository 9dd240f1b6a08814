"""The one place where Parquet files of the input are opened.

Whoever reads them sees the same types and values: INT96 timestamps in microseconds, which hold all
years, and plain types in place of views.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.input.parquet.plain_types import plain_array, plain_type
from pipeline.schema import storage_type

# Size of the first read, as Arrow's own: nearly every footer fits.
_TAIL_BYTES = 64 * 2**10
_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_ENCRYPTED = "it is encrypted, and encrypted files are not read"
# Nonce and tag after a footer that is signed and not encrypted (Parquet's modular encryption).
_SIGNATURE_BYTES = 12 + 16
# Microseconds since 1970 that nanoseconds hold too.
_NANOSECONDS_HOLD = 2**63 // 1000 - 1


@dataclass(frozen=True)
class Footer:
    """The footer of a Parquet file."""

    # With the types that columns have when they are read; of a file of a lake table, the table's.
    schema: pa.Schema
    metadata: pq.FileMetaData
    # Of a file of a lake table: the file's own schema, the table's name of each column that the
    # file has of it, and live rows of each row group, where some are deleted.
    stored: pa.Schema | None = None
    renamed: Mapping[str, str] | None = None
    live: Sequence[int] | None = None

    @property
    def live_rows(self) -> Sequence[int]:
        """Rows of each row group that are read."""
        return self.rows if self.live is None else self.live

    @functools.cached_property
    def rows(self) -> list[int]:
        """Rows of each row group."""
        return [self.metadata.row_group(g).num_rows for g in range(self.metadata.num_row_groups)]

    @functools.cached_property
    def leaves(self) -> dict[str, list[int]]:
        """Numbers of the Parquet columns that store each Arrow column.

        Paths do not tell: "x.list.element" is a leaf of the list x, or a column of that name.
        """
        leaves: dict[str, list[int]] = {}
        numbers = itertools.count()
        for field in self.schema if self.stored is None else self.stored:
            some = [*itertools.islice(numbers, _leaf_count(field.type))]
            name = field.name if self.renamed is None else self.renamed.get(field.name)
            if name is not None:
                leaves.setdefault(name, []).extend(some)
        return leaves

    def stored_bytes(self, row_group: int, names: Iterable[str]) -> int:
        """Stored bytes of some columns in a row group."""
        group = self.metadata.row_group(row_group)
        leaves = [leaf for name in names for leaf in self.leaves.get(name, [])]
        return sum(group.column(leaf).total_compressed_size for leaf in leaves)


class ShardFile:
    """An open Parquet file; ``name`` is for messages.

    Raises:
        OSError, pyarrow.ArrowException: It cannot be read, for example since it is encrypted.
    """

    def __init__(self, source: pa.NativeFile, name: str, *, pre_buffer: bool = False) -> None:
        self._source, self._name = source, name
        metadata = _metadata(source)
        self._parquet = self._opened(metadata, "us", pre_buffer=pre_buffer)
        stored = self._parquet.schema_arrow
        fields = [field.with_type(plain_type(field.type)) for field in stored]
        self.footer = Footer(pa.schema(fields, stored.metadata), metadata)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        names: list[str] = self.footer.schema.names
        return names

    def batches(
        self,
        row_group: int,
        names: Sequence[str],
        batch_rows: int = 65_536,
        *,
        exact: Collection[str] = (),
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of a row group; there may be others, whose names begin like theirs.

        Values of the columns ``exact`` are unchanged.

        Raises:
            InputError: An INT96 timestamp of ``exact`` is finer than microseconds.
        """
        how = {"batch_size": batch_rows, "row_groups": [row_group], "use_threads": False}
        finer = self._in_nanoseconds([name for name in names if name in exact], how)
        for batch in self._parquet.iter_batches(columns=names, **how):
            if finer is not None:
                self._check_digits(batch, next(finer))
            yield _plain_batch(batch)

    def read(
        self, row_group: int, names: Sequence[str], *, exact: Collection[str] = ()
    ) -> pa.Table:
        """Some columns of a row group; see ``batches``."""
        schema = pa.schema([self.footer.schema.field(name) for name in names])
        batches = (batch.select(names) for batch in self.batches(row_group, names, exact=exact))
        return pa.Table.from_batches(batches, schema.remove_metadata())

    def read_all(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows, unchanged."""
        schema = pa.schema([self.footer.schema.field(name) for name in names]).remove_metadata()
        groups = range(len(self.footer.rows))
        tables = [self.read(group, names, exact=names) for group in groups]
        return pa.concat_tables([schema.empty_table(), *tables])

    def _opened(
        self, metadata: pq.FileMetaData, int96_unit: str, *, pre_buffer: bool = False
    ) -> pq.ParquetFile:
        return pq.ParquetFile(
            self._source,
            metadata=metadata,
            pre_buffer=pre_buffer,
            coerce_int96_timestamp_unit=int96_unit,
            # Damage in uncompressed pages shows only by their checksums, which Spark writes.
            page_checksum_verification=True,
        )

    def _in_nanoseconds(
        self, names: Sequence[str], how: dict[str, object]
    ) -> Iterator[pa.RecordBatch] | None:
        """The columns of INT96 timestamps once more; None without any."""
        metadata, leaves = self.footer.metadata, self.footer.leaves
        stored_as = {n: metadata.schema.column(leaves[n][0]).physical_type for n in names}
        names = [name for name, kind in stored_as.items() if kind == "INT96"]
        if not names:
            return None
        again = self._opened(metadata, "ns")
        found: Iterator[pa.RecordBatch] = again.iter_batches(columns=names, **how)
        return found

    def _check_digits(self, micros: pa.RecordBatch, nanos: pa.RecordBatch) -> None:
        for name in nanos.schema.names:
            coarse, fine = (
                batch[name].cast(pa.int64()).fill_null(0).to_numpy() for batch in (micros, nanos)
            )
            held = np.abs(coarse) <= _NANOSECONDS_HOLD
            if (fine[held] != coarse[held] * 1000).any():
                raise InputError(
                    f"shard {self._name}, column {name}: INT96 timestamps finer than "
                    "microseconds, in which they are read; write the column as TIMESTAMP(NANOS)"
                )


def _metadata(source: pa.NativeFile) -> pq.FileMetaData:
    """The footer, with no more requests than Arrow's own reading of it.

    Arrow ends the process when it is asked for the size of an encrypted column, and does not say
    which columns are. But the footer of such a file has a signature that Arrow leaves out.
    """
    size = source.size()
    tail = _last_bytes(source, size, _TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] == _ENCRYPTED_MAGIC:
        raise pa.ArrowInvalid(_ENCRYPTED)
    if tail[-4:] != _MAGIC or length + 8 > size:
        source.seek(0)
        return pq.read_metadata(source)  # says what is wrong
    if length + 8 > len(tail):
        tail = _last_bytes(source, size, length + 8)
    metadata = pq.read_metadata(pa.BufferReader(tail))
    if length == metadata.serialized_size + _SIGNATURE_BYTES:
        raise pa.ArrowInvalid(_ENCRYPTED)
    return metadata


def _last_bytes(source: pa.NativeFile, size: int, wanted: int) -> bytes:
    source.seek(max(0, size - wanted))
    content: bytes = source.read(min(size, wanted))
    return content


def _leaf_count(kind: pa.DataType) -> int:
    kind = storage_type(kind)
    return sum(_leaf_count(kind.field(n).type) for n in range(kind.num_fields)) or 1


def _plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    kinds = [plain_type(field.type) for field in batch.schema]
    if all(kind == field.type for kind, field in zip(kinds, batch.schema, strict=True)):
        return batch
    fields = [f.with_type(kind) for f, kind in zip(batch.schema, kinds, strict=True)]
    arrays = [plain_array(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
