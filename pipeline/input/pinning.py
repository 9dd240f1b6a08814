"""Pinning: find the shards, read their footers in parallel, and check that they fit together."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.inputs import (
    ColumnType,
    FeatureColumn,
    QuarantinedShard,
    decode_schema,
    encode_schema,
)
from pipeline.artifacts.records import fingerprint_of
from pipeline.config import MIN_SAMPLE_ROWS_PER_CLUSTER, AutoClusters, Config
from pipeline.errors import BadShard, ConfigError, InputError, PipelineError
from pipeline.input.bad_shards import ShardVersion, check_bound, diagnosed
from pipeline.input.columns import (
    EXPECTED,
    category_family,
    column_type,
    is_vector,
    may_be,
    memory_dtype,
    number_type,
    raw_type,
    storage_type,
    unknown_zone,
)
from pipeline.input.example import write_digits_once
from pipeline.input.hive import hive_types_of, with_hive_columns
from pipeline.input.profiled_columns import explained_columns
from pipeline.storage import FoundFile, Store, absolute, find_parquet, open_input, why

# Footers wait for the network, not the processor; more than this only queues at the endpoint.
_FOOTER_THREADS = 16
# Shards that are asked for at a time: what waits to be checked does not grow with the input.
_SHARDS_AHEAD = 2048

SHARD_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("name", pa.string()),  # below the source; stands in as key where there is none
        ("bytes", pa.int64()),
        ("version", pa.string()),
        ("rows", pa.int64()),
        ("row_group_rows", pa.list_(pa.int64())),
        ("row_group_bytes", pa.list_(pa.int64())),  # of the wanted columns, as stored
        ("widths", pa.list_(pa.int32())),  # of the feature columns that are vectors
        ("schema", pa.int32()),  # which of the schemas in the table's metadata; null without rows
    ]
)
_METADATA_KEY = b"dec_pipeline"


@dataclass(frozen=True)
class PinnedInput:
    """What the footers say.

    Attributes:
        shards: One row a shard, of ``SHARD_SCHEMA``; its metadata holds the wanted columns and the
            schemas that shards have of them.
        features: The feature columns, globs resolved, in the order of the config.
        dtype: numpy name of the type that holds a raw row.
        carried: Names and types of the key columns and the label.
        quarantined: Shards whose footers cannot be read; not among ``shards``.
    """

    shards: pa.Table
    features: tuple[FeatureColumn, ...]
    dtype: str
    carried: pa.Schema
    quarantined: tuple[QuarantinedShard, ...] = ()


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
    config: Config,
    files: Sequence[FoundFile],
    *,
    known: pa.Table | None = None,
    on_footer: Callable[[int], None] = lambda _: None,
) -> PinnedInput:
    """Read all footers and check them against the config and one another.

    Args:
        config: The settings.
        files: From ``list_shards``.
        known: ``PinnedInput.shards`` of an earlier night: the footers of shards that have not
            changed since are not read again. That one of them can no longer be read, for want of
            a permission for example, then comes out in the stage that reads its rows.
        on_footer: Told how many shards were looked at so far.

    Raises:
        InputError: A column is missing or of the wrong kind, widths differ, or more shards are
            bad than ``source.on_bad_shard`` and ``source.max_bad_share`` let a run leave out.
    """
    hive_types = hive_types_of(file.url for file in files)
    for name in hive_types:  # a new folder must not change what the others are
        if (feature := config.source.feature(name)) and feature.type == "category":
            hive_types[name] = pa.string()
    columns: dict[str, list[object]] = {name: [] for name in SHARD_SCHEMA.names}
    threads = ThreadPoolExecutor(_FOOTER_THREADS)
    bad: list[QuarantinedShard] = []
    try:
        wanted = _wanted(config, files, hive_types, known, threads)
        if wanted is None:
            check_enough_rows(config, 0)
            raise AssertionError("no rows are never enough")
        table = _Table(config, wanted, hive_types)
        footers = _KnownFooters(known, wanted)
        for start in range(0, len(files), _SHARDS_AHEAD):
            some = files[start : start + _SHARDS_AHEAD]
            asked = [
                footers.of(f) or threads.submit(_shard_facts, f, wanted, hive_types) for f in some
            ]
            for number, (file, found) in enumerate(zip(some, asked, strict=True), start + 1):
                try:
                    facts = found.result() if isinstance(found, Future) else found
                except BadShard as error:
                    bad.append(_set_aside(config, file, error))
                    check_bound(config, bad, len(files))
                    continue
                place = table.add(file, facts)
                values = (file.url, file.name, file.bytes, file.version, sum(facts.rows))
                more = (facts.rows, facts.bytes, facts.widths, place)
                for column, value in zip(columns.values(), (*values, *more), strict=True):
                    column.append(value)
                on_footer(number)
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, nobody waits for the other footers
    if bad:
        list_shards(config)  # raises where all of the storage went, not some shards of it
    pinned = table.pinned(pa.table(columns, schema=SHARD_SCHEMA))
    return dataclasses.replace(pinned, quarantined=tuple(bad))


def _set_aside(config: Config, file: FoundFile, bad: BadShard) -> QuarantinedShard:
    if config.source.on_bad_shard == "error":
        raise bad
    facts = {"name": file.name, "url": file.url, "version": file.version, "bytes": file.bytes}
    return QuarantinedShard(**facts, rows=None, stage="pin", reason=bad.reason)


def known_footers(config: Config, lake: Store) -> pa.Table | None:
    """Footers that the last night with the same columns read; None where it left none."""
    try:
        return lake.read_table(footers_path(config))
    except (OSError, pa.ArrowException, PipelineError):
        return None  # absent, damaged or not for us to read: then all footers are read


def footers_path(config: Config) -> str:
    """Cache of the footers for the next night, below the output.

    One file for all dates of a path with ``{ds}``: shards are found in it by URL and version.
    """
    source = config.source.model_dump(mode="json", include={"features", "keys"})
    return f"footers/{fingerprint_of(source | {'label': config.evaluate.label})[:20]}.parquet"


def _wanted(
    config: Config,
    files: Sequence[FoundFile],
    hive_types: dict[str, pa.DataType],
    known: pa.Table | None,
    threads: ThreadPoolExecutor,
) -> _Wanted | None:
    """The columns that the config names, found in the first shard that has rows."""
    empty: set[tuple[str, str]] = set()
    if known is not None:
        without = known.filter(pc.equal(known["rows"], 0)).select(["url", "version"])
        empty = set(zip(*without.to_pydict().values(), strict=True))
    candidates = [file for file in files if (file.url, file.version) not in empty]
    start, some = 0, 1  # nearly always the first has rows; else more and more at a time
    bad: list[QuarantinedShard] = []
    while start < len(candidates):
        asked = candidates[start : start + some]
        for file, found in [(file, threads.submit(_footer, file)) for file in asked]:
            try:
                footer = found.result()
            except BadShard as error:
                bad.append(_set_aside(config, file, error))
                continue
            if sum(footer.rows):
                schema = with_hive_columns(footer.schema, file.url, hive_types)
                explained_columns(config.explain.columns, schema, file.name)  # raises
                return _resolve(config, schema, file.name, hive_types)
        start, some = start + some, min(2 * some, _SHARDS_AHEAD)
    check_bound(config, bad, len(files))
    return None


@dataclass(frozen=True)
class _ShardFacts:
    """What the footer of one shard says about the wanted columns.

    Attributes:
        schema: Those that the file itself holds; folders may hold more. None without rows, for
            then nothing can be wrong, whatever the types.
        widths: Of the features that are vectors, in their order; None where no row tells.
        rows: Of each row group.
        bytes: Of the wanted columns, as stored, of each row group.
    """

    schema: pa.Schema | None
    widths: Sequence[int | None]
    rows: Sequence[int]
    bytes: Sequence[int]


def _shard_facts(
    file: FoundFile, wanted: _Wanted, hive_types: dict[str, pa.DataType]
) -> _ShardFacts:
    """Read a footer, and check that the shard has what is wanted of it."""
    footer = _footer(file)
    if not sum(footer.rows):
        return _ShardFacts(None, (), footer.rows, [0] * len(footer.rows))
    _check_columns(wanted, with_hive_columns(footer.schema, file.url, hive_types), file.name)
    own = [name for name in wanted.all if name in footer.schema.names]
    schema = pa.schema([footer.schema.field(name).remove_metadata() for name in own])
    vectors = [n for n in wanted.features if n in own and is_vector(schema.field(n).type)]
    return _ShardFacts(
        schema,
        [_width(footer, name, file) for name in vectors],
        footer.rows,
        footer.wanted_bytes(own),
    )


class _KnownFooters:
    """Facts of an earlier pinning, by url and version; of other columns they are worth nothing."""

    def __init__(self, shards: pa.Table | None, wanted: _Wanted) -> None:
        self._facts: dict[tuple[str, str, int], _ShardFacts] = {}
        meta = json.loads((shards.schema.metadata or {}).get(_METADATA_KEY, "{}")) if shards else {}
        if shards is None or meta.get("columns") != list(wanted.all):
            return
        schemas = [decode_schema(text) for text in meta["schemas"]]
        names = ("url", "version", "bytes", "schema", "widths", "row_group_rows", "row_group_bytes")
        for url, version, size, place, *rest in zip(
            *(shards[name].to_pylist() for name in names), strict=True
        ):
            schema = None if place is None else schemas[place]
            if not version:
                continue  # an endpoint without entity tags: nothing tells a new file from an old
            self._facts[url, version, size] = _ShardFacts(schema, *rest)

    def of(self, file: FoundFile) -> _ShardFacts | None:
        """Facts of exactly this file, if they are known."""
        return self._facts.get((file.url, file.version, file.bytes))


class _Table:
    """What the shards seen so far have in common."""

    def __init__(self, config: Config, wanted: _Wanted, hive_types: dict[str, pa.DataType]) -> None:
        self._config = config
        self._wanted = wanted
        self._hive_types = hive_types
        self._own: list[pa.Schema] = []  # the schemas of files, each once
        self._schemas: list[tuple[str, pa.Schema]] = []  # folders' columns too, and a shard of each
        self._widths: dict[str, tuple[int, str]] = {}
        self._last_widths: Sequence[int | None] = ()

    def add(self, file: FoundFile, facts: _ShardFacts) -> int | None:
        """Check a shard against those before; returns the place of its schema among them."""
        if facts.schema is None:
            return None
        full = with_hive_columns(facts.schema, file.url, self._hive_types)
        schema = pa.schema([full.field(name) for name in self._wanted.all])
        if not any(schema.equals(other) for _, other in reversed(self._schemas)):
            _check_columns(self._wanted, schema, file.name)  # folders' types depend on all folders
            for name in self._wanted.features:
                self._check_kind(name, file.name, schema)
            self._schemas.append((file.name, schema))
        if facts.widths != self._last_widths:
            self._check_widths(file.name, facts)
            self._last_widths = facts.widths
        for place, own in enumerate(self._own):
            if facts.schema is own or facts.schema.equals(own):
                return place
        self._own.append(facts.schema)
        return len(self._own) - 1

    def _check_widths(self, shard: str, facts: _ShardFacts) -> None:
        assert facts.schema is not None
        vectors = (
            name
            for name in self._wanted.features
            if name in facts.schema.names and is_vector(facts.schema.field(name).type)
        )
        for name, width in zip(vectors, facts.widths, strict=True):
            if width is None:
                continue
            first, first_shard = self._widths.setdefault(name, (width, shard))
            if width != first:
                raise InputError(
                    f"shard {shard}, column {name}: vectors of width {width}; "
                    f"expected {first} as in shard {first_shard}"
                )

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
        types = [self._wanted.type_of(name, of) for of in (kind, expected)]
        families = [category_family(of) for of in (kind, expected)]
        if types[0] != types[1] or (types[0] == "category" and families[0] != families[1]):
            raise InputError(
                f"shard {shard}, column {name}: type {kind} does not mean what {expected} means in "
                f"shard {first_shard}; write the column with one type, or set its type in "
                "source.features"
            )

    def pinned(self, shards: pa.Table) -> PinnedInput:
        """The result."""
        first = self._schemas[0][1]
        features = tuple(
            FeatureColumn(
                name=name,
                width=self._widths.get(name, (1, ""))[0],
                vector=is_vector(first.field(name).type),
                type=self._wanted.type_of(name, first.field(name).type),
            )
            for name in self._wanted.features
        )
        types = [
            [raw_type(schema.field(column.name).type, column.type) for column in features]
            for _, schema in self._schemas
        ]
        typed = any(column.type for column in features)
        may_miss = typed or self._config.source.nulls != "error"
        _check_image_shape(self._config, features)
        if typed:
            _check_for_typed(self._config, features)
        content = {
            "columns": self._wanted.all,
            "schemas": [encode_schema(schema) for schema in self._own],
        }
        return PinnedInput(
            shards=shards.replace_schema_metadata({_METADATA_KEY: json.dumps(content)}),
            features=features,
            dtype=memory_dtype([k for row in types for k in row if k], may_miss=may_miss),
            carried=_unify(self._schemas, self._wanted.carried),
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


def _check_for_typed(config: Config, features: Sequence[FeatureColumn]) -> None:
    """Settings that are for rows of plain numbers alone."""
    typed = next(column for column in features if column.type)
    refused = {
        f"source.scaling={config.source.scaling}": config.source.scaling != "standard",
        f"source.image_shape={config.source.image_shape}": config.source.image_shape is not None,
        f"augment.function={config.augment.function}": config.augment.function is not None,
    }
    for setting in (name for name, is_set in refused.items() if is_set):
        raise InputError(
            f"{setting} is for rows of plain numbers; column {typed.name} of source.features is of "
            f"type {typed.type}, and columns with a type have their own scaling (standard) and no "
            "augmentation. Leave the setting out"
        )


def check_enough_rows(config: Config, rows: int) -> None:
    """Raise an InputError when there are fewer rows than clusters, or too few to find any."""
    if isinstance(config.clusters, AutoClusters):
        if rows < MIN_SAMPLE_ROWS_PER_CLUSTER * 2:
            raise InputError(
                f"clusters: auto needs at least {MIN_SAMPLE_ROWS_PER_CLUSTER * 2} rows; the input "
                f"has {rows}. Give clusters a number, or more rows"
            )
    elif rows < config.clusters:
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
        raise diagnosed(_version(file), error, lambda f: pq.ParquetFile(f).schema_arrow) from None


def _version(file: FoundFile) -> ShardVersion:
    return ShardVersion(file.url, file.name, file.version)


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
        column = _one_column(file, group, name)
        widths = pc.unique(pc.list_value_length(_plain(column))).drop_null().to_pylist()
        if len(widths) > 1:
            raise ragged_error(file.name, name, min(widths), max(widths))
        if widths:
            return int(widths[0])
    return None


def _one_column(file: FoundFile, group: int, name: str) -> pa.ChunkedArray:
    def read(source: pa.NativeFile) -> pa.ChunkedArray:
        return pq.ParquetFile(source).read_row_group(group, columns=[name])[name]

    try:
        with open_input(file.url) as source:
            return read(source)
    except (OSError, pa.ArrowException) as error:
        raise diagnosed(_version(file), error, read) from None


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
    types: Mapping[str, str]  # of the features that the config gives one
    folders: frozenset[str]  # features that are in names of folders

    def type_of(self, name: str, kind: pa.DataType) -> ColumnType | None:
        """The type of a feature column of this Arrow type; None: plain numbers, or none at all."""
        asked = self.types.get(name)
        # What one folder more could turn from numbers into text is told and not guessed.
        if asked is None and (number_type(kind) is not None or name in self.folders):
            return None
        return typing.cast(ColumnType, asked) if asked not in (None, "auto") else column_type(kind)

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.features, *self.carried)))


def _resolve(
    config: Config, schema: pa.Schema, shard: str, hive_types: Mapping[str, pa.DataType]
) -> _Wanted:
    """The columns that the config names, globs expanded against the first shard."""
    features: list[str] = []
    for pattern in config.source.feature_patterns:
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
    asked = {name: config.source.feature(name) for name in features}
    types = {name: feature.type for name, feature in asked.items() if feature}
    folders = frozenset(features) & hive_types.keys()
    return _Wanted(tuple(features), tuple(dict.fromkeys(carried)), label, types, folders)


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
        found = wanted.type_of(name, kind)
        if found is None and number_type(kind) is None:
            instead = (
                "features must be numbers, booleans, strings, timestamps, dates or vectors of "
                "numbers. Convert the column or take it out of source.features"
            )
            if name in wanted.folders:
                instead = (
                    "folders' names are categories only where source.features says so: "
                    f"{{column: {name}, type: category}}"
                )
            raise InputError(
                f"shard {shard}, column {name}: type {kind} is not a number; {instead}"
            )
        if found == "timestamp" and (reason := unknown_zone(kind)):
            raise InputError(
                f"shard {shard}, column {name}: {reason}; hours of the day need the zone's rules. "
                "Write the column in UTC or without a zone"
            )
        if found is not None and not may_be(kind, found):
            own = column_type(kind)
            instead = f"Make it type: {own}" if own else "Convert the column"
            raise InputError(
                f"shard {shard}, column {name}: type {kind} cannot be a {found}, which source."
                f"features says it is; expected {EXPECTED[found]}. {instead}, or take it out of "
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
