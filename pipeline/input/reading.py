"""The reader of all stages: pieces of pinned shards → blocks of raw rows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.explanations import ProfiledColumn
from pipeline.artifacts.inputs import FeatureColumn, LakeTable, Manifest, encode_schema
from pipeline.artifacts.records import StoredFile
from pipeline.config import Config
from pipeline.counts import count
from pipeline.errors import InputError, says_out_of_memory
from pipeline.input.bad_shards import ShardVersion, changed, diagnosed, is_as_pinned
from pipeline.input.columns import RaggedVectors, feature_matrix, missing_values_error
from pipeline.input.footers import ragged_error
from pipeline.input.hive import hive_column, hive_values
from pipeline.input.lake_tables.entries import ENTRY, FileEntry
from pipeline.input.lake_tables.views import TableView
from pipeline.input.parquet.opening import ShardFile
from pipeline.input.pinning import PinnedInput
from pipeline.input.slices import cut_slices, cut_where_changed
from pipeline.schema import SHARD_KEY_FIELDS, cast_to
from pipeline.storage import S3_SCHEME, Store, open_input, why

# Size of a block of raw rows: large enough to hide the cost of a call, small beside a worker.
_BLOCK_BYTES = 2 * 2**20


# Rows of a batch while missing values are counted.
_MISSING_ROWS = 65_536


@dataclass(frozen=True)
class OpenShard:
    """A shard that is being read: a plain file, or the view of a lake table on one of its files."""

    parquet: ShardFile
    view: TableView | None = None

    @classmethod
    def of(cls, table: LakeTable | None, parquet: ShardFile, piece: Mapping[str, Any]) -> OpenShard:
        """The shard of a piece, of this table if any."""
        if table is None:
            return cls(parquet)
        entry = FileEntry.of_json(piece[ENTRY])
        return cls(parquet, TableView(table, entry, piece["name"], piece["url"], parquet))

    def stored(self, names: Sequence[str]) -> list[str]:
        """Columns of the file to read for these columns, as far as it has them."""
        if self.view is not None:
            return self.view.stored(names)
        return [name for name in names if name in self.parquet.names]

    def batches(
        self, names: Sequence[str], group: int, batch_rows: int, *, exact: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """Rows of a row group, and their numbers: in the file for a view, else in the row group.

        Rows that a lake table has deleted, or that ``source.where`` leaves out, are not among them.
        Values of the columns ``exact`` are unchanged, see ``ShardFile.batches``; a lake table's are
        of its own types.
        """
        position = 0
        exact = exact if self.view is None else ()
        for batch in self.parquet.batches(group, self.stored(names), batch_rows, exact=exact):
            if self.view is None:
                yield pa.table(batch), np.arange(position, position + len(batch))
            else:
                yield self.view.live(batch, names, group, position)
            position += len(batch)


# A shard, a piece, the position of a batch among the live rows of its row group, the batch, and the
# numbers of its rows in the shard.
_Batch = tuple[OpenShard, dict[str, Any], int, pa.Table, NDArray[np.int64]]


@dataclass(frozen=True)
class RowBlock:
    """Some rows of one shard."""

    # Raw features, shape (rows, features), of the manifest's dtype; may be a read-only view of
    # Arrow's memory. Missing values are NaN.
    x_BF: NDArray[np.generic]
    carried: pa.Table | None  # key columns and label of the same rows; None where they are not read
    shard: int
    row_numbers_B: NDArray[np.int64]  # positions in the shard, shape (rows,), int64
    # Categories among the features and ``Reader.explained``, as stored, as far as the shard has
    # them; None without any.
    stored: pa.Table | None = None


@dataclass(frozen=True)
class Reader:
    """Reader of pieces; small, since it is sent to every task."""

    features: tuple[FeatureColumn, ...]
    dtype: str
    nulls: str  # treatment of missing values: "error", "mean" (kept as NaN) or "drop" (the row)
    carried: pa.Schema  # schema of the key columns and the label; empty: they are not read
    shard_keys: bool  # whether shard name and row number are the keys
    # Columns of ``explain.columns``, which a shard may lack.
    explained: tuple[ProfiledColumn, ...] = ()
    table: LakeTable | None = None  # the lake table that the shards are files of

    @classmethod
    def of(
        cls,
        config: Config,
        manifest: Manifest,
        *,
        carry: bool,
        explained: tuple[ProfiledColumn, ...] = (),
    ) -> Reader:
        """The reader of a pinned input; with ``carry``, of key columns and label too."""
        return cls(
            features=manifest.features,
            dtype=manifest.dtype,
            nulls=config.source.nulls,
            carried=manifest.carried_schema if carry else pa.schema([]),
            shard_keys=carry and not manifest.keys,
            explained=explained,
            table=manifest.table,
        )

    @property
    def width(self) -> int:
        """F, the width of a row."""
        return sum(column.width for column in self.features)

    def blocks(self, pieces: pa.Table) -> Iterator[RowBlock]:
        """Read pieces in order.

        They have url, name and version of the shard; see ``pieces_of``.

        Raises:
            BadShard: A shard is corrupt or gone, or has changed since it was pinned.
            InputError: Vectors differ in width, or a value is missing with ``nulls="error"``.
        """
        for of_shard in cut_where_changed(pieces, pieces["shard"].to_numpy()):
            yield from self._shard(of_shard.to_pylist())

    def _shard(self, pieces: list[dict[str, Any]]) -> Iterator[RowBlock]:
        shard = ShardVersion(*(pieces[0][name] for name in ("url", "name", "version")))
        try:
            for opened, piece, position, rows_read, numbers_B in self._pinned_batches(
                shard, pieces
            ):
                first, rows = piece["row_start"], piece["rows"]
                begin, end = max(first - position, 0), min(first + rows - position, len(rows_read))
                if begin < end:
                    part = self._with_hive(rows_read.slice(begin, end - begin), shard.url)
                    numbers = numbers_B[begin:end]
                    yield from self._block(opened, shard, part, piece["shard"], numbers)
        except pa.ArrowException as error:  # not of reading: that is diagnosed
            if says_out_of_memory(error):
                raise  # no fault of the shard
            raise InputError(
                f"shard {shard.name}: values cannot be converted: {why(error)}; correct them, or "
                "take their column out of the config"
            ) from None

    def _pinned_batches(
        self, shard: ShardVersion, pieces: list[dict[str, Any]]
    ) -> Iterator[_Batch]:
        """``_batches`` of the pinned version."""

        def read_again(source: pa.NativeFile) -> None:
            for _ in self._batches(ShardFile(source, shard.name), pieces):
                pass

        try:
            if not is_as_pinned(shard):
                raise changed(shard)
            with open_input(shard.url) as source:
                # One request for all columns of a row group; what is mapped into memory needs none.
                remote = shard.url.startswith(S3_SCHEME)
                yield from self._batches(ShardFile(source, shard.name, pre_buffer=remote), pieces)
            # A shard may be replaced while it is read. If it is gone now, it was read before.
            with contextlib.suppress(FileNotFoundError):
                if not is_as_pinned(shard):
                    raise changed(shard)
        except (OSError, pa.ArrowException) as error:
            if says_out_of_memory(error):
                raise  # no fault of the shard
            raise diagnosed(shard, error, read_again) from None

    def _batches(self, parquet: ShardFile, pieces: list[dict[str, Any]]) -> Iterator[_Batch]:
        """Batches up to the end of each piece."""
        opened = OpenShard.of(self.table, parquet, pieces[0])
        names = [*dict.fromkeys(self.names)]
        stored = opened.stored(names)
        block_rows = max(1024, _BLOCK_BYTES // (self.width * np.dtype(self.dtype).itemsize))
        for piece in pieces:
            position, end = 0, piece["row_start"] + piece["rows"]
            group, exact = piece["row_group"], self.carried.names
            count("bytes_read", parquet.footer.stored_bytes(group, stored))
            for rows, numbers_B in opened.batches(names, group, block_rows, exact=exact):
                if opened.view is None:
                    numbers_B = numbers_B + piece["first_row"]
                yield opened, piece, position, rows, numbers_B
                position += len(rows)
                count("rows_read", len(rows))
                if position >= end:
                    break
            if position < end:
                raise pa.ArrowInvalid(f"row group {piece['row_group']} ends after {position} rows")

    def _with_hive(self, table: pa.Table, url: str) -> pa.Table:
        profiled = [column.name for column in self.explained if column.kind == "category"]
        if self.table is not None:
            return table  # its log has the values of partitions
        for name, value in hive_values(url).items():
            if name in self.names and name not in table.column_names:
                kind = pa.int64()  # a feature without a type must be a number
                if name in self.carried.names:
                    kind = self.carried.field(name).type
                elif name in (*self._categories(), *profiled):
                    kind = pa.string()
                table = table.append_column(name, hive_column(value, len(table), kind))
        return table

    @property
    def names(self) -> list[str]:
        """Names of all columns that are read."""
        features, explained = (
            [column.name for column in columns] for columns in (self.features, self.explained)
        )
        return [*features, *self.carried.names, *explained]

    def _categories(self) -> list[str]:
        return [column.name for column in self.features if column.type == "category"]

    def _block(
        self,
        opened: OpenShard,
        shard: ShardVersion,
        table: pa.Table,
        shard_number: int,
        row_numbers_B: NDArray[np.int64],
    ) -> Iterator[RowBlock]:
        columns = [table[column.name] for column in self.features]
        try:
            x_BF, missing_B = feature_matrix(columns, self.features, self.dtype)
        except RaggedVectors as ragged:
            raise ragged_error(shard.name, *ragged.args) from None
        carried = self._carried(shard.name, table, row_numbers_B)
        kept = dict.fromkeys([*self._categories(), *(column.name for column in self.explained)])
        names = [n for n in kept if n in table.column_names and not pa.types.is_null(table[n].type)]
        stored = table.select(names) if names else None
        if missing_B is not None and self.nulls == "error":
            raise self._missing(opened, shard)
        if missing_B is not None and self.nulls == "drop":
            x_BF, row_numbers_B = x_BF[~missing_B], row_numbers_B[~missing_B]
            carried = carried.filter(pa.array(~missing_B)) if carried is not None else None
            stored = stored.filter(pa.array(~missing_B)) if stored is not None else None
        yield RowBlock(x_BF, carried, shard_number, row_numbers_B, stored)

    def _carried(
        self, shard: str, table: pa.Table, row_numbers_B: NDArray[np.int64]
    ) -> pa.Table | None:
        if not len(self.carried) and not self.shard_keys:
            return None
        arrays = [_carried_as(table[field.name], field, shard) for field in self.carried]
        fields = list(self.carried)
        if self.shard_keys:
            names = pa.repeat(pa.scalar(shard), len(table))
            arrays = [names, pa.array(row_numbers_B), *arrays]
            fields = [*SHARD_KEY_FIELDS, *fields]
        return pa.table(arrays, schema=pa.schema(fields))

    def _missing(self, opened: OpenShard, shard: ShardVersion) -> InputError:
        """Count the missing values of the whole shard, for the message."""
        missing_rows = dict.fromkeys((column.name for column in self.features), 0)
        bad_rows = all_rows = 0
        groups = range(len(opened.parquet.footer.rows))
        batches = (opened.batches([*missing_rows], group, _MISSING_ROWS) for group in groups)
        for table, _ in itertools.chain.from_iterable(batches):
            table, all_rows = self._with_hive(table, shard.url), all_rows + len(table)
            any_missing = np.zeros(len(table), dtype=bool)
            for column in self.features:
                _, missing_B = feature_matrix([table[column.name]], [column], "float64")
                if missing_B is not None:
                    missing_rows[column.name] += int(missing_B.sum())
                    any_missing |= missing_B
            bad_rows += int(any_missing.sum())
        names = [name for name, rows in missing_rows.items() if rows]
        return missing_values_error(shard.name, names, bad_rows, all_rows)


def manifest_of(config: Config, pinned: PinnedInput, shards: StoredFile) -> Manifest:
    """The manifest of a pinned input whose table of shards is stored as ``shards``."""
    table = pinned.shards
    pieces = cut_slices(table, config.execution.target_slice_mib * 2**20)
    return Manifest(
        shards=shards,
        rows=int(table["rows"].to_numpy().sum()),
        bytes=int(table["bytes"].to_numpy().sum()),
        wanted_bytes=int(table["row_group_bytes"].combine_chunks().flatten().to_numpy().sum()),
        shard_count=len(table),
        row_groups=len(pieces),
        slice_count=len(pc.unique(pieces["slice"])),
        target_slice_mib=config.execution.target_slice_mib,
        features=pinned.features,
        dtype=pinned.dtype,
        carried=encode_schema(pinned.carried),
        nulls=config.source.nulls,
        keys=tuple(config.source.keys),
        label=config.evaluate.label,
        quarantined=pinned.quarantined,
        left_out=pinned.left_out,
        table=pinned.table,
    )


def pieces_of(manifest: Manifest, lake: Store) -> pa.Table:
    """All pieces of a pinned input, in slices, for ``Reader.blocks``.

    Pieces of quarantined shards are left out after the cut, so that other slices do not change.
    """
    shards = lake.read_table(manifest.shards.path)
    pieces = pieces_of_shards(shards, manifest.target_slice_mib)
    left_out = pa.array([shard.url for shard in manifest.quarantined], pa.string())
    return pieces.filter(pc.invert(pc.is_in(pieces["url"], left_out))) if len(left_out) else pieces


def pieces_of_shards(shards: pa.Table, target_slice_mib: int) -> pa.Table:
    """The same from a table of shards."""
    pieces = cut_slices(shards, target_slice_mib * 2**20)
    entry = [ENTRY] if ENTRY in shards.column_names else []
    for column in ("url", "name", "version", *entry):
        pieces = pieces.append_column(column, pc.take(shards[column], pieces["shard"]))
    return pieces


def _carried_as(column: pa.ChunkedArray, field: pa.Field, shard: str) -> pa.ChunkedArray:
    try:
        return cast_to(column, field.type)
    except pa.ArrowException as error:
        if says_out_of_memory(error):
            raise
        raise InputError(
            f"shard {shard}, column {field.name}: a value of type {column.type} does not fit "
            f"{field.type}, its type over all shards: {why(error)}; write the column with one type"
        ) from None
