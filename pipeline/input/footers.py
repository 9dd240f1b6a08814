"""Footers of shards: row groups, sizes and widths of the selected columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.inputs import LakeTable, decode_schema, encode_schema
from pipeline.errors import InputError
from pipeline.input.bad_shards import ShardVersion, read_shard
from pipeline.input.columns import is_vector
from pipeline.input.hive import with_hive_columns
from pipeline.input.lake_tables.views import view_of
from pipeline.input.parquet.opening import Footer, ShardFile
from pipeline.input.selection import Selection
from pipeline.schema import storage_type
from pipeline.storage import FoundFile

SHARD_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("name", pa.string()),  # path below the source; the key where the config names none
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("rows", pa.int64()),
        ("row_group_rows", pa.list_(pa.int64())),
        ("row_group_bytes", pa.list_(pa.int64())),  # of the selected columns, as stored
        ("widths", pa.list_(pa.int32())),  # of the feature columns that are vectors
        ("schema", pa.int32()),  # index into the schemas in the table's metadata; null: no rows
    ]
)
_METADATA_KEY = b"dec_pipeline"


@dataclass(frozen=True)
class ShardFacts:
    """What the footer of one shard says about the selected columns."""

    # Schema of the columns in the file itself, without those of its folders; None for a shard
    # without rows, whose types do not matter.
    schema: pa.Schema | None
    # Widths of the features that are vectors, in their order; None where no row tells.
    widths: Sequence[int | None]
    rows: Sequence[int]
    bytes: Sequence[int]  # stored bytes of the selected columns in each row group


def known_facts(
    shards: pa.Table | None, selection: Selection, table: LakeTable | None = None
) -> dict[tuple[str, str, int], ShardFacts]:
    """Facts of an earlier pinning of the same columns, by url, version and size.

    ``shards`` is a table of ``with_schemas``; without one, or with one of other columns, none are
    known.
    """
    meta = json.loads((shards.schema.metadata or {}).get(_METADATA_KEY, "{}")) if shards else {}
    if shards is None or meta.get("columns") != list(selection.all):
        return {}
    if selection.globs and not meta.get("globs"):
        return {}  # of a version that did not check the globs in every shard
    if meta.get("table") != (table and table.columns):
        return {}  # a file of a lake table is what the table says of its columns
    schemas = [decode_schema(text) for text in meta["schemas"]]
    names = ("url", "version", "bytes", "schema", "widths", "row_group_rows", "row_group_bytes")
    rows = zip(*(shards[name].to_pylist() for name in names), strict=True)
    return {
        (url, version, size): ShardFacts(None if place is None else schemas[place], *rest)
        for url, version, size, place, *rest in rows
        if version  # without an entity tag, a new file looks like the old one
    }


def with_schemas(
    shards: pa.Table,
    selection: Selection,
    schemas: Sequence[pa.Schema],
    table: LakeTable | None = None,
) -> pa.Table:
    """A table of shards with what ``known_facts`` needs of the schemas that it refers to."""
    encoded = [encode_schema(schema) for schema in schemas]
    content = {"columns": selection.all, "schemas": encoded, "globs": selection.globs}
    if table:
        content["table"] = table.columns
    return shards.replace_schema_metadata({_METADATA_KEY: json.dumps(content)})


def shard_facts(
    file: FoundFile, selection: Selection, hive_types: dict[str, pa.DataType]
) -> ShardFacts:
    """Read a footer, and check that the shard has the selected columns."""
    footer = read_footer(file)
    if not sum(footer.live_rows):
        return ShardFacts(None, (), footer.live_rows, [0] * len(footer.rows))
    columns = selection.with_vectors(footer.schema, file.name)
    schema = with_hive_columns(columns, file.url, hive_types)
    selection.check_globs(schema, file.name)
    selection.check(schema, file.name)
    own = [name for name in selection.all if name in footer.schema.names]
    schema = pa.schema([columns.field(name).remove_metadata() for name in own])
    vectors = [n for n in selection.features if n in own and is_vector(schema.field(n).type)]
    widths = [_width(footer, name, schema.field(name).type, file) for name in vectors]
    stored = [footer.stored_bytes(group, own) for group in range(len(footer.rows))]
    return ShardFacts(schema, widths, footer.live_rows, stored)


def read_footer(file: FoundFile) -> Footer:
    """Read the footer of a shard.

    Raises:
        BadShard: It cannot be read.
    """

    def read(source: pa.NativeFile) -> Footer:
        opened = ShardFile(source, file.name)
        if (view := view_of(file, opened)) is None:
            return opened.footer
        own = opened.footer
        return Footer(view.schema, own.metadata, own.schema, view.renamed, view.live_rows())

    return read_shard(ShardVersion(file.url, file.name, file.version), read)


def _width(footer: Footer, name: str, kind: pa.DataType, file: FoundFile) -> int | None:
    """Width of a vector column; None for a scalar, and where no row tells."""
    kind = storage_type(kind)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if footer.renamed is not None and name not in footer.leaves:
        return None  # added to the table later, or a column of its partitions
    (leaf,) = footer.leaves[name]
    for group in (g for g, rows in enumerate(footer.rows) if rows):
        chunk = footer.metadata.row_group(group).column(leaf)
        # The footer counts a null list as one value, so it tells the width only without nulls.
        counted = chunk.statistics is not None and chunk.statistics.has_null_count
        width, rest = divmod(chunk.num_values, footer.rows[group])
        if counted and not chunk.statistics.null_count and not rest:
            return int(width)
        widths = _widths_in(file, group, name)
        if len(widths) > 1:
            raise ragged_error(file.name, name, min(widths), max(widths))
        if widths:
            return widths[0]
    return None


def _widths_in(file: FoundFile, group: int, name: str) -> list[int]:
    """Widths of the lists in one row group."""

    def read(source: pa.NativeFile) -> list[int]:
        opened = ShardFile(source, file.name)
        if view := view_of(file, opened):
            batches = opened.batches(group, view.stored([name]))
            column = view.live_columns(batches, [name], group)[name]
        else:
            column = opened.read(group, [name])[name]
        column = column.cast(storage_type(column.type))
        widths: list[int] = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
        return widths

    return read_shard(ShardVersion(file.url, file.name, file.version), read)


def ragged_error(shard: str, column: str, narrowest: int, widest: int) -> InputError:
    """The error for a list column whose rows differ in width."""
    return InputError(
        f"shard {shard}, column {column}: lists of {narrowest} to {widest} values; "
        "expected vectors of one width. Pad or cut them, or take the column out of source.features"
    )
