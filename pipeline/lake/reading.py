"""The one reader: pieces of pinned shards → blocks of raw rows. Every stage reads through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts import FeatureColumn, Manifest
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.lake.columns import RaggedVectors, feature_matrix, missing_values_error
from pipeline.lake.hive import hive_column, hive_values
from pipeline.lake.pinning import ragged_error, unreadable_shard
from pipeline.lake.slices import cut_slices
from pipeline.schema import SHARD_KEY_FIELDS
from pipeline.storage import S3_SCHEME, Store, open_input, version_of

# Memory of a block of raw rows: enough to hide the cost of a call, little beside a worker's.
_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RowBlock:
    """Some rows of one shard.

    Attributes:
        x_BF: Raw features, shape (rows, features), of the manifest's dtype; may be a read-only
            view of Arrow's memory. Missing values are NaN.
        carried: Key columns and label of the same rows; None when they were not asked for.
        shard: Number of their shard in the manifest.
        row_numbers_B: Their places in it, shape (rows,), int64.
    """

    x_BF: NDArray[np.generic]
    carried: pa.Table | None
    shard: int
    row_numbers_B: NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """Reads pieces. Small: sent to every task.

    Attributes:
        features: Feature columns.
        dtype: numpy name of the type of a raw row.
        nulls: What a missing value does: "error", "mean" (kept, as NaN) or "drop" (the row).
        carried: Key columns and label; empty leaves them unread.
        shard_keys: Whether shard name and row number stand in for the keys.
    """

    features: tuple[FeatureColumn, ...]
    dtype: str
    nulls: str
    carried: pa.Schema
    shard_keys: bool

    @classmethod
    def of(cls, config: Config, manifest: Manifest, *, carry: bool) -> Reader:
        """The reader for a pinned input; ``carry`` reads key columns and label too."""
        return cls(
            features=manifest.features,
            dtype=manifest.dtype,
            nulls=config.source.nulls,
            carried=manifest.carried_schema if carry else pa.schema([]),
            shard_keys=carry and not manifest.keys,
        )

    @property
    def width(self) -> int:
        """F, the width of a row."""
        return sum(column.width for column in self.features)

    def blocks(self, pieces: pa.Table) -> Iterator[RowBlock]:
        """Read pieces in their order.

        Args:
            pieces: See ``pipeline.lake.slices``, with the shard's url, name and version.

        Raises:
            InputError: A shard is corrupt or changed since it was pinned, vectors are ragged, or
                a feature is missing under ``nulls="error"``.
        """
        start = 0
        shards = pieces["shard"].to_numpy()
        for edge in [*np.flatnonzero(np.diff(shards)) + 1, len(shards)]:  # runs of one shard
            yield from self._shard(pieces.slice(start, edge - start).to_pylist())
            start = int(edge)

    def _shard(self, pieces: list[dict[str, Any]]) -> Iterator[RowBlock]:
        url, name = pieces[0]["url"], pieces[0]["name"]
        try:
            if version_of(url) != pieces[0]["version"]:
                raise InputError(
                    f"shard {name} changed since this run pinned it; a run reads one version of "
                    "its input. Start a new run id to use the new one"
                )
            with open_input(url) as source:
                # One request for all columns of a row group; what is mapped into memory needs none.
                parquet = pq.ParquetFile(source, pre_buffer=url.startswith(S3_SCHEME))
                for piece in pieces:
                    yield from self._piece(parquet, url, name, piece)
        except (OSError, pa.ArrowException) as error:
            raise unreadable_shard(name, error) from None

    def _piece(
        self, parquet: pq.ParquetFile, url: str, name: str, piece: dict[str, Any]
    ) -> Iterator[RowBlock]:
        group, first, rows = piece["row_group"], piece["row_start"], piece["rows"]
        in_file = parquet.schema_arrow.names
        names = dict.fromkeys((*(column.name for column in self.features), *self.carried.names))
        block_rows = max(1024, _BLOCK_BYTES // (self.width * np.dtype(self.dtype).itemsize))
        position = 0
        for batch in parquet.iter_batches(
            batch_size=block_rows,
            row_groups=[group],
            columns=[n for n in names if n in in_file],
            use_threads=False,  # whoever reads has threads that read other pieces meanwhile
        ):
            begin, end = max(first - position, 0), min(first + rows - position, len(batch))
            if begin < end:
                part = self._with_hive(pa.table(batch.slice(begin, end - begin)), url)
                row_number = piece["first_row"] + position + begin
                yield from self._block(parquet, name, url, part, piece["shard"], row_number)
            position += len(batch)
            if position >= first + rows:
                return

    def _with_hive(self, table: pa.Table, url: str) -> pa.Table:
        if not all(name in table.column_names for name in self._names()):
            for name, value in hive_values(url).items():
                if name in self._names() and name not in table.column_names:
                    kind = pa.int64()  # as a feature it must read as a number
                    if name in self.carried.names:
                        kind = self.carried.field(name).type
                    table = table.append_column(name, hive_column(value, len(table), kind))
        return table

    def _names(self) -> list[str]:
        return [*(column.name for column in self.features), *self.carried.names]

    def _block(
        self,
        parquet: pq.ParquetFile,
        shard: str,
        url: str,
        table: pa.Table,
        shard_number: int,
        row_number: int,
    ) -> Iterator[RowBlock]:
        columns = [table[column.name] for column in self.features]
        try:
            x_BF, missing_B = feature_matrix(columns, self.features, self.dtype)
        except RaggedVectors as ragged:
            raise ragged_error(shard, *ragged.args) from None
        carried = self._carried(shard, table, row_number)
        if missing_B is not None and self.nulls == "error":
            raise self._missing(parquet, shard, url)
        row_numbers_B = np.arange(row_number, row_number + len(table))
        if missing_B is not None and self.nulls == "drop":
            x_BF, row_numbers_B = x_BF[~missing_B], row_numbers_B[~missing_B]
            carried = carried.filter(pa.array(~missing_B)) if carried is not None else None
        yield RowBlock(x_BF, carried, shard_number, row_numbers_B)

    def _carried(self, shard: str, table: pa.Table, row_number: int) -> pa.Table | None:
        if not len(self.carried) and not self.shard_keys:
            return None
        arrays = [_cast(table[field.name], field.type) for field in self.carried]
        fields = list(self.carried)
        if self.shard_keys:
            numbers = pa.array(np.arange(row_number, row_number + len(table)))
            arrays = [pa.repeat(pa.scalar(shard), len(table)), numbers, *arrays]
            fields = [*SHARD_KEY_FIELDS, *fields]
        return pa.table(arrays, schema=pa.schema(fields))

    def _missing(self, parquet: pq.ParquetFile, shard: str, url: str) -> InputError:
        """Count what is missing in the whole shard: the reader stopped at the first block."""
        names, bad_rows = [], 0
        in_file = [column for column in self.features if column.name in parquet.schema_arrow.names]
        folders = [
            column.name
            for column in self.features
            if column not in in_file and hive_values(url).get(column.name) is None
        ]
        total = parquet.metadata.num_rows
        missing = {column.name: 0 for column in in_file}
        for batch in parquet.iter_batches(columns=[column.name for column in in_file]):
            any_missing = np.zeros(len(batch), dtype=bool)
            for column in in_file:
                array = [batch.column(column.name)]
                _, missing_B = feature_matrix(array, [column], "float64")
                if missing_B is not None:
                    missing[column.name] += int(missing_B.sum())
                    any_missing |= missing_B
            bad_rows += int(any_missing.sum())
        if folders:  # a folder's null is that of every row
            bad_rows = total
        names = [*folders, *(name for name, count in missing.items() if count)]
        return missing_values_error(shard, names, bad_rows, total)


def pieces_of(manifest: Manifest, lake: Store) -> pa.Table:
    """All pieces of a pinned input, in slices, ready for ``Reader.blocks``."""
    shards = lake.read_table(manifest.shards.path)
    return pieces_of_shards(shards, manifest.target_slice_mib)


def pieces_of_shards(shards: pa.Table, target_slice_mib: int) -> pa.Table:
    """The same from the manifest's table of shards."""
    pieces = cut_slices(shards, target_slice_mib * 2**20)
    for column in ("url", "name", "version"):
        pieces = pieces.append_column(column, pc.take(shards[column], pieces["shard"]))
    return pieces


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(kind)
