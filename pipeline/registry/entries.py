"""The registry: the champion, and the permanent ids and names of its clusters.

``registry/<n>.json`` is a log like that of snapshots: each entry is created by put-if-absent and
never changed, and the newest counts. An entry names the champion and its versions of the
``clusters`` and ``cluster_transitions`` tables. Ids are never reused: the clusters table keeps
those that died.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import pyarrow as pa
from pydantic import PositiveInt

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.nights import Champion
from pipeline.artifacts.records import Record, StoredFile, utc_now
from pipeline.errors import CommitConflict, InputError
from pipeline.lake.commit_log import CommitLog
from pipeline.lake.receipts import Rewritten, read_receipts, replacements
from pipeline.storage import Store

log = logging.getLogger(__name__)

FOLDER = "registry"

Action = Literal["promote", "rollback", "rename", "forget"]

CLUSTER_SCHEMA = pa.schema(
    [
        pa.field("cluster_id", pa.int32(), nullable=False),
        pa.field("name", pa.string()),  # null: not named yet
        pa.field("born", pa.string(), nullable=False),  # ds
        pa.field("died", pa.string()),  # ds; null: it lives
        pa.field("parents", pa.list_(pa.int32()), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # rows of that model's sample
        pa.field("model_id", pa.string(), nullable=False),  # model that had it last
        pa.field("centroid", pa.list_(pa.float32()), nullable=False),  # in that model's embedding
        pa.field("exemplars", pa.list_(pa.string()), nullable=False),  # keys as JSON, nearest first
    ]
)

TRANSITION_SCHEMA = pa.schema(
    [
        pa.field("ds", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        # survival, split, merge, birth, death
        pa.field("kind", pa.string(), nullable=False),
        pa.field("from_id", pa.int32()),  # null for a birth out of nothing
        pa.field("to_id", pa.int32()),  # null for a death into nothing
        pa.field("rows", pa.int64(), nullable=False),  # of the reference sample, in both
        pa.field("from_rows", pa.int64(), nullable=False),  # in the old cluster
        pa.field("to_rows", pa.int64(), nullable=False),  # in the new one
        # Rows of tonight's sample that the old model puts into from_id, and the new into to_id.
        pa.field("from_rows_now", pa.int64(), nullable=False),
        pa.field("to_rows_now", pa.int64(), nullable=False),
    ]
)


class Entry(Record):
    """Content of ``registry/<n>.json``."""

    number: PositiveInt
    # "promote": a challenger took over; "rollback": an earlier champion came back; "rename": a
    # cluster got another name; "forget": the reference sample and the clusters table lost some
    # rows' keys.
    action: Action
    commit_id: str  # identifies the change, so that one whose answer was lost is recognised
    who: str
    at: str  # time in UTC, by that machine's clock; numbers decide which is newer
    why: str
    champion: Champion
    clusters: StoredFile  # Parquet file of ``CLUSTER_SCHEMA``: all clusters that ever were
    # Parquet files of ``TRANSITION_SCHEMA``: all that ever happened.
    transitions: tuple[StoredFile, ...]


_LOG = CommitLog(FOLDER, Entry, lambda entry: entry.number, "an entry of the registry")


def entry_numbers(lake: Store) -> list[int]:
    """Numbers of all entries, ascending."""
    return list(_LOG.files(lake))


def latest_entry(lake: Store) -> Entry | None:
    """The newest entry; None before the first night."""
    numbers = entry_numbers(lake)
    return read_entry(lake, numbers[-1]) if numbers else None


def some_entry(lake: Store) -> Entry:
    """The newest entry.

    Raises:
        InputError: There is none.
    """
    if (entry := latest_entry(lake)) is None:
        raise InputError(
            f"{lake.locate(FOLDER)} has no clusters with permanent ids; `dec nightly` makes them"
        )
    return entry


def read_entry(lake: Store, number: int) -> Entry:
    """The entry of this number, with the files that ``dec forget`` put in place of its own.

    Raises:
        FileNotFoundError: There is none.
        InputError: It cannot be read by this version.
    """
    entry = _LOG.read(lake, number)
    champion, clusters = without_forgotten(lake, entry.champion, entry.clusters)
    return entry.model_copy(update={"champion": champion, "clusters": clusters})


def append(
    lake: Store,
    after: int,
    *,
    action: Action,
    commit_id: str,
    who: str,
    reason: str,
    champion: Champion,
    clusters: StoredFile,
    transitions: tuple[StoredFile, ...],
    hold: Callable[[], None] = lambda: None,
) -> Entry:
    """Add the entry that follows a given one; a second call changes nothing.

    ``after`` is the number of the newest entry that the caller has seen, 0 for none; ``reason`` is
    the entry's ``why``. ``hold`` is called right before the commit; it raises where that must not
    happen.

    Raises:
        CommitConflict: The registry was changed meanwhile.
        CommitError: The storage refuses, and nothing was changed.
        CommitStateUnknown: The storage failed, and it is unknown whether the entry was written.
    """
    entry = Entry(
        number=after + 1,
        action=action,
        commit_id=commit_id,
        who=who,
        at=utc_now(),
        why=reason,
        champion=champion,
        clusters=clusters,
        transitions=transitions,
    )
    hold()
    there = _LOG.put(lake, entry, who=who, landed=f"the {action} is done", again="the same")
    if there.commit_id == commit_id:
        return there
    raise CommitConflict(
        f"{lake.locate(_LOG.path(entry.number))}: {there.who} changed the registry meanwhile "
        f"({there.action}: {there.why}); look at it, and run yours again"
    )


def append_forgotten(
    lake: Store, commit_id: str, who: str, *, hold: Callable[[], None] = lambda: None
) -> Entry | None:
    """Add an entry that names the files without the forgotten rows; see ``append``.

    Returns the newest entry, also where nothing had to change; None without a registry.
    """
    numbers = entry_numbers(lake)
    if not numbers:
        return None
    written = _LOG.read(lake, numbers[-1])
    now = read_entry(lake, numbers[-1])
    if now == written:
        return now
    return append(
        lake,
        now.number,
        action="forget",
        commit_id=f"{commit_id}-{now.number}",
        who=who,
        reason="rows were forgotten; see the receipt",
        champion=now.champion,
        clusters=now.clusters,
        transitions=now.transitions,
        hold=hold,
    )


def without_forgotten(
    lake: Store, champion: Champion, clusters: StoredFile
) -> tuple[Champion, StoredFile]:
    """A champion or challenger, and its clusters table, without forgotten rows."""
    replaced = replacements(read_receipts(lake))
    clusters, _ = replaced_by(clusters, replaced)
    before = champion.reference.sample
    sample = _sample_now(before, replaced)
    if sample is before:
        return champion, clusters
    reference = champion.reference.model_copy(update={"sample": sample})
    return champion.model_copy(update={"reference": reference}), clusters


def sample_without_forgotten(lake: Store, sample: Sample) -> Sample:
    """A sample without forgotten rows."""
    return _sample_now(sample, replacements(read_receipts(lake)))


def _sample_now(sample: Sample, replaced: Mapping[str, Rewritten]) -> Sample:
    kept = [replaced_by(part, replaced) for part in sample.parts]
    parts = tuple(part for part, _ in kept)
    if parts == sample.parts:
        return sample
    rows = sample.rows - sum(removed for _, removed in kept)
    return sample.model_copy(update={"parts": parts, "rows": rows})


def replaced_by(file: StoredFile, replaced: Mapping[str, Rewritten]) -> tuple[StoredFile, int]:
    """The file in place of this one since rows were forgotten, and the number of those rows."""
    removed = 0
    while (by := replaced.get(file.path)) and by.new:
        removed += by.removed
        file = StoredFile(path=by.new, sha256=by.sha256, bytes=by.bytes)
    return file, removed
