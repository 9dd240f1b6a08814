"""The commit log: ``snapshots/<n>.json``, created by put-if-absent and never changed.

A snapshot names, for each ds, the run that serves it and the file that lists its part files.
Readers take the newest number; ``current.json`` is a copy of it for people and simple readers.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

from pydantic import ValidationError

from pipeline.artifacts import PartFile, Record
from pipeline.errors import CommitConflict, CommitStateUnknown, InputError
from pipeline.storage import Store, why

_FOLDER = "snapshots"
_ATTEMPTS = 20  # each lost race means that another run published; more than this is a livelock


class Partition(Record):
    """What serves one ds."""

    run_id: str
    model_id: str
    rows: int
    files: str


class SnapshotFile(Record):
    """Content of ``snapshots/<n>.json``.

    Attributes:
        snapshot: Its number, from 1.
        commit_id: Identifies the publish, so that one whose answer was lost is recognised.
        run_id: The run that published.
        ds: The partition that it published.
        committed_at: UTC.
        partitions: All live partitions of the assignments table, by ds.
    """

    snapshot: int
    commit_id: str
    run_id: str
    ds: str
    committed_at: str
    partitions: dict[str, Partition]


class FileList(Record):
    """The part files of a run's assignments; paths are below the output."""

    rows: int
    files: tuple[PartFile, ...]


def latest_snapshot(lake: Store) -> SnapshotFile | None:
    """The newest snapshot; None before the first publish."""
    numbers = [
        int(match[1])
        for file in lake.list(_FOLDER)
        if (match := re.fullmatch(r"(\d+)\.json", file.name))
    ]
    return _read(lake, max(numbers)) if numbers else None


def publish(lake: Store, ds: str, partition: Partition, commit_id: str) -> SnapshotFile:
    """Let the newest snapshot name this partition for its ds.

    Publishing the same commit again finds it in the log and changes nothing.

    Raises:
        CommitConflict: Another run published the same ds meanwhile.
        CommitStateUnknown: The storage failed, and whether the commit landed cannot be told.
    """
    began_with = latest_snapshot(lake)
    served_before = began_with.partitions.get(ds) if began_with else None
    for _ in range(_ATTEMPTS):
        latest = latest_snapshot(lake)
        partitions = dict(latest.partitions) if latest else {}
        now = partitions.get(ds)
        if latest and (mine := _find(lake, latest, ds, commit_id)):
            _update_current(lake)
            return mine
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
            committed_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            partitions={**partitions, ds: partition},
        )
        try:
            created = lake.create_json(_path(snapshot.snapshot), snapshot.model_dump(mode="json"))
        except OSError as error:
            raise CommitStateUnknown(
                f"{lake.locate(_path(snapshot.snapshot))}: {why(error)}; whether run "
                f"{partition.run_id} is published is not known and nothing was deleted. "
                "Run the same run id again: it looks first"
            ) from error
        if created:
            _update_current(lake)
            return snapshot
    raise CommitConflict(f"ds {ds}: lost {_ATTEMPTS} races for the next snapshot; run it again")


def assignment_files(lake: Store, ds: str | None = None) -> list[str]:
    """Locations of the published part files, of one ds or of all.

    Raises:
        InputError: Nothing is published, or not for that ds.
    """
    latest = latest_snapshot(lake)
    if latest is None or (ds is not None and ds not in latest.partitions):
        known = f"it has {', '.join(sorted(latest.partitions))}" if latest else "it has none"
        raise InputError(f"{lake.url} has no published assignments for ds {ds}; {known}")
    chosen = [p for name, p in sorted(latest.partitions.items()) if ds in (None, name)]
    lists = (FileList.model_validate(lake.read_json(partition.files)) for partition in chosen)
    return [lake.locate(file.path) for files in lists for file in files.files]


def _find(lake: Store, latest: SnapshotFile, ds: str, commit_id: str) -> SnapshotFile | None:
    """The snapshot of this commit, if nothing else was published for its ds since."""
    snapshot = latest
    while snapshot.commit_id != commit_id:
        if snapshot.ds == ds or snapshot.snapshot == 1:
            return None
        snapshot = _read(lake, snapshot.snapshot - 1)
    return snapshot


def _update_current(lake: Store) -> None:
    """Copy the newest snapshot, which by now may be a later one than ours."""
    latest = latest_snapshot(lake)
    assert latest is not None  # ours is there
    content: dict[str, Any] = latest.model_dump(mode="json")
    lake.write_json("current.json", content)


def _path(number: int) -> str:
    return f"{_FOLDER}/{number}.json"


def _read(lake: Store, number: int) -> SnapshotFile:
    try:
        return SnapshotFile.model_validate(lake.read_json(_path(number)))
    except (ValueError, ValidationError) as error:
        raise InputError(
            f"{lake.locate(_path(number))} is not a snapshot that this version reads: {why(error)}"
        ) from None
