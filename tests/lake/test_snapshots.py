"""The commit log: what readers see, whoever publishes and whatever fails meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import (
    CommitConflict,
    CommitError,
    CommitStateUnknown,
    InputError,
    LeaseHeld,
    TransientError,
)
from pipeline.lake.snapshots import Partition, assignment_files, latest_snapshot, publish
from pipeline.storage import Store


def run(name: str) -> Partition:
    return Partition(run_id=name, model_id="m", rows=1, files=f"runs/{name}/files.json")


def write_files(lake: Store, name: str, *paths: str) -> Partition:
    files = [{"path": path, "rows": 1, "bytes": 9} for path in paths]
    lake.write_json(f"runs/{name}/files.json", {"rows": len(files), "files": files})
    return run(name)


def served(lake: Store) -> dict[str, str]:
    latest = latest_snapshot(lake)
    assert latest is not None
    return {ds: partition.run_id for ds, partition in latest.partitions.items()}


class Interrupted(Store):
    """A store where something happens just before a snapshot is created."""

    def __init__(self, url: str, happens: Callable[[], Any]) -> None:
        super().__init__(url)
        self.happens: Callable[[], Any] | None = happens

    def create_json(self, path: str, content: Any) -> bool:
        happens, self.happens = self.happens, None
        if happens:
            happens()
        return super().create_json(path, content)


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


# ------------------------------------------------------------------------------------ publish


def test_first_publish(lake: Store) -> None:
    assert latest_snapshot(lake) is None
    snapshot = publish(lake, "2026-01-01", run("a"), "commit-a")
    assert snapshot.snapshot == 1
    assert snapshot.partitions == {"2026-01-01": run("a")}
    assert latest_snapshot(lake) == snapshot
    assert lake.read_json("current.json") == lake.read_json("snapshots/1.json")


def test_each_ds_is_served_by_its_latest_run(lake: Store) -> None:
    publish(lake, "d1", run("a"), "1")
    publish(lake, "d2", run("b"), "2")
    assert served(lake) == {"d1": "a", "d2": "b"}
    publish(lake, "d1", run("c"), "3")
    assert served(lake) == {"d1": "c", "d2": "b"}
    assert lake.read_json("current.json")["snapshot"] == 3


def test_old_snapshots_never_change(lake: Store) -> None:
    publish(lake, "d", run("a"), "1")
    before = lake.read_bytes("snapshots/1.json")
    publish(lake, "d", run("b"), "2")
    assert lake.read_bytes("snapshots/1.json") == before


def test_publishing_again_changes_nothing(lake: Store) -> None:
    first = publish(lake, "d1", run("a"), "1")
    assert publish(lake, "d1", run("a"), "1") == first
    publish(lake, "d2", run("b"), "2")
    assert publish(lake, "d1", run("a"), "1") == first
    assert [file.name for file in lake.list("snapshots")] == ["1.json", "2.json"]
    assert lake.read_json("current.json")["snapshot"] == 2


def test_the_tenth_snapshot_is_newer_than_the_ninth(lake: Store) -> None:
    for number in range(11):
        publish(lake, "d", run(f"r{number}"), str(number))
    latest = latest_snapshot(lake)
    assert latest is not None
    assert (latest.snapshot, latest.run_id) == (11, "r10")


def test_other_files_in_the_folder_are_no_snapshots(lake: Store) -> None:
    publish(lake, "d", run("a"), "1")
    for name in (".77.json.tmp", "99.json.bak", "x.json"):
        lake.write_json(f"snapshots/{name}", {})
    assert served(lake) == {"d": "a"}


# -------------------------------------------------------------------------------------- races


def test_another_ds_published_meanwhile_is_kept(lake: Store) -> None:
    slow = Interrupted(lake.url, lambda: publish(lake, "d2", run("b"), "2"))
    snapshot = publish(slow, "d1", run("a"), "1")
    assert snapshot.snapshot == 2
    assert served(lake) == {"d1": "a", "d2": "b"}


@pytest.mark.parametrize("before", [[], ["old"]])
def test_same_ds_published_meanwhile_is_a_conflict(lake: Store, before: list[str]) -> None:
    for name in before:
        publish(lake, "d", run(name), name)
    slow = Interrupted(lake.url, lambda: publish(lake, "d", run("b"), "2"))
    with pytest.raises(CommitConflict, match="ds d: run b published while run a was about to"):
        publish(slow, "d", run("a"), "1")
    assert served(lake) == {"d": "b"}
    # As the message says: running it again wins.
    publish(lake, "d", run("a"), "1")
    assert served(lake) == {"d": "a"}


def test_the_same_commit_published_meanwhile_is_found(lake: Store) -> None:
    # Two attempts at one run: both succeed, and there is one snapshot.
    slow = Interrupted(lake.url, lambda: publish(lake, "d", run("a"), "1"))
    assert publish(slow, "d", run("a"), "1").snapshot == 1
    assert len(lake.list("snapshots")) == 1


def test_many_publish_at_once(lake: Store) -> None:
    start = threading.Barrier(6)

    def one(number: int) -> int:
        start.wait()
        return publish(lake, f"d{number}", run(f"r{number}"), str(number)).snapshot

    with ThreadPoolExecutor(6) as threads:
        numbers = list(threads.map(one, range(6)))
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert served(lake) == {f"d{n}": f"r{n}" for n in range(6)}


class Failing(Store):
    """A store that fails when a snapshot is created, before or after it is there."""

    def __init__(self, url: str, error: Exception, *, lands: bool, reads: bool = True) -> None:
        super().__init__(url)
        self.error, self.lands, self.reads, self.failed = error, lands, reads, False

    def create_json(self, path: str, content: Any) -> bool:
        if self.lands:
            super().create_json(path, content)
        self.failed = True
        raise self.error

    def read_bytes(self, path: str) -> bytes:
        if self.failed and not self.reads:
            raise OSError("it does not answer")
        return super().read_bytes(path)


def test_storage_that_fails_leaves_the_outcome_open(lake: Store) -> None:
    # A put that is on its way may still land: only asking again can tell.
    failing = Failing(lake.url, OSError(5, "Input/output error"), lands=False)
    with pytest.raises(CommitStateUnknown, match="Input/output error; whether run a is published"):
        publish(failing, "d", run("a"), "1")
    assert latest_snapshot(lake) is None
    assert publish(lake, "d", run("a"), "1").snapshot == 1


@pytest.mark.parametrize("error", [OSError("connection reset"), TransientError("tried 5 times")])
def test_commit_whose_answer_was_lost_is_found_at_once(lake: Store, error: Exception) -> None:
    snapshot = publish(Failing(lake.url, error, lands=True), "d", run("a"), "1")
    assert snapshot == latest_snapshot(lake)
    assert lake.read_json("current.json")["snapshot"] == 1


def test_commit_whose_answer_was_lost_is_found_by_the_next_attempt(lake: Store) -> None:
    publish(lake, "d", run("old"), "0")
    cut_off = Failing(lake.url, OSError("connection reset"), lands=True, reads=False)
    with pytest.raises(CommitStateUnknown):
        publish(cut_off, "d", run("a"), "1")
    for number in range(3):  # what is newer by then is not undone
        publish(lake, "d", run(f"later{number}"), f"later{number}")
    assert publish(lake, "d", run("a"), "1").snapshot == 2
    assert served(lake) == {"d": "later2"}
    assert len(lake.list("snapshots")) == 5


def test_put_that_the_client_sent_twice_is_ours(lake: Store) -> None:
    class SentTwice(Store):
        def create_json(self, path: str, content: Any) -> bool:
            return super().create_json(path, content) and super().create_json(path, content)

    assert publish(SentTwice(lake.url), "d", run("a"), "1").snapshot == 1
    assert len(lake.list("snapshots")) == 1


def test_storage_that_refuses_is_no_open_outcome(lake: Store) -> None:
    refusing = Failing(lake.url, PermissionError(13, "Permission denied"), lands=False)
    with pytest.raises(CommitError, match="permission denied; nothing was published") as refused:
        publish(refusing, "d", run("a"), "1")
    assert refused.type is CommitError


def test_who_lost_the_lease_does_not_publish(lake: Store) -> None:
    def lost() -> None:
        raise LeaseHeld("went to another")

    with pytest.raises(LeaseHeld):
        publish(lake, "d", run("a"), "1", hold=lost)
    assert latest_snapshot(lake) is None


def test_the_copy_of_the_newest_does_not_stay_old(lake: Store) -> None:
    class Overtaken(Store):
        """Somebody publishes between our look at the newest snapshot and our copy of it."""

        def write_json(self, path: str, content: Any) -> None:
            if path == "current.json" and content["snapshot"] == 1:
                publish(lake, "d2", run("b"), "2")
            super().write_json(path, content)

    publish(Overtaken(lake.url), "d", run("a"), "1")
    assert lake.read_json("current.json")["snapshot"] == 2


def test_a_copy_that_cannot_be_written_does_not_undo_a_publish(lake: Store) -> None:
    class Full(Store):
        def write_json(self, path: str, content: Any) -> None:
            if path == "current.json":
                raise OSError(28, "No space left on device")
            super().write_json(path, content)

    assert publish(Full(lake.url), "d", run("a"), "1").snapshot == 1
    assert served(lake) == {"d": "a"}


def test_snapshots_that_retention_removed_leave_no_hole_to_fall_into(lake: Store) -> None:
    for number in range(1, 6):
        publish(lake, f"d{number}", run(f"r{number}"), str(number))
    lake.delete(["snapshots/1.json", "snapshots/2.json"])
    assert publish(lake, "d1", run("r1"), "1").snapshot == 6  # nobody can tell any more
    assert publish(lake, "d4", run("r4"), "4").snapshot == 4
    assert publish(lake, "d9", run("r9"), "9").snapshot == 7


def test_a_publish_does_not_read_the_whole_log(lake: Store) -> None:
    class Counting(Store):
        reads = 0

        def read_bytes(self, path: str) -> bytes:
            Counting.reads += 1
            return super().read_bytes(path)

    for number in range(1, 41):
        publish(lake, f"d{number}", run(f"r{number}"), str(number))
    publish(Counting(lake.url), "new", run("new"), "new")
    assert Counting.reads <= 5


# ------------------------------------------------------------------------------------ readers


def test_assignment_files(lake: Store) -> None:
    publish(lake, "d1", write_files(lake, "a", "a/1.parquet", "a/2.parquet"), "1")
    publish(lake, "d2", write_files(lake, "b", "b/1.parquet"), "2")
    assert assignment_files(lake, "d1") == [f"{lake.url}/a/1.parquet", f"{lake.url}/a/2.parquet"]
    assert assignment_files(lake) == [
        *assignment_files(lake, "d1"),
        f"{lake.url}/b/1.parquet",
    ]
    publish(lake, "d1", write_files(lake, "c", "c/1.parquet"), "3")
    assert assignment_files(lake, "d1") == [f"{lake.url}/c/1.parquet"]


def test_nothing_published(lake: Store) -> None:
    with pytest.raises(InputError, match="no published assignments for ds d1; it has none"):
        assignment_files(lake, "d1")
    publish(lake, "d1", write_files(lake, "a"), "1")
    with pytest.raises(InputError, match="for ds d3; it has d1"):
        assignment_files(lake, "d3")


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/passwd", "a//b", "a/../../b", "a/./b"])
def test_files_outside_the_lake_are_not_named(lake: Store, path: str) -> None:
    publish(lake, "d", write_files(lake, "a", path), "1")
    with pytest.raises(InputError, match="below the output"):
        assignment_files(lake)
    with pytest.raises(ValueError, match="below the output"):
        Partition(run_id="a", model_id="m", rows=1, files=path)
    with pytest.raises(ValueError, match="pattern"):
        Partition(run_id=path, model_id="m", rows=1, files="a")


def test_a_snapshot_under_the_number_of_another_is_refused(lake: Store) -> None:
    publish(lake, "d", run("a"), "1")
    lake.write_bytes("snapshots/7.json", lake.read_bytes("snapshots/1.json"))
    with pytest.raises(InputError, match="says that it is number 1"):
        latest_snapshot(lake)


@pytest.mark.parametrize("content", [b"{", b'{"snapshot": 1}', b'{"a": 1}'])
def test_snapshot_that_cannot_be_read(lake: Store, content: bytes) -> None:
    lake.write_bytes("snapshots/1.json", content)
    with pytest.raises(InputError, match=r"snapshots/1\.json is not a snapshot that this version"):
        latest_snapshot(lake)
