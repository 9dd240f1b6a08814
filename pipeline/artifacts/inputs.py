"""Artifacts about the input: its columns, its shards, and the reference sample."""

from __future__ import annotations

import base64
from typing import Literal

import pyarrow as pa
from pydantic import Field

from pipeline.artifacts.records import Artifact, Record, StoredFile

ColumnType = Literal["number", "boolean", "category", "timestamp", "vector"]


class FeatureColumn(Record):
    """A column that rows are clustered by: a scalar, or a vector of fixed width."""

    name: str
    width: int  # number of its values in a raw row
    vector: bool
    # Meaning of its values; None: plain numbers, treated by ``source.scaling`` and
    # ``source.nulls``. Not written where it is None.
    type: ColumnType | None = Field(default=None, exclude_if=lambda value: value is None)
    # Type of the numbers in a column of bytes. Not written where it is None.
    dtype: Literal["float16", "float32"] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )


class QuarantinedShard(Record):
    """A bad shard that the run leaves out; see ``source.on_bad_shard``."""

    name: str  # path below the source
    url: str
    version: str
    bytes: int
    rows: int | None  # rows by its footer; None where that cannot be read
    stage: str
    reason: str


class LeftOutFiles(Record):
    """Files at the locations of the source that are no input."""

    # hidden: names that begin with "_" or ".", or of unfinished files. not_parquet: the content
    # is not Parquet's, or the name says so. same_file: further paths of a file that is read once.
    reason: Literal["hidden", "not_parquet", "same_file"]
    files: int
    examples: tuple[str, ...]  # names of a few of them

    def __str__(self) -> str:
        """Number, reason and examples."""
        words = {
            "hidden": "hidden or unfinished",
            "not_parquet": "not Parquet",
            "same_file": "another path of a file that is read",
        }
        more = ", …" if self.files > len(self.examples) else ""
        return f"{self.files:,} {words[self.reason]} ({', '.join(self.examples)}{more})"


class LakeTable(Record):
    """A version of a lake table that is the input."""

    format: Literal["delta", "iceberg"]
    location: str  # folder or metadata file of the table, or its name in the catalog
    version: str  # Delta's version number, or the id of Iceberg's snapshot
    columns: str  # Arrow schema as text; see ``pipeline.input.lake_tables.views``
    where: str | None = None


class Manifest(Artifact):
    """The pinned input."""

    # Parquet file with one row per shard: url, name, bytes, version, rows, row groups.
    shards: StoredFile
    rows: int
    bytes: int
    wanted_bytes: int  # stored size of the selected columns
    shard_count: int  # number of shards, with empty ones
    row_groups: int
    slice_count: int  # number of slices, the units of work
    target_slice_mib: int
    # Feature columns in the order of the config, with its globs resolved.
    features: tuple[FeatureColumn, ...]
    dtype: str  # numpy name of the type of a raw row
    carried: str  # Arrow schema of the key columns and the label, base64 of its IPC form
    nulls: str
    keys: tuple[str, ...]  # names of the key columns; empty: shard name and row number
    label: str | None
    # Bad shards that are left out. The figures above include those that a stage after pin found.
    quarantined: tuple[QuarantinedShard, ...] = ()
    # Not written where it is empty.
    left_out: tuple[LeftOutFiles, ...] = Field(default=(), exclude_if=lambda value: not value)
    # The lake table that the shards are files of; not written where they are plain files.
    table: LakeTable | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def width(self) -> int:
        """F, the width of a row of features."""
        return sum(column.width for column in self.features)

    @property
    def typed(self) -> bool:
        """Whether a feature column has a type, so that rows hold more than plain numbers."""
        return any(column.type for column in self.features)

    @property
    def described_columns(self) -> tuple[str, ...]:
        """Feature columns that are described by original values, since raw rows hold codes.

        The shards have the values, and so has a model's vocabulary; see
        ``pipeline.registry.models.load_vocabulary``.
        """
        coded = ("category", "boolean")
        return tuple(column.name for column in self.features if column.type in coded)

    @property
    def carried_schema(self) -> pa.Schema:
        """Schema of the key columns and the label."""
        return decode_schema(self.carried)


def encode_schema(schema: pa.Schema) -> str:
    """A schema as text, for JSON."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The schema that ``encode_schema`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


class Sample(Artifact):
    """The reference sample, and the scaler that is fitted on it."""

    # Parquet files with the sampled rows: keys, label, and ``features`` as a vector.
    parts: tuple[StoredFile, ...]
    rows: int
    scanned_rows: int  # rows that the scaler's statistics come from
    missing_values: int  # null, NaN or infinite features among those
    scaler: StoredFile  # Parquet file with one row per feature: mean, offset, factor
    scaling: str  # method of the scaler; see ``pipeline.model.scaling.Scaler``
