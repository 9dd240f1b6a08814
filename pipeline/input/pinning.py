"""Pinning: find the shards, read their footers in parallel, and check that they fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.inputs import FeatureColumn, LakeTable, LeftOutFiles, QuarantinedShard
from pipeline.artifacts.records import fingerprint_of
from pipeline.config import MIN_SAMPLE_ROWS_PER_CLUSTER, AutoClusters, Config
from pipeline.errors import BadShard, ConfigError, InputError, PipelineError
from pipeline.input.bad_shards import check_bound
from pipeline.input.columns import is_vector, memory_dtype, raw_type
from pipeline.input.example import write_digits_once
from pipeline.input.footers import (
    SHARD_SCHEMA,
    ShardFacts,
    known_facts,
    read_footer,
    shard_facts,
    with_schemas,
)
from pipeline.input.hive import folders_above, hive_types_of, with_hive_columns
from pipeline.input.lake_tables.entries import table_of_files, with_entries
from pipeline.input.lake_tables.planning import planned_files
from pipeline.input.lake_tables.recognition import refuse_lake_table
from pipeline.input.profiled_columns import explained_columns
from pipeline.input.selection import Selection, listed, unified
from pipeline.storage import FoundFile, Store, absolute, why
from pipeline.storage.finding import Found, Reason, each_once, find_parquet, root_of
from pipeline.storage.overlap import overlap

# Footers wait for the network, not the processor; more than this only queues at the endpoint.
_FOOTER_THREADS = 16
# Footers requested at a time, so that those that wait to be checked do not grow with the input.
_SHARDS_AHEAD = 2048
_EXAMPLES = 3  # names of files that are left out


@dataclass(frozen=True)
class PinnedInput:
    """What the footers say about the input."""

    # One row per shard, of ``SHARD_SCHEMA``, with the metadata of ``with_schemas``.
    shards: pa.Table
    # Feature columns in the order of the config, with its globs resolved.
    features: tuple[FeatureColumn, ...]
    dtype: str
    carried: pa.Schema
    # Shards whose footers cannot be read; not among ``shards``.
    quarantined: tuple[QuarantinedShard, ...]
    left_out: tuple[LeftOutFiles, ...] = ()  # files of the source that are no shards
    table: LakeTable | None = None  # the lake table that the shards are files of


@dataclass(frozen=True)
class Listing:
    """The files at the locations of the source."""

    shards: list[FoundFile]
    left_out: tuple[LeftOutFiles, ...]


def list_shards(config: Config) -> list[FoundFile]:
    """The shards of ``list_input``."""
    return list_input(config).shards


def list_input(config: Config) -> Listing:
    """List the shards of the source by name, without reading their footers.

    Raises:
        ConfigError: The output lies in the source or above it.
        InputError: A location is missing, cannot be listed, or holds no Parquet.
    """
    if config.source.table is not None:
        return Listing(list(planned_files(config)), ())
    locations = config.source.locations
    if config.source.example == "digits":
        write_digits_once(locations[0])
    files: list[FoundFile] = []
    names: dict[Reason, set[str]] = {}
    for location in locations:
        found = _found(config, location)
        files += found.files
        for reason, some in found.left_out.items():
            names.setdefault(reason, set()).update(some)
    shards, further = each_once(files)
    if further:
        names.setdefault("same_file", set()).update(file.name for file in further)
    if len({file.name for file in shards}) < len(shards):  # two locations with shards of one name
        shards = sorted((replace(f, name=f.url) for f in shards), key=lambda file: file.name)
    left_out = tuple(
        LeftOutFiles(reason=reason, files=len(some), examples=tuple(sorted(some)[:_EXAMPLES]))
        for reason, some in sorted(names.items())
    )
    return Listing(shards, left_out)


def _found(config: Config, location: str) -> Found:
    where = f"source.path={location}"
    try:
        found = find_parquet(location)
    except FileNotFoundError:
        raise InputError(
            f"{where}: nothing exists at {absolute(location)}; "
            "give a Parquet file, a folder, a glob or an s3:// URL"
        ) from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        raise InputError(
            f"{where} cannot be read{place}: {why(error)}; "
            "check the path, the permissions and the endpoint"
        ) from None
    lies = overlap(config.output, location, found)
    if lies == "inside":
        raise ConfigError(
            f"output={config.output} lies in {where}, so a run would read the "
            "output of another; give a folder outside of it"
        )
    if lies == "above":
        raise ConfigError(
            f"output={config.output} lies above {where}, or a link leads from there into it, so a "
            "run would write among the files that it reads; give a folder beside it"
        )
    if config.source.format == "auto":
        refuse_lake_table(location, found.files)
    if not found.files:
        some = [name for of in found.left_out.values() for name in of][:_EXAMPLES]
        raise InputError(
            f"{where} holds no Parquet file; expected names that end in "
            '.parquet, or Parquet in files of other names, and do not start with "_" or "."'
            + (f"; left out: {', '.join(some)}" if some else "")
        )
    return found


def pin(
    config: Config,
    files: Sequence[FoundFile],
    *,
    known: pa.Table | None = None,
    on_footer: Callable[[int], None] = lambda _: None,
) -> PinnedInput:
    """Read all footers and check them against the config and one another.

    ``known`` are the shards of an earlier night: footers of shards that did not change since are
    not read again. The stage that reads the rows then finds a shard that can no longer be read.
    ``on_footer`` is called with the number of footers done.

    Raises:
        InputError: A column is missing or of the wrong type, widths differ, or more shards are bad
            than ``source.on_bad_shard`` and ``source.max_bad_share`` allow to leave out.
    """
    table = table_of_files(files)
    hive_types = {} if table else hive_types_of(file.url for file in files)
    for name in hive_types:  # a new folder must not change what the others are
        if (feature := config.source.feature(name)) and feature.type == "category":
            hive_types[name] = pa.string()
    rows: list[tuple[object, ...]] = []
    threads = ThreadPoolExecutor(_FOOTER_THREADS)
    bad: list[QuarantinedShard] = []
    try:
        selection = _selection(config, files, hive_types, known, threads)
        common = _CommonSchema(config, selection, hive_types)
        footers = known_facts(known, selection, table)
        for start in range(0, len(files), _SHARDS_AHEAD):
            some = files[start : start + _SHARDS_AHEAD]
            requested = [
                footers.get((f.url, f.version, f.bytes))
                or threads.submit(shard_facts, f, selection, hive_types)
                for f in some
            ]
            for number, (file, found) in enumerate(zip(some, requested, strict=True), start + 1):
                try:
                    facts = found.result() if isinstance(found, Future) else found
                except BadShard as error:
                    bad.append(_set_aside(config, file, error))
                    check_bound(config, bad, len(files))
                    continue
                place = common.add(file, facts)
                shard = (file.url, file.name, file.bytes, file.version, sum(facts.rows))
                rows.append((*shard, facts.rows, facts.bytes, facts.widths, place))
                on_footer(number)
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, do not wait for the other footers
    if bad:
        list_shards(config)  # raises where all of the storage is gone, not some shards of it
    columns = dict(zip(SHARD_SCHEMA.names, zip(*rows, strict=True), strict=True))
    shards = pa.table(columns, schema=SHARD_SCHEMA)
    if table:
        left_out = {shard.url for shard in bad}
        shards = with_entries(shards, [file for file in files if file.url not in left_out])
    return common.pinned(shards, bad, table)


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
        return None  # absent, damaged or forbidden: then all footers are read


def footers_path(config: Config) -> str:
    """Cache of the footers for the next night, below the output.

    One file for all dates of a path with ``{ds}``: shards are found in it by URL and version.
    """
    columns = config.content("source.features", "source.keys", "evaluate.label")
    return f"footers/{fingerprint_of(columns)[:20]}.parquet"


def _selection(
    config: Config,
    files: Sequence[FoundFile],
    hive_types: dict[str, pa.DataType],
    known: pa.Table | None,
    threads: ThreadPoolExecutor,
) -> Selection:
    """The columns that the config names, found in the first shard that has rows.

    Raises:
        InputError: No shard has rows.
    """
    empty: set[tuple[str, str]] = set()
    if known is not None:
        without = known.filter(pc.equal(known["rows"], 0)).select(["url", "version"])
        empty = set(zip(*without.to_pydict().values(), strict=True))
    candidates = [file for file in files if (file.url, file.version) not in empty]
    start, some = 0, 1  # nearly always the first has rows; else more and more at a time
    bad: list[QuarantinedShard] = []
    while start < len(candidates):
        requested = candidates[start : start + some]
        for file, found in [(file, threads.submit(read_footer, file)) for file in requested]:
            try:
                footer = found.result()
            except BadShard as error:
                bad.append(_set_aside(config, file, error))
                continue
            if sum(footer.live_rows):
                schema = with_hive_columns(footer.schema, file.url, hive_types)
                explained_columns(config.explain.columns, schema, file.name)  # raises
                roots = map(root_of, config.source.locations)
                above = folders_above((f.url for f in files), roots) if hive_types else ()
                # A column of the file itself is no folder's.
                above = set(above) - set(footer.schema.names)
                return Selection.of(config, schema, file.name, hive_types, above)
        start, some = start + some, min(2 * some, _SHARDS_AHEAD)
    check_bound(config, bad, len(files))
    check_enough_rows(config, 0)
    raise AssertionError("no rows are never enough")


class _CommonSchema:
    """What the schemas of the shards so far have in common."""

    def __init__(
        self, config: Config, selection: Selection, hive_types: dict[str, pa.DataType]
    ) -> None:
        self._config = config
        self._selection = selection
        self._hive_types = hive_types
        self._own: list[pa.Schema] = []  # the schemas of files, each once
        # With the folders' columns: each schema once, and the first shard that has it.
        self._schemas: list[tuple[str, pa.Schema]] = []
        self._widths: dict[str, tuple[int, str]] = {}
        self._last_widths: Sequence[int | None] = ()

    def add(self, file: FoundFile, facts: ShardFacts) -> int | None:
        """Check a shard against those before; returns the place of its schema among them."""
        if facts.schema is None:
            return None
        full = with_hive_columns(facts.schema, file.url, self._hive_types)
        schema = pa.schema([full.field(name) for name in self._selection.all])
        if not any(schema.equals(other) for _, other in reversed(self._schemas)):
            self._selection.check(schema, file.name)  # folders' types depend on all folders
            for other_shard, other in self._schemas:
                self._selection.check_same_meaning(schema, file.name, other, other_shard)
            self._schemas.append((file.name, schema))
        if facts.widths != self._last_widths:
            self._check_widths(file.name, facts.schema, facts.widths)
            self._last_widths = facts.widths
        for place, own in enumerate(self._own):
            if facts.schema is own or facts.schema.equals(own):
                return place
        self._own.append(facts.schema)
        return len(self._own) - 1

    def _check_widths(self, shard: str, schema: pa.Schema, widths: Sequence[int | None]) -> None:
        vectors = (
            name
            for name in self._selection.features
            if name in schema.names and is_vector(schema.field(name).type)
        )
        for name, width in zip(vectors, widths, strict=True):
            if width is None:
                continue
            first, first_shard = self._widths.setdefault(name, (width, shard))
            if width != first:
                raise InputError(
                    f"shard {shard}, column {name}: vectors of width {width}; "
                    f"expected {first} as in shard {first_shard}"
                )

    def pinned(
        self, shards: pa.Table, bad: Sequence[QuarantinedShard], table: LakeTable | None
    ) -> PinnedInput:
        """The result."""
        first = self._first_types()
        features = tuple(
            FeatureColumn(
                name=name,
                width=self._widths.get(name, (1, ""))[0],
                vector=is_vector(first[name]),
                type=self._selection.type_of(name, first[name]),
                dtype=self._selection.dtypes.get(name),
            )
            for name in self._selection.features
        )
        types = [
            raw_type(schema.field(column.name).type, column.type)
            for column in features
            for _, schema in self._schemas
        ]
        typed = any(column.type for column in features)
        may_miss = typed or self._config.source.nulls != "error"
        _check_image_shape(self._config, features)
        if typed:
            _check_for_typed(self._config, features)
        return PinnedInput(
            shards=with_schemas(shards, self._selection, self._own, table),
            features=features,
            dtype=memory_dtype([kind for kind in types if kind], may_miss=may_miss),
            carried=unified(self._schemas, self._selection.carried),
            quarantined=tuple(bad),
            table=table,
        )

    def _first_types(self) -> dict[str, pa.DataType]:
        """Type of each feature in the first shard that has values of it.

        Raises:
            InputError: No shard has.
        """
        types = {}
        for name in self._selection.features:
            kinds = (schema.field(name).type for _, schema in self._schemas)
            kind = next((kind for kind in kinds if not pa.types.is_null(kind)), None)
            if kind is None:
                raise InputError(
                    f"column {name} has no value in any shard: its type is null; take it out of "
                    "source.features"
                )
            types[name] = kind
        return types


def _check_image_shape(config: Config, features: Sequence[FeatureColumn]) -> None:
    shape = config.source.image_shape
    if shape is None:
        return
    if len(features) != 1 or not features[0].vector or features[0].width != math.prod(shape):
        got = ", ".join(f"{c.name} (vector of {c.width})" if c.vector else c.name for c in features)
        raise InputError(
            f"source.image_shape={shape} needs one vector column of {math.prod(shape)} pixels; "
            f"source.features holds {listed([got])}. Correct the shape, or leave it out"
        )


def _check_for_typed(config: Config, features: Sequence[FeatureColumn]) -> None:
    """Refuse settings that work only on rows of plain numbers."""
    typed = next(column for column in features if column.type)
    refused = {
        f"source.scaling={config.source.scaling}": config.source.scaling != "standard",
        f"source.image_shape={config.source.image_shape}": config.source.image_shape is not None,
        f"augment.function={config.augment.function}": config.augment.function is not None,
    }
    for setting in (name for name, is_set in refused.items() if is_set):
        raise InputError(
            f"{setting} works only on plain numbers; column {typed.name} of source.features has "
            f"type {typed.type}, and columns with a type are scaled by it and not augmented. "
            "Leave the setting out"
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
