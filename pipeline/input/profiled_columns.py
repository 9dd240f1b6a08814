"""The columns of ``explain.columns``: which types they may have, and Arrow → numbers or texts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.explanations import ProfiledColumn
from pipeline.artifacts.inputs import Manifest
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.bad_shards import ShardVersion, diagnosed
from pipeline.input.hive import hive_types_of, with_hive_columns
from pipeline.storage import Store, open_input

log = logging.getLogger(__name__)

_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DAY_S = 86_400


def explained_columns(
    names: Sequence[str], schema: pa.Schema, shard: str
) -> tuple[ProfiledColumn, ...]:
    """What the config names, as a shard has it.

    Args:
        names: ``explain.columns``.
        schema: Of the shard, its folders' columns too.
        shard: Its name.

    Raises:
        InputError: A column is missing, or of a type that has neither numbers nor categories.
    """
    found = []
    for name in names:
        if schema.names.count(name) != 1:
            if name in schema.names:
                raise InputError(f"shard {shard} has more than one column {name}; rename one")
            near = difflib.get_close_matches(name, schema.names, n=1)
            known = ", ".join(schema.names[:20]) + (" and more" if len(schema.names) > 20 else "")
            hint = f"did you mean {near[0]}?" if near else f"it has {known}"
            raise InputError(f"explain.columns: shard {shard} has no column {name}; {hint}")
        kind = schema.field(name).type
        if _is_number(kind):
            found.append(ProfiledColumn(name=name, kind="number", type=str(kind), clustered=False))
        elif _is_category(kind):
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            of = {"kind": "category", "type": str(plain), "clustered": False}
            found.append(ProfiledColumn(name=name, **of))
        else:
            raise InputError(
                f"shard {shard}, column {name}: type {kind} cannot be profiled; explain.columns "
                "are numbers, booleans, text, dictionaries of those, dates and timestamps. "
                "Convert the column or take it out of explain.columns"
            )
    return tuple(found)


def explained_of(config: Config, manifest: Manifest, lake: Store) -> tuple[ProfiledColumn, ...]:
    """What the config names, and features whose raw rows are codes, as the first shard has them.

    That is the first that has rows. Others may lack a column: it is missing in all their rows.
    Other features are profiled as raw rows have them.

    Raises:
        BadShard: That shard cannot be read.
        InputError: See ``explained_columns``.
    """
    features = {column.name for column in manifest.features}
    told = manifest.described_columns
    names = [*told, *(name for name in config.explain.columns if name not in features)]
    if not names:
        return ()
    shards = lake.read_table(manifest.shards.path, ["url", "name", "version", "rows"])
    left_out = pa.array([shard.url for shard in manifest.quarantined], pa.string())
    usable = shards.filter(
        pc.and_(pc.greater(shards["rows"], 0), pc.invert(pc.is_in(shards["url"], left_out)))
    )
    (first,) = usable.slice(0, 1).to_pylist()
    shard = ShardVersion(first["url"], first["name"], first["version"])

    def schema_in(source: pa.NativeFile) -> pa.Schema:
        return pq.ParquetFile(source).schema_arrow

    try:
        with open_input(shard.url) as source:
            schema = schema_in(source)
    except (OSError, pa.ArrowException) as error:
        raise diagnosed(shard, error, schema_in) from None
    schema = with_hive_columns(schema, shard.url, hive_types_of(shards["url"].to_pylist()))
    of_features = {"kind": "category", "clustered": True}  # numbers too, where they are categories
    return tuple(
        column.model_copy(update=of_features) if column.name in told else column
        for column in explained_columns(names, schema, shard.name)
    )


def as_numbers(column: pa.ChunkedArray | None, rows: int) -> NDArray[np.float64]:
    """A column as numbers, points in time in seconds since 1970; NaN where it has none.

    Also where it is of another kind than in the first shard: that ends no run, for nothing is
    clustered by it.
    """
    if column is None:
        return np.full(rows, np.nan)
    try:
        return _as_numbers(column)
    except pa.ArrowException as error:
        log.warning("a column of explain.columns is not of one kind in all shards: %s", error)
        return np.full(rows, np.nan)


def _as_numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    per_second = 1.0
    if pa.types.is_timestamp(kind):
        column, per_second = column.cast(pa.int64()), _UNITS[kind.unit]
    elif pa.types.is_date32(kind):
        column, per_second = column.cast(pa.int32()), 1 / _DAY_S
    elif pa.types.is_date64(kind):
        column, per_second = column.cast(pa.int64()), _UNITS["ms"]
    numbers = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    found: NDArray[np.float64] = numbers / per_second if per_second != 1 else numbers
    return found


def as_texts(column: pa.ChunkedArray | None, rows: int) -> pa.Array:
    """A column as texts; null where it has none, or is of a kind that has no texts."""
    if column is None:
        return pa.nulls(rows, pa.string())
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(pa.string()).combine_chunks()
    except pa.ArrowException as error:
        log.warning("a column of explain.columns is not of one kind in all shards: %s", error)
        return pa.nulls(rows, pa.string())


def _is_number(kind: pa.DataType) -> bool:
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(numeric or pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_category(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        return _is_number(kind) or _is_category(kind)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(texts or pa.types.is_string_view(kind) or pa.types.is_boolean(kind))
