"""The commit log: what readers see, whoever publishes and whatever fails meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CommitConflict, CommitStateUnknown, InputError
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


def test_storage_that_fails_leaves_the_outcome_open(lake: Store) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(CommitStateUnknown, match="Input/output error; whether run a is published"):
        publish(Interrupted(lake.url, fail), "d", run("a"), "1")


def test_commit_whose_answer_was_lost_is_found(lake: Store) -> None:
    class LostAnswer(Store):
        def create_json(self, path: str, content: Any) -> bool:
            super().create_json(path, content)
            raise OSError("connection reset")

    with pytest.raises(CommitStateUnknown):
        publish(LostAnswer(lake.url), "d", run("a"), "1")
    assert publish(lake, "d", run("a"), "1").snapshot == 1
    assert lake.read_json("current.json")["snapshot"] == 1


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


@pytest.mark.parametrize("content", [b"{", b'{"snapshot": 1}', b'{"a": 1}'])
def test_snapshot_that_cannot_be_read(lake: Store, content: bytes) -> None:
    lake.write_bytes("snapshots/1.json", content)
    with pytest.raises(InputError, match=r"snapshots/1\.json is not a snapshot that this version"):
        latest_snapshot(lake)
