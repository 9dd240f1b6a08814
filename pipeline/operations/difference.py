"""``dec diff``: compare two published nights, key by key.

DuckDB groups the rows of both nights by key. A group shows whether both nights have the key, or
only one, or whether it is repeated; null is a key like any other. DuckDB keeps to a memory limit
and spills to a temporary folder; it reads through the Arrow readers of this package, never a store
itself (infra/decisions/0034-duckdb-compares-nights.md). Part files that both nights name hold the
same rows in the same clusters, and are not read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import Record
from pipeline.errors import InputError, StorageFull
from pipeline.lake.parts import key_columns, statistics_in
from pipeline.lake.snapshots import Partition, published, read_file_list
from pipeline.registry.entries import CLUSTER_SCHEMA, TRANSITION_SCHEMA, latest_entry
from pipeline.schema import ASSIGNMENT_FIELDS, decoded, storage_type, value_type
from pipeline.storage import Store, open_input, why

# For DuckDB's groups; beyond it they spill to disk.
_MEMORY_MIB = 512
# One reader feeds them all, so that more only need more memory: each has buffers of its own.
_THREADS = 4
_READ_ROWS = 131_072

R = TypeVar("R", bound=Record)

# One row for each pair of clusters that keys went between; from_id is null where a key is new,
# to_id where it is gone.
_FLOWS = """
CREATE TABLE flows AS
WITH by_key AS (
    SELECT min(before) AS from_id, min(after) AS to_id,
           count(before) AS times_before, count(after) AS times_after
    FROM part_rows GROUP BY {keys}
)
SELECT from_id, to_id, count(*) AS keys, sum(times_before + times_after) AS all_rows,
       times_before > 1 OR times_after > 1 AS repeated
FROM by_key GROUP BY ALL
UNION ALL SELECT cluster_id, cluster_id, rows, 2 * rows, false FROM shared
"""
_TOTALS = """
SELECT coalesce(sum(keys) FILTER (NOT repeated AND from_id + to_id IS NOT NULL), 0) AS in_both,
       coalesce(sum(keys) FILTER (NOT repeated AND from_id <> to_id), 0) AS changed,
       changed / nullif(in_both, 0) AS churn,
       coalesce(sum(keys) FILTER (NOT repeated AND from_id IS NULL), 0) AS new,
       coalesce(sum(keys) FILTER (NOT repeated AND to_id IS NULL), 0) AS gone,
       coalesce(sum(keys) FILTER (repeated), 0) AS repeated_keys,
       coalesce(sum(all_rows) FILTER (repeated), 0) AS repeated_rows,
       count(DISTINCT (from_id, to_id)) FILTER (NOT repeated AND from_id <> to_id) AS flow_count
FROM flows
"""
_CHANGES = """
SELECT from_id, before.name AS from_name, to_id, after.name AS to_name, sum(keys) AS keys
FROM flows
LEFT JOIN names AS before ON before.cluster_id = from_id
LEFT JOIN names AS after ON after.cluster_id = to_id
WHERE NOT repeated AND from_id <> to_id
GROUP BY ALL ORDER BY keys DESC, from_id, to_id LIMIT $most
"""
_MOVED = """
WITH ends AS (
    SELECT from_id AS cluster_id, to_id AS other_id, keys, true AS first
    FROM flows WHERE NOT repeated AND from_id IS NOT NULL
    UNION ALL SELECT to_id, from_id, keys, false
    FROM flows WHERE NOT repeated AND to_id IS NOT NULL
)
SELECT cluster_id, any_value(name) AS name,
       coalesce(sum(keys) FILTER (first), 0) AS before,
       coalesce(sum(keys) FILTER (NOT first), 0) AS after,
       coalesce(sum(keys) FILTER (first AND other_id <> cluster_id), 0) AS left,
       coalesce(sum(keys) FILTER (NOT first AND other_id <> cluster_id), 0) AS arrived,
       coalesce(sum(keys) FILTER (first AND other_id IS NULL), 0) AS gone,
       coalesce(sum(keys) FILTER (NOT first AND other_id IS NULL), 0) AS new
FROM ends LEFT JOIN names USING (cluster_id) GROUP BY cluster_id
ORDER BY ("left" + arrived) / (before + after) DESC, "left" + arrived DESC, cluster_id LIMIT $most
"""
# Clusters that keep their id are left out.
_TRANSITIONS = """
SELECT {columns} FROM transitions
WHERE ds > $before AND ds <= $after AND (kind <> 'survival' OR from_id IS DISTINCT FROM to_id)
ORDER BY ds, rows DESC LIMIT $most
"""


class Side(Record):
    """One of the two nights: the run that serves it, and the model that labelled most of it."""

    ds: str
    run_id: str
    model_id: str
    rows: int


class Flow(Record):
    """Keys that went from one cluster to another."""

    from_id: int
    from_name: str | None
    to_id: int
    to_name: str | None
    keys: int


class Moved(Record):
    """How the keys of one cluster changed."""

    cluster_id: int
    name: str | None
    before: int
    after: int
    left: int  # keys of the first night that are now in another cluster
    arrived: int  # keys of the second night that were in another cluster
    gone: int  # keys of the first night that the second lacks
    new: int  # keys of the second night that the first lacks

    @property
    def left_share(self) -> float:
        """Share of the keys of the first night that left."""
        return self.left / max(1, self.before)

    @property
    def arrived_share(self) -> float:
        """Share of the keys of the second night that arrived."""
        return self.arrived / max(1, self.after)


class Transition(Record):
    """A row of the registry's ``cluster_transitions``; see ``pipeline.registry.entries``."""

    ds: str
    run_id: str
    kind: str
    from_id: int | None
    to_id: int | None
    rows: int
    from_rows: int
    to_rows: int


class Difference(Record):
    """Result of ``dec diff``."""

    before: Side
    after: Side
    in_both: int  # keys that both have, once each
    changed: int  # keys in both whose cluster id differs
    churn: float | None  # ``changed / in_both``; None where no key is in both
    new: int  # keys that only the second has
    gone: int  # keys that only the first has
    repeated_keys: int  # keys that a night has more than once; no figure above counts them
    repeated_rows: int  # rows of both nights with such keys
    shared_files: int  # part files that both nights name; none of their rows changed
    shared_rows: int
    # Transitions in the registry, after the first night up to the second.
    transitions: tuple[Transition, ...]
    flows: tuple[Flow, ...]  # keys that changed, the largest flow first
    flow_count: int  # number of flows; ``flows`` leaves out the smallest
    moved: tuple[Moved, ...]  # clusters, those first whose members changed most


def difference(
    lake: Store, before: str, after: str, *, most: int = 1000, memory_mib: int = _MEMORY_MIB
) -> Difference:
    """Compare two published nights, key by key.

    A key of a file that both nights name is taken to be in no other file. ``most`` limits the
    flows, the transitions and the clusters in the result.

    Raises:
        InputError: A night is not published, or the nights have different keys.
        StorageFull: Neither memory nor the temporary folder has room for the keys.
    """
    first, second = published(lake, before)[before], published(lake, after)[after]
    files = [
        {file.path: file for file in read_file_list(lake, partition.files).files}
        for partition in (first, second)
    ]
    shared = [files[0][path] for path in sorted(files[0].keys() & files[1].keys())]
    own = [[file for path, file in files[n].items() if path not in files[1 - n]] for n in (0, 1)]
    with tempfile.TemporaryDirectory(prefix="dec-diff-") as folder:
        settings: dict[str, Any] = {
            "memory_limit": f"{memory_mib}MiB",
            "temp_directory": folder,
            "threads": _THREADS,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
        }
        with closing(duckdb.connect(config=settings)) as database:
            _compare(database, lake, own, shared)
            _read_registry(database, lake)
            transitions = _TRANSITIONS.format(columns=", ".join(Transition.model_fields))
            between = {"before": before, "after": after, "most": most}
            return Difference(
                before=_side(before, first),
                after=_side(after, second),
                shared_files=len(shared),
                shared_rows=sum(file.rows for file in shared),
                transitions=_found(Transition, database, transitions, **between),
                flows=_found(Flow, database, _CHANGES, most=most),
                moved=_found(Moved, database, _MOVED, most=most),
                **_rows(database, _TOTALS)[0],
            )


def _rows(database: duckdb.DuckDBPyConnection, query: str, **values: Any) -> list[dict[str, Any]]:
    result = database.execute(query, values)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _found(
    kind: type[R], database: duckdb.DuckDBPyConnection, query: str, **values: Any
) -> tuple[R, ...]:
    return tuple(kind.model_validate(row) for row in _rows(database, query, **values))


def _side(ds: str, partition: Partition) -> Side:
    return Side(ds=ds, **partition.model_dump(include={"run_id", "model_id", "rows"}))


# ------------------------------------------------------------------------------ keys of two nights


def _compare(
    database: duckdb.DuckDBPyConnection,
    lake: Store,
    own: Sequence[Sequence[PartFile]],
    shared: Sequence[PartFile],
) -> None:
    """Create the table ``flows``, from the part files of each night's own and the shared ones."""
    # A row has its cluster id in "before" or "after", and null in the other. Keys are numbered, for
    # a source may have a column of any name.
    keys = _common_keys(lake, own)
    fields = [
        pa.field(f"key_{n}", _bits(pa.array([], field.type)).type) for n, field in enumerate(keys)
    ]
    sides = [pa.field("before", pa.int32()), pa.field("after", pa.int32())]
    schema = pa.schema([*fields, *sides])
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for side, files in enumerate(own):
                for file in files:
                    yield from _read(lake, file, keys, side, schema)
        except Exception as error:
            failed.append(error)  # DuckDB passes on its text alone
            raise

    in_shared = [row for file in shared for row in _cluster_rows(lake, file)]
    columns = [pa.array([row[n] for row in in_shared], pa.int64()) for n in (0, 1)]
    database.register("shared", pa.table(columns, ["cluster_id", "rows"]))
    database.register("part_rows", pa.RecordBatchReader.from_batches(schema, batches()))
    try:
        database.execute(_FLOWS.format(keys=", ".join(schema.names[:-2])))
    except duckdb.Error as error:
        if failed:
            raise failed[0] from None
        if not isinstance(error, (duckdb.OutOfMemoryException, duckdb.IOException)):
            raise
        raise StorageFull(
            f"{tempfile.gettempdir()} has no room to compare the keys of the two nights: "
            f"{why(error)}; make room, or set TMPDIR to a folder on a larger disk"
        ) from None


def _cluster_rows(lake: Store, file: PartFile) -> Sequence[Sequence[int]]:
    """Cluster ids and their number of rows in a part, by its footer."""
    with open_input(lake.locate(file.path)) as source:
        statistics = statistics_in(pq.read_metadata(source))
    if statistics is None:
        raise InputError(
            f"{lake.locate(file.path)} is not a part file that this version reads; compare "
            "with the version that wrote it"
        )
    return statistics.cluster_rows


def _common_keys(lake: Store, own: Sequence[Sequence[PartFile]]) -> pa.Schema:
    """Key columns, in types that fit both nights."""
    schemas = []
    for files in own:
        if files:
            with open_input(lake.locate(files[0].path)) as source:
                schema = pq.read_schema(source).remove_metadata()
            keys = (schema.field(name) for name in key_columns(schema))
            schemas.append(pa.schema([pa.field(f.name, value_type(f.type)) for f in keys]))
    if not schemas:
        return pa.schema([("none", pa.int64())])
    try:
        if schemas[0].names != schemas[-1].names:
            raise pa.ArrowInvalid("other columns")
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        described = (
            ", ".join(f"{field.name}: {field.type}" for field in schema) for schema in schemas
        )
        raise InputError(
            f"the nights have different keys, {' and '.join(described)}; only nights of one "
            "source.keys can be compared"
        ) from None


def _read(
    lake: Store, file: PartFile, keys: pa.Schema, side: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Keys and cluster ids of a part, some rows at a time."""
    cluster = ASSIGNMENT_FIELDS[0].name
    with open_input(lake.locate(file.path)) as source:
        parquet = pq.ParquetFile(source)
        for batch in parquet.iter_batches(_READ_ROWS, columns=[*keys.names, cluster]):
            columns = [_bits(decoded(batch.column(field.name)).cast(field.type)) for field in keys]
            ids = [pa.nulls(len(batch), pa.int32()), pa.nulls(len(batch), pa.int32())]
            ids[side] = batch.column(cluster)
            yield pa.record_batch([*columns, *ids], schema=schema)


def _bits(column: pa.Array) -> pa.Array:
    """The same bytes as whole numbers or binary, whose equality DuckDB and Arrow agree on.

    DuckDB lacks some types, cuts off the nanoseconds of others, and takes -0.0 for 0.0.
    """
    kind = storage_type(column.type)
    column = column.cast(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
    try:
        bits = kind.bit_width
    except ValueError:  # the values have different lengths
        return column
    whole = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
    if bits in whole:
        return column.view(whole[bits])
    # DuckDB 1.1 reads wrong values from columns of a fixed size.
    return column.view(pa.binary(bits // 8)).cast(pa.binary()) if bits > 1 else column


def _read_registry(database: duckdb.DuckDBPyConnection, lake: Store) -> None:
    """Register the tables ``names`` and ``transitions``; empty ones before the first night."""
    names, transitions = CLUSTER_SCHEMA.empty_table(), [TRANSITION_SCHEMA.empty_table()]
    if entry := latest_entry(lake):
        names = lake.read_table(entry.clusters.path, ["cluster_id", "name"])
        transitions += [lake.read_table(file.path) for file in entry.transitions]
    database.register("names", names.select(["cluster_id", "name"]))
    columns = list(Transition.model_fields)
    database.register("transitions", pa.concat_tables(t.select(columns) for t in transitions))
