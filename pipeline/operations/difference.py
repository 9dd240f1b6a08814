"""``dec diff``: what became of each key between two nights.

The rows of both nights are grouped by key, not joined: one pass over the groups finds what both
have, what only one has, keys that occur twice, and treats null as a key like any other. Memory
stays bounded as in a Grace hash join (Kitsuregawa et al. 1983): rows are first spread by a hash of
their key over files in a temporary folder, and one of those is looked at after the other. Files
that both nights name by reference hold the same rows in the same clusters, and are not read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import Record
from pipeline.errors import InputError
from pipeline.lake.parts import statistics_in
from pipeline.lake.snapshots import Partition, latest_snapshot, read_file_list
from pipeline.registry.entries import Entry, latest_entry
from pipeline.schema import ASSIGNMENT_FIELDS
from pipeline.storage import Store, open_input

# Rows of both nights that are grouped at a time: some hundred MiB with keys of a few dozen bytes.
_BUCKET_ROWS = 4_000_000
# Files that are written at a time; a bucket that is still too large is spread again.
_MOST_BUCKETS = 64
# By then a bucket of 64³ rows of any table has become one: what is left together is one key.
_MOST_SPREADS = 4
_READ_ROWS = 131_072

_FLOWS = pa.schema(
    [
        pa.field("from_id", pa.int32()),  # null: the key is new
        pa.field("to_id", pa.int32()),  # null: the key is gone
        pa.field("rows", pa.int64()),
    ]
)


class Side(Record):
    """One of the two nights.

    Attributes:
        ds: Its logical date.
        run_id: That serves it.
        model_id: That labelled most of it.
        rows: How many.
    """

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
    """What became of one cluster.

    Attributes:
        cluster_id: Which.
        name: If it has one.
        before: Keys in it on the first night.
        after: On the second.
        left: Of those before, now in another cluster.
        arrived: Of those after, then in another cluster.
        gone: Of those before, now nowhere.
        new: Of those after, then nowhere.
    """

    cluster_id: int
    name: str | None
    before: int
    after: int
    left: int
    arrived: int
    gone: int
    new: int

    @property
    def left_share(self) -> float:
        """Of those before."""
        return self.left / max(1, self.before)

    @property
    def arrived_share(self) -> float:
        """Of those after."""
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
    """What ``dec diff`` found.

    Attributes:
        before: The first night.
        after: The second.
        in_both: Keys that both have, once each.
        changed: Those among them whose cluster id differs.
        churn: Their share; None where no key is in both.
        new: Keys that only the second has.
        gone: Keys that only the first has.
        repeated_keys: That a night has more than once; they are in none of the figures above.
        repeated_rows: Rows of both nights that have them.
        shared_files: Part files that both nights name; none of their rows changed.
        shared_rows: Rows in them.
        transitions: Of the nights after the first up to the second, by the registry.
        flows: Keys that changed, the largest flow first.
        flow_count: Flows there are; the smallest are left out of ``flows``.
        moved: Clusters, those first whose members changed most.
    """

    before: Side
    after: Side
    in_both: int
    changed: int
    churn: float | None
    new: int
    gone: int
    repeated_keys: int
    repeated_rows: int
    shared_files: int
    shared_rows: int
    transitions: tuple[Transition, ...]
    flows: tuple[Flow, ...]
    flow_count: int
    moved: tuple[Moved, ...]


def difference(
    lake: Store, before: str, after: str, *, most: int = 1000, bucket_rows: int = _BUCKET_ROWS
) -> Difference:
    """Compare two published nights, key by key.

    Keys of a file that both nights name are taken to be in no other.

    Args:
        lake: The output folder.
        before: ds of the first night.
        after: ds of the second.
        most: Flows, transitions and clusters to return of each.
        bucket_rows: Rows to have in memory at a time.

    Raises:
        InputError: One of them is not published, or they have other keys.
    """
    first, second = _published(lake, before), _published(lake, after)
    files = [_files(lake, partition) for partition in (first, second)]
    shared = files[0].keys() & files[1].keys()
    flows = _shared_flows(lake, [files[0][path] for path in sorted(shared)])
    own = [[files[side][path] for path in files[side].keys() - shared] for side in (0, 1)]
    found = _compared(lake, own[0], own[1], bucket_rows)
    flows = _summed([flows, found.flows])
    names, transitions = _registered(lake, before, after, most)
    changes = _changes(flows)
    stays = flows.filter(pc.and_(pc.is_valid(flows["from_id"]), pc.is_valid(flows["to_id"])))
    in_both, changed = _rows(stays), _rows(changes)
    return Difference(
        before=_side(before, first),
        after=_side(after, second),
        in_both=in_both,
        changed=changed,
        churn=changed / in_both if in_both else None,
        new=_rows(flows.filter(pc.is_null(flows["from_id"]))),
        gone=_rows(flows.filter(pc.is_null(flows["to_id"]))),
        repeated_keys=found.repeated_keys,
        repeated_rows=found.repeated_rows,
        shared_files=len(shared),
        shared_rows=sum(files[0][path].rows for path in shared),
        transitions=transitions,
        flows=tuple(
            Flow(
                from_id=row["from_id"],
                from_name=names.get(row["from_id"]),
                to_id=row["to_id"],
                to_name=names.get(row["to_id"]),
                keys=row["rows"],
            )
            for row in changes.slice(0, most).to_pylist()
        ),
        flow_count=len(changes),
        moved=_moved(flows, names, most),
    )


def _published(lake: Store, ds: str) -> Partition:
    latest = latest_snapshot(lake)
    if latest is None or ds not in latest.partitions:
        known = ", ".join(sorted(latest.partitions)) if latest else "none"
        raise InputError(f"{lake.url} has no published assignments for ds {ds}; it has {known}")
    return latest.partitions[ds]


def _files(lake: Store, partition: Partition) -> dict[str, PartFile]:
    return {file.path: file for file in read_file_list(lake, partition.files).files}


def _side(ds: str, partition: Partition) -> Side:
    return Side(ds=ds, **partition.model_dump(include={"run_id", "model_id", "rows"}))


def _rows(flows: pa.Table) -> int:
    return int(pc.sum(flows["rows"]).as_py() or 0)


def _summed(flows: Sequence[pa.Table]) -> pa.Table:
    """One row for each pair of clusters, whatever they were found in."""
    groups = pa.concat_tables(flows).group_by(["from_id", "to_id"]).aggregate([("rows", "sum")])
    return groups.rename_columns(["from_id", "to_id", "rows"]).cast(_FLOWS)


def _changes(flows: pa.Table) -> pa.Table:
    """Flows to another cluster, the largest first."""
    # Null where a key is new or gone, which no filter lets through.
    changes = flows.filter(pc.not_equal(flows["from_id"], flows["to_id"]))
    order = [("rows", "descending"), ("from_id", "ascending"), ("to_id", "ascending")]
    return changes.sort_by(order)


def _shared_flows(lake: Store, files: Sequence[PartFile]) -> pa.Table:
    """Rows of files that both nights name, by their footers."""
    tables = [_FLOWS.empty_table()]
    for file in files:
        with open_input(lake.locate(file.path)) as source:
            statistics = statistics_in(pq.read_metadata(source))
        if statistics is None:
            raise InputError(
                f"{lake.locate(file.path)} is not a part file that this version reads; compare "
                "with the version that wrote it"
            )
        rows = np.array(statistics.cluster_rows, np.int64).reshape(-1, 2)
        tables.append(pa.table([rows[:, 0], rows[:, 0], rows[:, 1]], _FLOWS.names).cast(_FLOWS))
    return _summed(tables)


# ------------------------------------------------------------------------------ keys of two nights


class _Compared(NamedTuple):
    """Flows between two sets of files, and what of them has no place in it."""

    flows: pa.Table
    repeated_keys: int
    repeated_rows: int


def _compared(
    lake: Store, before: Sequence[PartFile], after: Sequence[PartFile], bucket_rows: int
) -> _Compared:
    """Group the rows of both by key.

    Rows of either have the keys, and the cluster id in "before" or "after", null in the other. Keys
    are numbered, for a source may have a column of any name.
    """
    rows = sum(file.rows for file in (*before, *after))
    if not rows:
        return _Compared(_FLOWS.empty_table(), 0, 0)
    keys = _common_keys(lake, before, after)
    sides = [pa.field("before", pa.int32()), pa.field("after", pa.int32())]
    schema = pa.schema([*(pa.field(f"key_{n}", f.type) for n, f in enumerate(keys)), *sides])
    tables = (
        table
        for side, files in (("before", before), ("after", after))
        for file in files
        for table in _read(lake, file, keys.names, side, schema)
    )
    total = _Compared(_FLOWS.empty_table(), 0, 0)
    for bucket in _buckets(tables, rows, schema, bucket_rows):
        found = _of_bucket(bucket)
        total = _Compared(
            _summed([total.flows, found.flows]),
            total.repeated_keys + found.repeated_keys,
            total.repeated_rows + found.repeated_rows,
        )
    return total


def key_columns(schema: pa.Schema) -> list[str]:
    """Names of the key columns of an assignments table: those before the first of ours."""
    names: list[str] = schema.names
    return names[: schema.get_field_index(ASSIGNMENT_FIELDS[0].name)]


def _common_keys(lake: Store, before: Sequence[PartFile], after: Sequence[PartFile]) -> pa.Schema:
    """The key columns, in types that fit both nights."""
    schemas = []
    for files in (before, after):
        if files:
            with open_input(lake.locate(files[0].path)) as source:
                schema = pq.read_schema(source).remove_metadata()
            keys = (schema.field(name) for name in key_columns(schema))
            schemas.append(pa.schema([pa.field(f.name, _plain(f.type)) for f in keys]))
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


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _read(
    lake: Store, file: PartFile, keys: Sequence[str], side: str, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Keys and cluster ids of a part, some rows at a time."""
    cluster = ASSIGNMENT_FIELDS[0].name
    with open_input(lake.locate(file.path)) as source:
        parquet = pq.ParquetFile(source)
        for batch in parquet.iter_batches(_READ_ROWS, columns=[*keys, cluster]):
            absent = pa.nulls(len(batch), pa.int32())
            ids = {"before": absent, "after": absent, side: batch.column(cluster)}
            columns = [
                _plainly(batch.column(name), schema.field(place).type)
                for place, name in enumerate(keys)
            ]
            yield pa.table([*columns, ids["before"], ids["after"]], schema=schema)


def _plainly(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(kind)


def _buckets(
    tables: Iterator[pa.Table], rows: int, schema: pa.Schema, bucket_rows: int, spreads: int = 0
) -> Iterator[pa.Table]:
    """The same rows in tables of about so many at most; all rows of a key are in one of them."""
    count = min(_MOST_BUCKETS, -(-rows // bucket_rows))
    if count == 1 or spreads == _MOST_SPREADS:
        yield pa.concat_tables([schema.empty_table(), *tables])
        return
    with tempfile.TemporaryDirectory(prefix="dec-diff-") as folder:
        paths = [str(Path(folder, f"{bucket}.arrow")) for bucket in range(count)]
        compressed = pa.ipc.IpcWriteOptions(compression="lz4")
        with ExitStack() as writing:
            writers = [
                writing.enter_context(pa.ipc.new_file(path, schema, options=compressed))
                for path in paths
            ]
            sizes: NDArray[np.int64] = np.zeros(count, np.int64)
            for table in tables:
                # Other bits each time: those above have put the rows here.
                bucket_B = (_hashes(table.select(schema.names[:-2])) >> (16 * spreads)) % count
                order = np.argsort(bucket_B, kind="stable")
                found = np.bincount(bucket_B.astype(np.int64), minlength=count)
                edges = np.concatenate([[0], np.cumsum(found)])
                table = table.take(order)
                for bucket in np.flatnonzero(found):
                    writers[bucket].write_table(table.slice(edges[bucket], found[bucket]))
                sizes += found
        for path, size in zip(paths, sizes.tolist(), strict=True):
            if size:
                with pa.memory_map(path) as file, pa.ipc.open_file(file) as reader:
                    spread = (
                        pa.Table.from_batches([reader.get_batch(number)])
                        for number in range(reader.num_record_batches)
                    )
                    yield from _buckets(spread, size, schema, bucket_rows, spreads + 1)


def _of_bucket(rows: pa.Table) -> _Compared:
    """What became of each key: how often each night has it, and in which cluster."""
    keys = rows.column_names[:-2]
    groups = rows.group_by(keys).aggregate(
        [(side, how) for side in ("before", "after") for how in ("count", "min")]
    )
    repeated = pc.or_(pc.greater(groups["before_count"], 1), pc.greater(groups["after_count"], 1))
    twice = groups.filter(repeated)
    once = groups.filter(pc.invert(repeated))
    flows = once.group_by(["before_min", "after_min"]).aggregate([([], "count_all")])
    return _Compared(
        flows.rename_columns(_FLOWS.names).cast(_FLOWS),
        len(twice),
        sum(int(pc.sum(twice[f"{side}_count"]).as_py() or 0) for side in ("before", "after")),
    )


_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: Knuth's multiplicative hashing
_MIXER = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64 (Steele et al. 2014)


def _hashes(keys: pa.Table) -> NDArray[np.uint64]:
    """A number for each row, the same for equal keys; shape (rows,).

    Each value's text, as bytes b_i, counts as Σ b_i · factor^(i+1) mod 2^64.
    """
    hashes: NDArray[np.uint64] = np.zeros(len(keys), np.uint64)
    for column in keys.columns:
        binary = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        text = column.cast(pa.large_binary() if binary else pa.large_string()).combine_chunks()
        if isinstance(text, pa.ChunkedArray):  # of no chunk
            continue
        text = pc.fill_null(text, b"\xff" if binary else "\x00")
        _, offsets, values = text.buffers()
        edges = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
        content = np.frombuffer(values, np.uint8)[edges[0] : edges[-1]] if values else b""
        start, lengths = edges[:-1] - edges[0], np.diff(edges)
        place = np.arange(len(content)) - np.repeat(start, lengths)
        powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, _FACTOR))
        terms = np.frombuffer(content, np.uint8).astype(np.uint64) * powers[place]
        # Sums over each value, also over empty ones; differences are right modulo 2^64.
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        hashes = hashes * _FACTOR + (sums[start + lengths] - sums[start])
        hashes = (hashes ^ (hashes >> np.uint64(31))) * _MIXER
        hashes ^= hashes >> np.uint64(29)
    return hashes


# ------------------------------------------------------------------------------------ by cluster


def _registered(
    lake: Store, before: str, after: str, most: int
) -> tuple[dict[int, str], tuple[Transition, ...]]:
    """Names of clusters, and transitions after the first night up to the second."""
    entry: Entry | None = latest_entry(lake)
    if entry is None:
        return {}, ()
    named = lake.read_table(entry.clusters.path, ["cluster_id", "name"]).drop_null()
    names = dict(zip(named["cluster_id"].to_pylist(), named["name"].to_pylist(), strict=True))
    wanted = list(Transition.model_fields)
    found: list[pa.Table] = []
    for file in entry.transitions:
        table = lake.read_table(file.path, wanted)
        between = pc.and_(pc.greater(table["ds"], before), pc.less_equal(table["ds"], after))
        found.append(table.filter(between))
    if not found:
        return names, ()
    # What stayed as it was is no news.
    table = pa.concat_tables(found)
    news = pc.or_(
        pc.not_equal(table["kind"], "survival"),
        pc.fill_null(pc.not_equal(table["from_id"], table["to_id"]), True),
    )
    table = table.filter(news).sort_by([("ds", "ascending"), ("rows", "descending")])
    return names, tuple(Transition(**row) for row in table.slice(0, most).to_pylist())


def _moved(flows: pa.Table, names: dict[int, str], most: int) -> tuple[Moved, ...]:
    """Clusters, those first of whose keys before and after the largest share came or went."""
    # -2 is no cluster's id: outliers have -1.
    from_P, to_P = (flows[n].fill_null(-2).to_numpy() for n in ("from_id", "to_id"))
    rows_P = flows["rows"].to_numpy()
    ids_K = np.unique(np.concatenate([from_P, to_P]))
    ids_K = ids_K[ids_K != -2]

    def of_each(places_P: NDArray[np.int32], chosen_P: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Sum of the chosen flows of each cluster, shape (clusters,)."""
        sums: NDArray[np.int64] = np.zeros(len(ids_K), np.int64)
        np.add.at(sums, np.searchsorted(ids_K, places_P[chosen_P]), rows_P[chosen_P])
        return sums

    both_P = (from_P != -2) & (to_P != -2)
    other_P = both_P & (from_P != to_P)
    counts = {
        "before": of_each(from_P, from_P != -2),
        "after": of_each(to_P, to_P != -2),
        "left": of_each(from_P, other_P),
        "arrived": of_each(to_P, other_P),
        "gone": of_each(from_P, to_P == -2),
        "new": of_each(to_P, from_P == -2),
    }
    moved_K = counts["left"] + counts["arrived"]
    share_K = moved_K / np.maximum(1, counts["before"] + counts["after"])
    order = np.lexsort([ids_K, -moved_K, -share_K])[:most]
    return tuple(
        Moved(
            cluster_id=int(ids_K[place]),
            name=names.get(int(ids_K[place])),
            **{name: int(count[place]) for name, count in counts.items()},
        )
        for place in order
    )
