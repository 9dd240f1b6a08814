"""The commit log: ``snapshots/<n>.json``, created by put-if-absent and never changed.

A snapshot names, for each ds, the run that serves it and the file that lists its part files.
Readers take the newest number; ``current.json`` is a copy of it for people and simple readers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import Field, PositiveInt

from pipeline.artifacts.assignments import PartFile
from pipeline.artifacts.records import LakePath, Name, Record, utc_now
from pipeline.errors import CommitConflict, InputError, PipelineError
from pipeline.lake.commit_log import CommitLog
from pipeline.schema import UNDATED
from pipeline.storage import FoundFile, Store, why

log = logging.getLogger(__name__)

FOLDER = "snapshots"
_ATTEMPTS = 20  # each lost race means that another run published; more than this is a livelock


class Partition(Record):
    """Published assignments of one ds."""

    run_id: Name
    model_id: Name
    rows: int
    files: LakePath
    quarantined_shards: int = 0  # number of bad shards of the input, whose rows it lacks
    # Whether the gate refused the model fitted for it; the previous one labelled it.
    refused: bool = False
    # Format and version of the lake table that was the input; not written where it was plain files.
    source_version: str | None = Field(default=None, exclude_if=lambda value: value is None)


class SnapshotFile(Record):
    """Content of ``snapshots/<n>.json``."""

    snapshot: PositiveInt
    commit_id: str  # identifies the publish, so that one whose answer was lost is recognised
    run_id: Name
    ds: Name
    # Time in UTC, by the publishing machine's clock; numbers decide which is newer.
    committed_at: str
    partitions: dict[Name, Partition]  # all live partitions of the assignments table, by ds

    def before(self, ds: str) -> str | None:
        """The newest date before another; runs without a date are neither before nor after."""
        dates = (date for date in self.partitions if UNDATED not in (date, ds) and date < ds)
        return max(dates, default=None)


class PublishAttempt(Record):
    """Content of a run's ``stages/publish/attempt.json``, written before the commit is tried."""

    snapshot: PositiveInt
    commit_id: str


class FileList(Record):
    """The part files of a run's assignments; paths are below the output."""

    rows: int
    files: tuple[PartFile, ...]


_LOG = CommitLog(FOLDER, SnapshotFile, lambda snapshot: snapshot.snapshot, "a snapshot")


def snapshot_files(lake: Store) -> dict[int, FoundFile]:
    """The files of all snapshots that are kept, by number, ascending."""
    return _LOG.files(lake)


def latest_snapshot(lake: Store) -> SnapshotFile | None:
    """The newest snapshot; None before the first publish."""
    numbers = snapshot_files(lake)
    return read_snapshot(lake, max(numbers)) if numbers else None


def serves(lake: Store, ds: str, partition: Partition) -> bool:
    """Whether this partition is what the log has for the ds."""
    latest = latest_snapshot(lake)
    return latest is not None and latest.partitions.get(ds) == partition


def publish(
    lake: Store,
    ds: str,
    partition: Partition,
    commit_id: str,
    *,
    hold: Callable[[], None] = lambda: None,
) -> SnapshotFile:
    """Add a snapshot with this partition for its ds.

    A second call with the same commit finds it in the log and changes nothing, also where the
    answer to the first was lost: each attempt at a publish has the same ``commit_id``. ``hold`` is
    called right before the commit; it raises where that must not happen.

    Raises:
        CommitConflict: Another run published the same ds meanwhile, or took every number.
        CommitError: The storage refuses, and nothing was published.
        CommitStateUnknown: The storage failed, and it is unknown whether the commit succeeded.
    """
    before = published_by(lake, partition.run_id)
    if before and before.commit_id == commit_id:
        _update_current(lake)
        return before
    latest = latest_snapshot(lake)
    served_before = latest.partitions.get(ds) if latest else None
    for _ in range(_ATTEMPTS):
        partitions = dict(latest.partitions) if latest else {}
        now = partitions.get(ds)
        if now != served_before:
            raise CommitConflict(
                f"ds {ds}: run {now.run_id if now else 'none'} published while run "
                f"{partition.run_id} was about to; look at both, and run yours again to win"
            )
        snapshot = SnapshotFile(
            snapshot=latest.snapshot + 1 if latest else 1,
            commit_id=commit_id,
            run_id=partition.run_id,
            ds=ds,
            committed_at=utc_now(),
            partitions={**partitions, ds: partition},
        )
        attempt = PublishAttempt(snapshot=snapshot.snapshot, commit_id=commit_id)
        lake.write_json(_attempt_path(partition.run_id), attempt.model_dump(mode="json"))
        hold()
        there = _put(lake, snapshot, f"run {partition.run_id}", "the same run id")
        if there.commit_id == commit_id:
            _update_current(lake)
            return there
        latest = latest_snapshot(lake)
    raise CommitConflict(f"ds {ds}: lost {_ATTEMPTS} races for the next snapshot; run it again")


def amend(
    lake: Store,
    commit_id: str,
    change: Callable[[Partition], Partition],
    *,
    hold: Callable[[], None] = lambda: None,
) -> SnapshotFile | None:
    """Change partitions of the newest snapshot, all in one commit; a second call changes nothing.

    The new snapshot, which is returned, keeps the run that published last; before the first publish
    there is none. ``commit_id``, ``hold`` and errors are as in ``publish``; ``change`` returns the
    same partition where nothing changes.
    """
    for _ in range(_ATTEMPTS):
        latest = latest_snapshot(lake)
        if latest is None:
            return None
        partitions = {ds: change(partition) for ds, partition in latest.partitions.items()}
        if partitions == latest.partitions:
            _update_current(lake)
            return latest
        changed = {
            "snapshot": latest.snapshot + 1,
            "commit_id": commit_id,
            "committed_at": utc_now(),
            "partitions": partitions,
        }
        hold()
        there = _put(lake, latest.model_copy(update=changed), commit_id, "the same")
        if there.commit_id == commit_id:
            _update_current(lake)
            return there
    raise CommitConflict(f"{commit_id}: lost {_ATTEMPTS} races for the next snapshot; run it again")


def _put(lake: Store, snapshot: SnapshotFile, who: str, again: str) -> SnapshotFile:
    return _LOG.put(lake, snapshot, who=who, landed=f"{who} is published", again=again)


def published_by(lake: Store, run_id: str) -> SnapshotFile | None:
    """The last snapshot that a run published, also where the answer to the commit was lost.

    Found by the number that the run tried, without reading all later snapshots.
    """
    try:
        attempt = PublishAttempt.model_validate(lake.read_json(_attempt_path(run_id)))
        found = read_snapshot(lake, attempt.snapshot)
    except (FileNotFoundError, ValueError):
        return None  # none was made, or the snapshot is gone by retention
    return found if found.commit_id == attempt.commit_id else None


def published(lake: Store, ds: str | None = None) -> dict[str, Partition]:
    """The published partitions by ds, ascending: one or all.

    Raises:
        InputError: Nothing is published, or not for that ds.
    """
    latest = latest_snapshot(lake)
    if latest is None or (ds is not None and ds not in latest.partitions):
        known = ", ".join(sorted(latest.partitions)) if latest else "none"
        raise InputError(f"{lake.url} has no published assignments for ds {ds}; it has {known}")
    return {name: p for name, p in sorted(latest.partitions.items()) if ds in (None, name)}


def assignment_files(lake: Store, ds: str | None = None) -> list[str]:
    """Locations of the published part files, of one ds or of all; see ``published``."""
    lists = (read_file_list(lake, p.files) for p in published(lake, ds).values())
    return [lake.locate(file.path) for files in lists for file in files.files]


def read_file_list(lake: Store, path: str) -> FileList:
    """The part files in a run's list.

    Raises:
        FileNotFoundError: There is no such list.
        InputError: This version cannot read it.
    """
    try:
        return FileList.model_validate(lake.read_json(path))
    except ValueError as error:  # of JSON and of pydantic
        raise InputError(
            f"{lake.locate(path)} is not a list of part files that this version reads: {why(error)}"
        ) from None


def _update_current(lake: Store) -> None:
    """Copy the newest snapshot, of any run, to ``current.json``."""
    written = 0
    try:
        # Each writer looks again after it wrote, so that the copy does not stay old where two
        # publish at the same time.
        while (latest := latest_snapshot(lake)) and latest.snapshot > written:
            lake.write_json("current.json", latest.model_dump(mode="json"))
            written = latest.snapshot
    except (OSError, PipelineError) as error:  # it is published, whatever becomes of the copy
        log.warning("current.json is not that of the newest snapshot: %s", why(error))


def _attempt_path(run_id: str) -> str:
    return f"runs/{run_id}/stages/publish/attempt.json"


def read_snapshot(lake: Store, number: int) -> SnapshotFile:
    """The snapshot of this number.

    Raises:
        FileNotFoundError: There is none.
        InputError: It cannot be understood.
    """
    return _LOG.read(lake, number)
