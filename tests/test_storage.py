"""The local half of storage: complete files or none, and only one creator."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import counts
from pipeline.errors import ConfigError, StorageFull
from pipeline.storage import Store, absolute, check_writable, sha256, version_of, why
from pipeline.storage.finding import find_parquet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------- writing


def test_write_creates_folders_and_leaves_only_the_file(store: Store, tmp_path: Path) -> None:
    store.write_bytes("a/b/c.bin", b"one")
    store.write_bytes("a/b/c.bin", b"two")
    assert store.read_bytes("a/b/c.bin") == b"two"
    assert everything(tmp_path) == ["a", "a/b", "a/b/c.bin"]


def test_reader_keeps_the_file_that_it_opened(store: Store, tmp_path: Path) -> None:
    # Replaced, not overwritten: no reader ever sees half of each.
    store.write_bytes("f", b"old " * 1000)
    with (tmp_path / "f").open("rb") as opened:
        store.write_bytes("f", b"new")
        assert opened.read() == b"old " * 1000
    assert store.read_bytes("f") == b"new"


def test_write_that_fails_leaves_what_was_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_bytes("f", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match=r"f cannot be written: its disk is full.* needs 3 bytes"):
        store.write_bytes("f", b"new")
    assert everything(tmp_path) == ["f"]
    assert store.read_bytes("f") == b"old"


def test_json_and_tables_come_back(store: Store) -> None:
    store.write_json("a.json", {"b": [1, None, "µ"]})
    assert store.read_json("a.json") == {"b": [1, None, "µ"]}
    table = pa.table({"a": [1, 2]})
    store.write_table("a.parquet", table)
    assert store.read_table("a.parquet").equals(table)


def test_json_holds_no_nan(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("a.json", {"loss": float("nan")})
    assert everything(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"x"])
def test_files_that_exist(store: Store, content: bytes) -> None:
    assert not store.exists("a/f")
    store.write_bytes("a/f", content)
    assert store.exists("a/f")
    assert not store.exists("a")  # a folder is no file
    assert store.read_bytes("a/f") == content


def test_reading_what_is_not_there(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("absent")


# --------------------------------------------------------------------------------- create_json


def test_create_only_once(store: Store, tmp_path: Path) -> None:
    assert store.create_json("a/1.json", {"by": "first"}) is True
    assert store.create_json("a/1.json", {"by": "second"}) is False
    assert store.read_json("a/1.json") == {"by": "first"}
    assert everything(tmp_path) == ["a", "a/1.json"]


def test_every_file_counts_as_bytes_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, float]] = []
    monkeypatch.setattr(counts, "_receiver", lambda name, amount, _: counted.append((name, amount)))
    store.write_bytes("a", b"four")
    store.create_json("b", {"c": 1})
    store.create_json("b", {"c": 2})  # is there already: nothing is written
    assert counted == [("bytes_written", 4), ("bytes_written", len(store.read_bytes("b")))]


def test_one_of_many_creators_wins(store: Store, tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return store.create_json("1.json", {"by": number})

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(8)))
    assert won.count(True) == 1
    assert store.read_json("1.json") == {"by": won.index(True)}
    assert everything(tmp_path) == ["1.json"]


# ------------------------------------------------------------------------------------ listings


def test_list_is_sorted_and_flat(store: Store, tmp_path: Path) -> None:
    for name in ("b", "a", "folder/c"):
        store.write_bytes(f"in/{name}", b"123")
    assert [(file.name, file.bytes) for file in store.list("in")] == [("a", 3), ("b", 3)]
    assert [file.url for file in store.list("in")] == [f"{tmp_path}/in/a", f"{tmp_path}/in/b"]
    assert store.list("absent") == []


def test_list_keeps_the_others_when_a_file_goes_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another writer's staged file: there for scandir, gone for stat.
    for name in (".staged.tmp", "1.json", "2.json"):
        store.write_bytes(name, b"{}")
    measure = os.stat

    def stat(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith(".staged.tmp"):
            raise FileNotFoundError(path)
        return measure(path, **options)

    monkeypatch.setattr("pipeline.storage.os.stat", stat)
    assert [file.name for file in store.list()] == ["1.json", "2.json"]
    assert find_parquet(store.url).files == []


def test_find_parquet(tmp_path: Path) -> None:
    inside = ["a.parquet", "b/c.parq", "b/d.pq"]
    for name in (*inside, "_e.parquet", ".f.parquet", "_g/h.parquet", "i.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    found = find_parquet(str(tmp_path)).files
    assert [file.name for file in found] == inside
    assert [file.url for file in found] == [f"{tmp_path}/{name}" for name in inside]
    assert {file.bytes for file in found} == {5}
    assert found[0].version == version_of(f"{tmp_path}/a.parquet")
    # A folder that is hidden itself, or below a hidden one, was named on purpose.
    assert [file.name for file in find_parquet(str(tmp_path / "_g")).files] == ["h.parquet"]
    assert [file.name for file in find_parquet(str(tmp_path / "_g/*.parquet")).files] == [
        "h.parquet"
    ]
    assert [file.name for file in find_parquet(str(tmp_path / "i.csv")).files] == ["i.csv"]
    with pytest.raises(FileNotFoundError):
        find_parquet(str(tmp_path / "absent.parquet"))


def test_name_with_brackets_is_found_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a[1].parquet"
    path.write_bytes(b"")
    assert [file.name for file in find_parquet(str(path)).files] == ["a[1].parquet"]


def test_version_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    before = version_of(str(path))
    os.utime(path, ns=(1, 1))
    touched = version_of(str(path))
    path.write_bytes(b"three")
    os.utime(path, ns=(1, 1))
    assert len({before, touched, version_of(str(path))}) == 3


# -------------------------------------------------------------------------------- check_writable


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "not/there/yet"))
    assert everything(tmp_path) == []
    (tmp_path / "there").mkdir()
    check_writable(str(tmp_path / "there"))
    assert everything(tmp_path) == ["there"]


def test_output_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file/lake cannot be written: .+; give a folder"):
        check_writable(str(tmp_path / "file/lake"))
    assert everything(tmp_path) == ["file"]


# ------------------------------------------------------------------------------------- locations


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/key/", "s3://bucket/key"),
        ("/a/b/", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("/", "/"),
    ],
)
def test_store_url(location: str, expected: str) -> None:
    assert Store(location).url == expected


def test_locations_mean_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("lake") == f"{tmp_path}/lake"
    assert absolute("~/lake") == "/home/somebody/lake"
    child = Store("lake").child("runs/1")
    assert child.locate("a") == f"{tmp_path}/lake/runs/1/a"
    assert child.locate("") == f"{tmp_path}/lake/runs/1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "f"), "it does not exist"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_reasons_are_one_line(error: Exception, reason: str) -> None:
    assert why(error) == reason


def test_digest_is_sha256() -> None:
    # The well-known digest of nothing.
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256(b"") == sha256(pa.py_buffer(b"")) == nothing
