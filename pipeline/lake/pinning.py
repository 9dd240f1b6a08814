"""Pinning: find the shards, read their footers in parallel, and check that they fit together."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import FeatureColumn
from pipeline.config import Config
from pipeline.errors import ConfigError, InputError, PipelineError, TransientError
from pipeline.lake.columns import is_vector, memory_dtype, number_type, storage_type
from pipeline.lake.example import write_digits_once
from pipeline.lake.hive import hive_types_of, with_hive_columns
from pipeline.storage import FoundFile, absolute, find_parquet, open_input, why

# Footers wait for the network, not the processor; more than this only queues at the endpoint.
_FOOTER_THREADS = 16

SHARD_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("name", pa.string()),  # below the source; stands in as key where there is none
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("rows", pa.int64()),
        ("row_group_rows", pa.list_(pa.int64())),
        ("row_group_bytes", pa.list_(pa.int64())),  # of the wanted columns, as stored
    ]
)


@dataclass(frozen=True)
class PinnedInput:
    """What the footers say.

    Attributes:
        shards: One row a shard, of ``SHARD_SCHEMA``.
        features: The feature columns, globs resolved, in the order of the config.
        dtype: numpy name of the type that holds a raw row.
        carried: Names and types of the key columns and the label.
    """

    shards: pa.Table
    features: tuple[FeatureColumn, ...]
    dtype: str
    carried: pa.Schema


def list_shards(config: Config) -> list[FoundFile]:
    """The shards that the source names, by name; their footers are not read.

    Raises:
        ConfigError: The output lies in the source.
        InputError: A location is missing, cannot be listed, or holds no Parquet.
    """
    path = config.source.path
    locations = [path] if isinstance(path, str) else path
    if config.source.example == "digits":
        write_digits_once(locations[0])
    found: dict[str, FoundFile] = {}
    for location in locations:
        if f"{absolute(config.output)}/".startswith(f"{absolute(location).rstrip('/')}/"):
            raise ConfigError(
                f"output={config.output} lies in source.path={location}, so that a run would read "
                "what another one wrote; give a folder beside it"
            )
        try:
            files = find_parquet(location)
        except FileNotFoundError:
            raise InputError(
                f"source.path={location}: there is nothing at {absolute(location)}; "
                "give a Parquet file, a folder, a glob or an s3:// URL"
            ) from None
        except OSError as error:
            raise InputError(
                f"source.path={location}: it cannot be read: {why(error)}; "
                "check the path, the permissions and the endpoint"
            ) from None
        if not files:
            raise InputError(
                f"source.path={location}: no Parquet file is there; expected names that end in "
                '.parquet and do not start with "_" or "."'
            )
        found |= {file.url: file for file in files}
    files = list(found.values())
    if len({file.name for file in files}) < len(files):  # two locations with shards of one name
        files = [FoundFile(f.url, f.url, f.bytes, f.version) for f in files]
    return sorted(files, key=lambda file: file.name)


def pin(
    config: Config, files: Sequence[FoundFile], on_footer: Callable[[int], None] = lambda _: None
) -> PinnedInput:
    """Read all footers and check them against the config and one another.

    Args:
        config: The settings.
        files: From ``list_shards``.
        on_footer: Told how many footers were read so far.

    Raises:
        InputError: A shard is corrupt, a column is missing or of the wrong kind, widths differ.
    """
    table = _Table(config)
    rows: dict[str, list[object]] = {name: [] for name in SHARD_SCHEMA.names}
    hive_types = hive_types_of(file.url for file in files)
    threads = ThreadPoolExecutor(_FOOTER_THREADS)
    try:
        footers = threads.map(_footer, files)
        for number, (file, footer) in enumerate(zip(files, footers, strict=True), 1):
            groups = [0] * len(footer.rows)
            if sum(footer.rows):  # in an empty shard nothing can be wrong, whatever its types
                schema = with_hive_columns(footer.schema, file.url, hive_types)
                groups = footer.wanted_bytes(table.add(file, footer, schema))
            values = (file.url, file.name, file.bytes, file.version, sum(footer.rows))
            for column, value in zip(rows, (*values, footer.rows, groups), strict=True):
                rows[column].append(value)
            on_footer(number)
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, nobody waits for the other footers
    if table.wanted is None:
        check_enough_rows(config, 0)
    return table.pinned(pa.table(rows, schema=SHARD_SCHEMA))


class _Table:
    """What the shards seen so far have in common."""

    def __init__(self, config: Config) -> None:
        self.wanted: _Wanted | None = None
        self._config = config
        self._schemas: list[tuple[str, pa.Schema]] = []  # each that differs from the one before
        self._widths: dict[str, tuple[int, str]] = {}

    def add(self, file: FoundFile, footer: _Footer, schema: pa.Schema) -> tuple[str, ...]:
        """Check a shard against the config and those before; returns the wanted columns."""
        self.wanted = self.wanted or _resolve(self._config, schema, file.name)
        _check_columns(self.wanted, schema, file.name)
        for name in self.wanted.features:
            self._check_kind(name, file.name, schema)
            width = _width(footer, name, file)
            if width is not None:
                first, first_shard = self._widths.setdefault(name, (width, file.name))
                if width != first:
                    raise InputError(
                        f"shard {file.name}, column {name}: vectors of width {width}; "
                        f"expected {first} as in shard {first_shard}"
                    )
        selected = pa.schema([schema.field(name) for name in self.wanted.all])
        if not self._schemas or selected != self._schemas[-1][1]:
            self._schemas.append((file.name, selected))
        return self.wanted.all

    def _check_kind(self, name: str, shard: str, schema: pa.Schema) -> None:
        if not self._schemas:
            return
        first_shard, first = self._schemas[0]
        kind, expected = schema.field(name).type, first.field(name).type
        if is_vector(kind) != is_vector(expected):
            raise InputError(
                f"shard {shard}, column {name}: type {kind}; expected {expected} as in shard "
                f"{first_shard}: vectors in all shards, or scalars in all"
            )

    def pinned(self, shards: pa.Table) -> PinnedInput:
        """The result."""
        assert self.wanted is not None  # some shard has rows
        first = self._schemas[0][1]
        types = [
            [number_type(schema.field(name).type) for name in self.wanted.features]
            for _, schema in self._schemas
        ]
        may_miss = self._config.source.nulls != "error"
        features = tuple(
            FeatureColumn(
                name=name,
                width=self._widths.get(name, (1, ""))[0],
                vector=is_vector(first.field(name).type),
            )
            for name in self.wanted.features
        )
        _check_image_shape(self._config, features)
        return PinnedInput(
            shards=shards,
            features=features,
            dtype=memory_dtype([k for row in types for k in row if k], may_miss=may_miss),
            carried=_unify(self._schemas, self.wanted.carried),
        )


def _check_image_shape(config: Config, features: Sequence[FeatureColumn]) -> None:
    shape = config.source.image_shape
    if shape is None:
        return
    if len(features) != 1 or not features[0].vector or features[0].width != math.prod(shape):
        got = ", ".join(f"{c.name} (vector of {c.width})" if c.vector else c.name for c in features)
        raise InputError(
            f"source.image_shape={shape} needs one vector column of {math.prod(shape)} pixels; "
            f"source.features holds {_listed([got])}. Correct the shape, or leave it out"
        )


def check_enough_rows(config: Config, rows: int) -> None:
    """Raise an InputError when there are fewer rows than clusters."""
    if rows < config.clusters:
        raise InputError(
            f"clusters={config.clusters} needs at least as many rows; the input has {rows}. "
            "Lower clusters or give more rows"
        )


# --------------------------------------------------------------------------------- one footer


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    metadata: pq.FileMetaData

    @property
    def rows(self) -> list[int]:
        return [self.metadata.row_group(g).num_rows for g in range(self.metadata.num_row_groups)]

    @functools.cached_property
    def _leaves(self) -> dict[str, list[int]]:
        """Parquet columns by the Arrow column that they store."""
        if not self.metadata.num_row_groups:
            return {}
        group = self.metadata.row_group(0)
        names: set[str] = set(self.schema.names)
        leaves: dict[str, list[int]] = {}
        for number in range(group.num_columns):
            path = group.column(number).path_in_schema
            # "x.norm" may be a column of its own beside "x", whose leaf is "x.list.element".
            name = path
            while name not in names and "." in name:
                name = name.rpartition(".")[0]
            leaves.setdefault(name, []).append(number)
        return leaves

    def leaves(self, name: str) -> list[int]:
        """Parquet columns that store an Arrow column."""
        return self._leaves.get(name, [])

    def wanted_bytes(self, names: Iterable[str]) -> list[int]:
        leaves = [leaf for name in names for leaf in self.leaves(name)]
        return [
            sum(self.metadata.row_group(g).column(c).total_compressed_size for c in leaves)
            for g in range(self.metadata.num_row_groups)
        ]


def _footer(file: FoundFile) -> _Footer:
    try:
        with open_input(file.url) as source:
            parquet = pq.ParquetFile(source)
            return _Footer(parquet.schema_arrow, parquet.metadata)
    except (OSError, pa.ArrowException) as error:
        raise unreadable_shard(file.name, error) from None


def unreadable_shard(shard: str, error: Exception) -> PipelineError:
    """What a corrupt, truncated, vanished or forbidden shard leads to, or a storage that fails."""
    reason = why(error)
    # Arrow raises a plain OSError for everything that S3 answers; these may answer differently
    # next time.
    passing = ("SLOW_DOWN", "THROTTL", "NETWORK_CONNECTION", "INTERNAL_FAILURE", "TIMEOUT", "curl")
    if isinstance(error, (TimeoutError, ConnectionError)) or (
        isinstance(error, OSError) and any(word in reason for word in passing)
    ):
        return TransientError(
            f"shard {shard} cannot be read now: {reason}; the same run id continues"
        )
    return InputError(
        f"shard {shard} cannot be read: {reason}; restore it, or take it out of source.path"
    )


def _width(footer: _Footer, name: str, file: FoundFile) -> int | None:
    """Width of a vector column; None for a scalar, and where no row tells."""
    if name not in footer.schema.names:
        return None  # a hive column
    kind = storage_type(footer.schema.field(name).type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not is_vector(kind) or not sum(footer.rows):
        return None
    (leaf,) = footer.leaves(name)
    for group in (g for g, rows in enumerate(footer.rows) if rows):
        chunk = footer.metadata.row_group(group).column(leaf)
        # The footer counts a null list as one value, so it tells the width only without nulls.
        counted = chunk.statistics is not None and chunk.statistics.has_null_count
        width, rest = divmod(chunk.num_values, footer.rows[group])
        if counted and not chunk.statistics.null_count and not rest:
            return int(width)
        with open_input(file.url) as source:
            column = pq.ParquetFile(source).read_row_group(group, columns=[name])[name]
        widths = pc.unique(pc.list_value_length(_plain(column))).drop_null().to_pylist()
        if len(widths) > 1:
            raise ragged_error(file.name, name, min(widths), max(widths))
        if widths:
            return int(widths[0])
    return None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without its extension type."""
    kind = storage_type(column.type)
    return column if kind == column.type else column.cast(kind)


def ragged_error(shard: str, column: str, narrowest: int, widest: int) -> InputError:
    """What a list column with rows of different width leads to."""
    return InputError(
        f"shard {shard}, column {column}: lists of {narrowest} to {widest} values; "
        "expected vectors of one width. Pad or cut them, or take the column out of source.features"
    )


# ------------------------------------------------------------------- columns against the config


@dataclass(frozen=True)
class _Wanted:
    features: tuple[str, ...]
    carried: tuple[str, ...]
    label: str | None

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.features, *self.carried)))


def _resolve(config: Config, schema: pa.Schema, shard: str) -> _Wanted:
    """The columns that the config names, globs expanded against the first shard."""
    features: list[str] = []
    for pattern in config.source.features:
        if pattern in schema.names or not re.search(r"[*?\[]", pattern):
            features.append(pattern)
            continue
        # A glob means features: what identifies a row, or tells its class, is none.
        others = {*config.source.keys, config.evaluate.label}
        matches = [n for n in schema.names if fnmatch.fnmatchcase(n, pattern) and n not in others]
        if not matches:
            raise InputError(
                f"source.features: {pattern} matches no column of shard {shard}; "
                f"its columns are {_listed(schema.names)}"
            )
        features += matches
    if twice := sorted({name for name in features if features.count(name) > 1}):
        raise InputError(
            f"source.features names column {', '.join(twice)} more than once after its globs are "
            "resolved; name each column once"
        )
    label = config.evaluate.label
    carried = (*config.source.keys, *([label] if label else []))
    return _Wanted(tuple(features), tuple(dict.fromkeys(carried)), label)


def _check_columns(wanted: _Wanted, schema: pa.Schema, shard: str) -> None:
    for name in wanted.all:
        if schema.names.count(name) != 1:
            if name in schema.names:
                raise InputError(f"shard {shard} has more than one column {name}; rename one")
            near = difflib.get_close_matches(name, schema.names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {_listed(schema.names)}"
            raise InputError(f"shard {shard} has no column {name}; {hint}")
    if wanted.label is not None:
        kind = schema.field(wanted.label).type
        if pa.types.is_nested(storage_type(kind)) or pa.types.is_binary(kind):
            raise InputError(
                f"shard {shard}, column {wanted.label}: type {kind} cannot be a label; "
                "evaluate.label must name a column of numbers or strings"
            )
    for name in wanted.features:
        kind = schema.field(name).type
        if number_type(kind) is None:
            raise InputError(
                f"shard {shard}, column {name}: type {kind} is not a number; features must be "
                "numbers or vectors of numbers. Convert the column or take it out of "
                "source.features"
            )


def _unify(schemas: Sequence[tuple[str, pa.Schema]], names: Sequence[str]) -> pa.Schema:
    """One type for each carried column that holds the values of every shard."""
    unified = pa.schema([schemas[0][1].field(name).remove_metadata() for name in names])
    for shard, schema in schemas[1:]:
        other = pa.schema([schema.field(name).remove_metadata() for name in names])
        if other == unified:
            continue
        # Dictionaries survive only where every shard has the same; else their plain values do.
        left, right = _plain_where_different(unified, other), _plain_where_different(other, unified)
        try:
            unified = pa.unify_schemas([left, right], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            differing = next(n for n in names if left.field(n).type != right.field(n).type)
            raise InputError(
                f"shard {shard}, column {differing}: type {right.field(differing).type} does not "
                f"fit {left.field(differing).type} as in the shards before; "
                "write the column with one type"
            ) from None
    return unified


def _plain_where_different(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    return pa.schema(
        field.with_type(field.type.value_type)
        if pa.types.is_dictionary(field.type) and field.type != other.field(field.name).type
        else field
        for field in schema
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
