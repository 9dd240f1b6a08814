"""s3:// in, s3:// out, against a real endpoint over HTTP (tests/object_store.py)."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from conftest import Dec, blobs, config_of
from object_store import BUCKET

from pipeline import storage
from pipeline.artifacts.inputs import FeatureColumn
from pipeline.config import Retention
from pipeline.errors import CommitConflict, InputError, LeaseHeld
from pipeline.input.pinning import list_shards, pin
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.lake import lease
from pipeline.lake.snapshots import Partition, publish
from pipeline.operations import garbage
from pipeline.storage import Store, parquet_bytes, s3
from pipeline.storage.finding import find_parquet
from pipeline.storage.overlap import overlap

S3 = pytest.mark.s3
# The one test of these that runs with moto by default.
ON_A_STORE = (
    S3,
    pytest.mark.skipif("DEC_TEST_S3_ENDPOINT" not in os.environ, reason="runs with moto already"),
)


@pytest.fixture
def table_on_s3(s3_env: dict[str, str]) -> str:
    store = Store(f"s3://{BUCKET}/table")
    for number in range(3):
        store.write_table(f"year={2024 + number}/part.parquet", blobs(600).slice(number * 200, 200))
    store.write_bytes("_SUCCESS", b"")
    return store.url


@S3
def test_store(s3_env: dict[str, str]) -> None:
    store = Store(f"s3://{BUCKET}/store")
    store.write_bytes("a/b.txt", b"content")
    assert store.read_bytes("a/b.txt") == b"content"
    assert store.exists("a/b.txt")
    assert not store.exists("a/c.txt")
    assert [file.name for file in store.list("a")] == ["b.txt"]
    assert store.list("nothing") == []
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/c.txt")
    assert store.create_json("once.json", {"n": 1})
    assert not store.create_json("once.json", {"n": 2})
    assert store.read_json("once.json") == {"n": 1}


@S3
def test_a_reader_sees_one_content_while_it_is_replaced(s3_env: dict[str, str]) -> None:
    store = Store(f"s3://{BUCKET}/replaced")
    contents = [b"short", b"long" * 100]
    store.write_bytes("f", contents[0])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for content in contents:
                store.write_bytes("f", content)

    with ThreadPoolExecutor(1) as threads:
        replacing = threads.submit(replace)
        seen = {store.read_bytes("f") for _ in range(200)}
        stop.set()
        replacing.result()
    assert seen == set(contents)


@S3
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["year=2024/part.parquet", "year=2025/part.parquet", "year=2026/part.parquet"]),
        ("/", ["year=2024/part.parquet", "year=2025/part.parquet", "year=2026/part.parquet"]),
        ("/year=2025/part.parquet", ["part.parquet"]),
        ("/year=202[46]/*.parquet", ["year=2024/part.parquet", "year=2026/part.parquet"]),
        ("/year=*", ["year=2024/part.parquet", "year=2025/part.parquet", "year=2026/part.parquet"]),
    ],
)
def test_find_parquet(table_on_s3: str, path: str, names: list[str]) -> None:
    found = find_parquet(table_on_s3 + path).files
    assert [file.name for file in found] == names
    for file in found:
        assert file.url.startswith(table_on_s3)
        assert file.bytes > 0
        assert storage.version_of(file.url) == file.version


@S3
def test_odd_keys_and_names(s3_env: dict[str, str]) -> None:
    content = parquet_bytes(pa.table({"x": [1.0, 2.0]}))
    store = Store(f"s3://{BUCKET}/odd")
    odd = ["_day=1/b?.parquet", "a[1]/c%41#ü +&=;.PARQUET", "d.parquet.gz", "e*f.parquet"]
    for name in (*odd, "_SUCCESS", "_temporary/g.parquet"):
        store.write_bytes(name, content)
    store.write_bytes("notes", b"no Parquet, although long enough")
    s3.client(store.url).pipe_file(f"{store.url}/a folder/", b"")  # as some tools make a folder
    found = find_parquet(store.url)
    assert [file.name for file in found.files] == odd
    assert found.left_out == {
        "hidden": {"_SUCCESS", "_temporary/g.parquet"},
        "not_parquet": {"notes"},
    }
    for file in found.files:
        with storage.open_input(file.url) as source:
            assert pq.read_table(source)["x"].to_pylist() == [1.0, 2.0]
        # A key that exists is no glob, whatever its characters.
        assert [f.url for f in find_parquet(file.url).files] == [file.url]
    trino = "20260101_000000_00000_abcde"
    store.write_bytes(trino, content)
    with pytest.raises(InputError, match=f"names that say so: 1 files .{trino}"):
        find_parquet(store.url)
    assert trino in [file.name for file in find_parquet(f"{store.url}/*").files]
    assert [file.name for file in find_parquet(f"{store.url}/{trino}").files] == [trino]


@S3
@pytest.mark.parametrize(
    ("output", "path", "expected"),
    [
        ("year=2025/lake", "", "inside"),
        ("", "", "inside"),
        ("lake", "year=*", None),
        ("year=2025", "year=*", "inside"),
        ("lake", "*/*.parquet", "inside"),
        ("", "year=2025/part.parquet", "above"),
        ("../table-2", "", None),
    ],
)
def test_output_in_the_input(
    table_on_s3: str, output: str, path: str, expected: str | None
) -> None:
    place = f"{table_on_s3}/{output}".rstrip("/").replace(f"{table_on_s3}/../", f"s3://{BUCKET}/")
    location = f"{table_on_s3}/{path}"
    assert overlap(place, location, find_parquet(location)) == expected


@S3
def test_nothing_there(s3_env: dict[str, str]) -> None:
    with pytest.raises(FileNotFoundError):
        find_parquet(f"s3://{BUCKET}/nowhere")


@pytest.mark.parametrize("lake_name", ["lake", pytest.param("lake-on-a-store", marks=ON_A_STORE)])
def test_the_whole_pipeline(
    lake_name: str,
    dec_process: Dec,
    settings: dict[str, Any],
    table_on_s3: str,
    s3_env: dict[str, str],
) -> None:
    settings["source"] |= {"path": table_on_s3, "keys": ["id", "year"]}
    settings["output"] = f"s3://{BUCKET}/{lake_name}"
    result = dec_process("run", "--ds", "2026-01-31", "--json", settings=settings, env=s3_env)
    assert result.code == 0, result.err
    lake = Store(settings["output"])
    current = lake.read_json("current.json")
    assert current == lake.read_json("snapshots/1.json")
    listing = lake.read_json(current["partitions"]["2026-01-31"]["files"])
    ids = []
    for file in listing["files"]:
        with storage.open_input(lake.locate(file["path"])) as source:
            ids += pq.read_table(source)["id"].to_pylist()
    assert sorted(ids) == list(range(600))
    run = result.json["run_id"]
    log = lake.read_bytes(f"runs/{run}/logs/{lake.list(f'runs/{run}/logs')[0].name}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3_env[name].encode() not in log


@S3
def test_shard_that_changes_under_a_run_is_named(
    settings: dict[str, Any], table_on_s3: str
) -> None:
    settings["source"] |= {"path": table_on_s3}
    config = config_of(settings)
    files = list_shards(config)
    pinned = pin(config, files).shards
    assert pinned["bytes"].to_pylist() == [file.bytes for file in files]
    heads = [storage.s3.client(file.url).info(file.url) for file in files]
    assert pinned["version"].to_pylist() == [head["ETag"].strip('"') for head in heads]
    pieces = pieces_of_shards(pinned, config.execution.target_slice_mib)
    with storage.open_input(files[1].url) as source:
        before = pq.read_table(source)
    order = list(reversed(range(len(before))))  # as many bytes, or nearly
    Store(table_on_s3).write_table(files[1].name, before.take(order))
    features = (FeatureColumn(name="x", width=8, vector=True),)
    reader = Reader(features, "float32", "error", carried=pa.schema([]), shard_keys=False)
    by_shard = [pieces.filter(pa.compute.equal(pieces["shard"], n)) for n in range(3)]
    assert [sum(len(block.x_BF) for block in reader.blocks(by_shard[n])) for n in (0, 2)] == [
        200
    ] * 2
    with pytest.raises(InputError, match=r"shard year=2025/part\.parquet changed since this run"):
        list(reader.blocks(by_shard[1]))


@S3
def test_missing_bucket(dec: Dec, settings: dict[str, Any], s3_env: dict[str, str]) -> None:
    settings["source"]["path"] = "s3://no-such-bucket-here/table"
    result = dec("run", settings=settings, env=s3_env)
    assert result.code == 3
    assert "s3://no-such-bucket-here/table" in result.err
    assert len(result.err.splitlines()) == 1


# ---------------------------------------------------------------- leases, publishing and dec gc


@S3
def test_files_are_found_and_removed(s3_env: dict[str, str]) -> None:
    store = Store(f"s3://{BUCKET}/walk")
    for name in ("a/1", "a/b/2", "ab/3", ".hidden"):
        store.write_bytes(name, b"xyz")
    found = {file.name: file for file in store.walk()}
    assert sorted(found) == [".hidden", "a/1", "a/b/2", "ab/3"]
    assert [file.name for file in store.walk("a")] == ["1", "b/2"]
    assert store.walk("nothing") == []
    assert all(abs(file.modified - time.time()) < 600 for file in found.values())
    store.delete(["a/1", "a/b/2", "never/there"])
    store.delete([])
    assert sorted(file.name for file in store.walk()) == [".hidden", "ab/3"]


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    boots = (f"boot {number}" for number in range(100))
    monkeypatch.setattr(lease, "_boot", lambda: next(boots))


@S3
def test_leases(s3_env: dict[str, str], another_machine: None) -> None:
    lake, waits = Store(f"s3://{BUCKET}/leased"), []
    first = lease.take(lake, "d", "run a", seconds=2)
    with pytest.raises(LeaseHeld, match="run a"):
        lease.take(lake, "d", "run b", seconds=2, on_wait=waits.append)
    first.confirm()
    first._stop.set()  # it stands still
    first._thread.join()
    second = lease.take(lake, "d", "run b", seconds=2, on_wait=waits.append)
    assert len(waits) == 2
    with pytest.raises(LeaseHeld, match="lease of run a went to run b"):
        first.confirm()
    second.release()
    lease.take(lake, "d", "run c", seconds=2, on_wait=pytest.fail).release()
    assert [file.name for file in lake.list("leases/d")] == ["3.json"]


@S3
def test_a_claim_that_is_old_by_the_clock_of_the_store_is_not_waited_for(
    s3_env: dict[str, str], another_machine: None
) -> None:
    lake = Store(f"s3://{BUCKET}/old-lease")
    first = lease.take(lake, "d", "run a", seconds=1)
    first._stop.set()
    first._thread.join()
    time.sleep(4)  # more than twice as long as it lasts, at a clock that ticks in seconds
    lease.take(lake, "d", "run b", seconds=1, on_wait=pytest.fail).release()


@S3
def test_one_of_many_publishes_a_ds(s3_env: dict[str, str]) -> None:
    lake, meet = Store(f"s3://{BUCKET}/race"), threading.Barrier(4)

    def one(run: str) -> str:
        partition = Partition(run_id=run, model_id="m", rows=1, files=f"runs/{run}/files.json")
        try:
            publish(lake, "d", partition, run, hold=lambda: meet.wait() and None)
        except CommitConflict as conflict:
            return str(conflict)
        return "won"

    with ThreadPoolExecutor(4) as threads:
        answers = dict(zip("abcd", threads.map(one, "abcd"), strict=True))
    (winner,) = [run for run, answer in answers.items() if answer == "won"]
    assert sum(f"run {winner} published while" in answer for answer in answers.values()) == 3
    assert lake.read_json("current.json")["run_id"] == winner


@S3
def test_garbage_goes_and_what_is_named_stays(
    s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "_SAFETY_S", 1.0)
    monkeypatch.setattr(garbage, "_DAY_S", 1.0)
    lake = Store(f"s3://{BUCKET}/garbage")
    for run in ("old", "new", "dead"):
        part, listing = f"runs/{run}/assignments/1.parquet", f"runs/{run}/stages/assign/files.json"
        lake.write_bytes(part, b"rows")
        lake.write_bytes(f"models/{run}/weights.safetensors", b"weights")
        lake.write_json(f"runs/{run}/run.json", {"run_id": run, "ds": "d"})
        files = [{"path": part, "rows": 1, "bytes": 4}]
        lake.write_json(listing, {"rows": 1, "files": files})
        if run != "dead":
            partition = Partition(run_id=run, model_id=run, rows=1, files=listing)
            publish(lake, "d", partition, run)
            lake.write_json(f"runs/{run}/metrics.json", {})
    time.sleep(3.5)
    done = garbage.collect(lake, Retention(snapshots=1, days=1, unpublished_days=1), dry_run=False)
    assert {removal.name: removal.kind for removal in done.removals} == {
        "snapshots": "snapshots",
        "runs/dead": "unpublished run",
        "runs/old": "published run",
        "models/dead": "model",
        "models/old": "model",
    }
    assert sorted(file.name for file in lake.walk() if not file.name.startswith("leases/")) == [
        "current.json",
        "models/new/weights.safetensors",
        "runs/new/assignments/1.parquet",
        "runs/new/metrics.json",
        "runs/new/run.json",
        "runs/new/stages/assign/files.json",
        "runs/new/stages/publish/attempt.json",
        "runs/old/metrics.json",
        "runs/old/run.json",
        "snapshots/2.json",
    ]
