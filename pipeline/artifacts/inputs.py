"""What is known of the input: columns, shards, and the reference sample."""

from __future__ import annotations

import base64
from typing import Literal

import pyarrow as pa
from pydantic import Field

from pipeline.artifacts.records import Artifact, Record, StoredFile

ColumnType = Literal["number", "boolean", "category", "timestamp", "vector"]


class FeatureColumn(Record):
    """A column that rows are clustered by: a scalar, or a vector of fixed width.

    Attributes:
        name: Of the column.
        width: Values of a raw row that it has.
        vector: Whether it holds vectors.
        type: How its values are understood; None: plain numbers, as ``source.scaling`` and
            ``source.nulls`` say. Left out of what is written where it is None.
    """

    name: str
    width: int
    vector: bool
    type: ColumnType | None = Field(default=None, exclude_if=lambda value: value is None)


class QuarantinedShard(Record):
    """A bad shard that the run goes on without; see ``source.on_bad_shard``.

    Attributes:
        name: Below the source.
        url: Where it lies.
        version: As it was listed.
        bytes: Its size, as it was listed.
        rows: By its footer; None where that could not be read.
        stage: That found it.
        reason: What is wrong with it.
    """

    name: str
    url: str
    version: str
    bytes: int
    rows: int | None
    stage: str
    reason: str


class Manifest(Artifact):
    """The pinned input.

    Attributes:
        shards: Parquet file with one row a shard: url, name, bytes, version, rows, row groups.
        rows: Rows of all shards.
        bytes: Size of all shards.
        wanted_bytes: Size of the wanted columns in them, as stored.
        shard_count: Shards, empty ones included.
        row_groups: Row groups of all shards.
        slice_count: Units of work.
        target_slice_mib: What the slices were cut for.
        features: The feature columns in the order of the config, globs resolved.
        dtype: numpy name of the type that a raw row has in memory.
        carried: Arrow schema of the key columns and the label, base64 of its IPC form.
        nulls: What a missing feature does; see ``source.nulls``.
        keys: Names of the key columns; empty: shard name and row number stand in.
        label: Name of the label column.
        quarantined: Bad shards that nothing is read of. Those that pin found are in none of the
            figures above; those that a later stage found are.
    """

    shards: StoredFile
    rows: int
    bytes: int
    wanted_bytes: int
    shard_count: int
    row_groups: int
    slice_count: int
    target_slice_mib: int
    features: tuple[FeatureColumn, ...]
    dtype: str
    carried: str
    nulls: str
    keys: tuple[str, ...]
    label: str | None
    quarantined: tuple[QuarantinedShard, ...] = ()

    @property
    def width(self) -> int:
        """F, the width of a row of features."""
        return sum(column.width for column in self.features)

    @property
    def typed(self) -> bool:
        """Whether rows hold more than plain numbers."""
        return any(column.type for column in self.features)

    @property
    def described_columns(self) -> tuple[str, ...]:
        """Feature columns that are told in their own values: what a raw row has of them is a code.

        Their values are in the column itself, and for a model's categories in its vocabulary; see
        ``pipeline.registry.models.load_vocabulary``.
        """
        told = ("category", "boolean")
        return tuple(column.name for column in self.features if column.type in told)

    @property
    def carried_schema(self) -> pa.Schema:
        """Names and types of the key columns and of the label."""
        return decode_schema(self.carried)


def encode_schema(schema: pa.Schema) -> str:
    """The form in which JSON keeps a schema."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The schema that ``encode_schema`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


class Sample(Artifact):
    """The reference sample and what was learnt from it.

    Attributes:
        parts: Parquet files with the sampled rows: keys, label, and ``features`` as a vector.
        rows: Rows in them.
        scanned_rows: Rows that the scaler's statistics come from.
        missing_values: Null, NaN or infinite features among those.
        scaler: Parquet file with one row a feature: mean, offset, factor.
        scaling: How the scaler works; see ``pipeline.model.scaling.Scaler``.
    """

    parts: tuple[StoredFile, ...]
    rows: int
    scanned_rows: int
    missing_values: int
    scaler: StoredFile
    scaling: str
