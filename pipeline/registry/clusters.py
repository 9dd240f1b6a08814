"""The ``clusters`` and ``cluster_transitions`` tables: what the registry says of each id."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifacts.records import StoredFile, fingerprint_of, store_file
from pipeline.clustering.matching import KINDS, NONE, Matched, Transitions
from pipeline.errors import ConfigError, InputError
from pipeline.naming import MOST_NAME
from pipeline.registry.entries import (
    CLUSTER_SCHEMA,
    FOLDER,
    TRANSITION_SCHEMA,
    Entry,
    append,
    latest_entry,
    some_entry,
)
from pipeline.schema import texts_of, value_type, vectors, with_column
from pipeline.storage import Store, parquet_bytes, sha256


@dataclass(frozen=True)
class ClusterObservation:
    """A model's clusters on the sample that it was fitted on, by position."""

    model_id: str
    size_K: NDArray[np.int64]  # rows of the sample in each cluster, shape (n_clusters,), int64
    centroids_KD: NDArray[np.float32]  # centroids in the model's embedding, float32
    exemplars: pa.ListArray  # one list of keys as JSON per cluster, nearest row first


def next_id(clusters: pa.Table) -> int:
    """The first id that was never used; the table keeps the ids of clusters that died."""
    return int(pc.max(clusters["cluster_id"]).as_py()) + 1 if len(clusters) else 0


def living(clusters: pa.Table) -> pa.Table:
    """Clusters that have not died."""
    return clusters.filter(clusters["died"].is_null())


def clusters_table(
    before: pa.Table, seen: ClusterObservation, matched: Matched, ds: str
) -> pa.Table:
    """All clusters that ever existed, as of the promotion of a new model.

    ``before`` is the table until then; ``ds`` the date on which clusters are born or die.
    """
    centroids = vectors(seen.centroids_KD.astype(np.float32)).cast(pa.list_(pa.float32()))
    now = pa.table(
        {
            "cluster_id": matched.ids_K,
            "size": seen.size_K.astype(np.int64),
            "model_id": pa.repeat(seen.model_id, len(matched.ids_K)),
            "centroid": centroids,
            "exemplars": seen.exemplars,
        }
    )
    kept = now.filter(pa.array(~matched.born_K))
    places = pc.index_in(kept["cluster_id"], value_set=before["cluster_id"].combine_chunks())
    known = before.take(places.combine_chunks())
    for name in ("name", "born", "died", "parents"):
        kept = kept.append_column(before.schema.field(name), known[name])
    born = now.filter(pa.array(matched.born_K)).sort_by("cluster_id")
    nothing = pa.nulls(len(born), pa.string())
    born = born.append_column("name", nothing).append_column("died", nothing)
    born = born.append_column("born", pa.repeat(ds, len(born)))
    born = born.append_column("parents", _lists(matched.parents, born["cluster_id"].to_numpy()))
    gone = before.filter(pa.array(~np.isin(before["cluster_id"].to_numpy(), matched.ids_K)))
    gone = with_column(gone, "died", pc.fill_null(gone["died"], ds))
    tables = [t.select(CLUSTER_SCHEMA.names).cast(CLUSTER_SCHEMA) for t in (kept, born, gone)]
    return pa.concat_tables(tables).combine_chunks().sort_by("cluster_id")


def transitions_table(transitions: Transitions, ds: str, run_id: str) -> pa.Table:
    """Transitions as rows of ``TRANSITION_SCHEMA``."""
    number = len(transitions.kind)
    columns = {name: pa.array(values) for name, values in vars(transitions).items()} | {
        "ds": pa.repeat(ds, number),
        "run_id": pa.repeat(run_id, number),
        "kind": pa.array(KINDS).take(pa.array(transitions.kind)),
    }
    for name in ("from_id", "to_id"):
        ids = getattr(transitions, name)
        columns[name] = pa.array(ids, mask=ids == NONE)
    return pa.table([columns[n] for n in TRANSITION_SCHEMA.names], schema=TRANSITION_SCHEMA)


def rename(lake: Store, cluster_id: int, name: str, who: str) -> Entry:
    """Rename a cluster by an entry in the registry; a second call changes nothing.

    Raises:
        ConfigError: The name is not valid.
        InputError: There is no such cluster, it died, or another living cluster has that name.
        CommitError: See ``append``.
    """
    name = name.strip()
    if not name or not name.isprintable() or len(name) > MOST_NAME:
        raise ConfigError(
            f"{name!r} is no name for a cluster; give 1 to {MOST_NAME} printable characters"
        )
    entry = some_entry(lake)
    before = lake.read_table(entry.clusters.path)
    after = renamed(before, cluster_id, name)
    if after.equals(before):
        return entry
    return append(
        lake,
        entry.number,
        action="rename",
        commit_id=fingerprint_of(["rename", cluster_id, name, entry.commit_id])[:32],
        who=who,
        reason=f"cluster {cluster_id} is called {name}",
        champion=entry.champion,
        clusters=store_table(lake, "clusters", after),
        transitions=entry.transitions,
    )


def renamed(clusters: pa.Table, cluster_id: int, name: str) -> pa.Table:
    """The table with another name for one cluster; errors as in ``rename``."""
    ids = clusters["cluster_id"].to_numpy()
    found = np.flatnonzero(ids == cluster_id)
    if not len(found):
        raise InputError(f"there is no cluster {cluster_id}; `dec clusters` lists those that live")
    place = int(found[0])
    if (died := clusters["died"][place].as_py()) is not None:
        raise InputError(
            f"cluster {cluster_id} died on {died}; only a cluster that lives gets a name"
        )
    alive = living(clusters)
    same = alive.filter(
        pc.and_(pc.equal(alive["name"], name), pc.not_equal(alive["cluster_id"], cluster_id))
    )
    if len(same):
        raise InputError(
            f"cluster {same['cluster_id'][0]} is called {name!r} already; a name stands for one "
            "cluster that lives. Give another, or rename that one first"
        )
    names = pc.if_else(pa.array(ids == cluster_id), name, clusters["name"])
    return with_column(clusters, "name", names)


def name_clusters(
    lake: Store,
    names: Mapping[int, str],
    who: str,
    *,
    model_id: str,
    hold: Callable[[], None] = lambda: None,
) -> tuple[Entry | None, dict[int, str]]:
    """Name living clusters that have no name, all by one entry of the registry.

    Existing names never change, and no two living clusters get the same name. A second call changes
    nothing. The names describe clusters of ``model_id``; none is given while another model serves.
    Returns the newest entry, None without a registry, and the names of all living clusters in it.

    Raises:
        CommitError: See ``append``, also for ``hold``.
    """
    entry = latest_entry(lake)
    if entry is None:
        return None, {}
    table = lake.read_table(entry.clusters.path)
    alive = living(table)
    known = dict(zip(alive["cluster_id"].to_pylist(), alive["name"].to_pylist(), strict=True))
    taken = {name for name in known.values() if name is not None}
    given: dict[int, str] = {}
    for cluster_id, name in sorted(names.items()):
        if cluster_id in known and known[cluster_id] is None and name not in taken:
            given[cluster_id] = name
            taken.add(name)
    if given and entry.champion.model.model_id == model_id:
        ids = pa.array(list(given), pa.int32())
        place = pc.index_in(table["cluster_id"], value_set=ids)
        new = pa.array(list(given.values()), pa.string()).take(place.combine_chunks())
        column = pc.if_else(pc.is_null(new), table["name"].combine_chunks(), new)
        entry = append(
            lake,
            entry.number,
            action="rename",
            commit_id=fingerprint_of(["name", sorted(given.items()), entry.commit_id])[:32],
            who=who,
            reason=f"{len(given)} clusters without a name got one",
            champion=entry.champion,
            clusters=store_table(lake, "clusters", with_column(table, "name", column)),
            transitions=entry.transitions,
            hold=hold,
        )
        known |= given
    return entry, {cluster: name for cluster, name in known.items() if name is not None}


def store_table(lake: Store, kind: str, table: pa.Table) -> StoredFile:
    """Write a table beside the registry's log, under a name derived from its content.

    So a file that no entry names yet never conflicts with another.
    """
    return store_content(lake, kind, parquet_bytes(table))


def store_content(lake: Store, kind: str, content: bytes) -> StoredFile:
    """Like ``store_table``, for the bytes of a Parquet file."""
    return store_file(lake, f"{FOLDER}/{kind}-{sha256(content)[:16]}.parquet", content)


def keys_as_json(keys: pa.Table) -> list[str]:
    """Each row as a JSON object: numbers, booleans and text as they are, bytes as hex digits.

    Other types as text, which ``pipeline.operations.forgotten_keys.key_table`` reads back.
    """
    columns = [_json_values(column) for column in keys.columns]
    return [
        json.dumps(dict(zip(keys.column_names, row, strict=True)), ensure_ascii=False)
        for row in zip(*columns, strict=True)
    ]


def _json_values(column: pa.ChunkedArray) -> list[object]:
    kind = value_type(column.type)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return list(column.to_pylist())
    return list(texts_of(column))


def _lists(pairs: NDArray[np.int32], ids: NDArray[np.int32]) -> pa.ListArray:
    """For each id, ascending, the second elements of the pairs that begin with it."""
    offsets = np.searchsorted(pairs[:, 0], np.append(ids, np.iinfo(np.int32).max))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(pairs[:, 1]))


def lists_of(values: Sequence[str], rows_K: NDArray[np.int64]) -> pa.ListArray:
    """Values as one list per cluster, of ``rows_K`` values each, in order."""
    offsets = np.concatenate([[0], np.cumsum(rows_K)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.string()))
