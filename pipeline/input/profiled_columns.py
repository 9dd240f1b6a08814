"""Columns of ``explain.columns``: their types, and Arrow → numbers or texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.explanations import ProfiledColumn
from pipeline.artifacts.inputs import Manifest
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.bad_shards import ShardVersion, read_shard
from pipeline.input.columns import column_type, seconds_since_1970
from pipeline.input.hive import hive_types_of, with_hive_columns
from pipeline.input.lake_tables.views import table_schema
from pipeline.input.parquet.opening import ShardFile
from pipeline.input.selection import field_of
from pipeline.schema import decoded, value_type
from pipeline.storage import Store

log = logging.getLogger(__name__)
_ANOTHER_TYPE = "a column of explain.columns has different types in different shards: %s"


def explained_columns(
    names: Sequence[str], schema: pa.Schema, shard: str
) -> tuple[ProfiledColumn, ...]:
    """Find the columns of ``explain.columns`` in the schema of a shard and its folders.

    Raises:
        InputError: A column is missing, or its type is neither numeric nor categorical.
    """
    found = []
    for name in names:
        kind = field_of(schema, name, shard, setting="explain.columns").type
        found_type = column_type(value_type(kind))
        if found_type in (None, "vector"):
            raise InputError(
                f"shard {shard}, column {name}: type {kind} cannot be profiled; explain.columns "
                "are numbers, booleans, text, dictionaries of those, dates and timestamps. "
                "Convert the column or take it out of explain.columns"
            )
        number = found_type in ("number", "timestamp") and not pa.types.is_dictionary(kind)
        column = {"kind": "number" if number else "category", "clustered": False}
        found.append(ProfiledColumn(name=name, type=str(value_type(kind)), **column))
    return tuple(found)


def explained_of(config: Config, manifest: Manifest, lake: Store) -> tuple[ProfiledColumn, ...]:
    """The columns of the config and the features whose raw rows are codes.

    Types are those of the first shard that has rows. Other shards may lack a column: its values are
    then missing in all their rows. Other features are profiled from raw rows.

    Raises:
        BadShard: That shard cannot be read.
        InputError: See ``explained_columns``.
    """
    features = {column.name for column in manifest.features}
    coded = manifest.described_columns
    names = [*coded, *(name for name in config.explain.columns if name not in features)]
    if not names:
        return ()
    shards = lake.read_table(manifest.shards.path, ["url", "name", "version", "rows"])
    left_out = pa.array([shard.url for shard in manifest.quarantined], pa.string())
    usable = shards.filter(
        pc.and_(pc.greater(shards["rows"], 0), pc.invert(pc.is_in(shards["url"], left_out)))
    )
    (first,) = usable.slice(0, 1).to_pylist()
    shard = ShardVersion(first["url"], first["name"], first["version"])
    if manifest.table:
        schema = table_schema(manifest.table)
    else:
        schema = read_shard(shard, lambda source: ShardFile(source, shard.name).footer.schema)
        schema = with_hive_columns(schema, shard.url, hive_types_of(shards["url"].to_pylist()))
    of_features = {"kind": "category", "clustered": True}  # numbers too, where they are categories
    return tuple(
        column.model_copy(update=of_features) if column.name in coded else column
        for column in explained_columns(names, schema, shard.name)
    )


def as_numbers(column: pa.ChunkedArray | None, rows: int) -> NDArray[np.float64]:
    """A column as numbers, points in time in seconds since 1970; NaN where values are missing.

    A column whose type does not fit that of the first shard counts as missing too, and does not
    fail the run: rows are not clustered by it.
    """
    if column is None:
        return np.full(rows, np.nan)
    try:
        column = decoded(column)
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            return seconds_since_1970(column)
        numbers: NDArray[np.float64]
        numbers = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
        return numbers
    except pa.ArrowException as error:
        log.warning(_ANOTHER_TYPE, error)
        return np.full(rows, np.nan)


def as_texts(column: pa.ChunkedArray | None, rows: int) -> pa.Array:
    """A column as texts; null where values are missing, or where its type has no texts."""
    if column is None:
        return pa.nulls(rows, pa.string())
    try:
        return decoded(column).cast(pa.string()).combine_chunks()
    except pa.ArrowException as error:
        log.warning(_ANOTHER_TYPE, error)
        return pa.nulls(rows, pa.string())
