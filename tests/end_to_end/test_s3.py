"""s3:// in, s3:// out, against a real endpoint over HTTP.

moto's server unless DEC_TEST_S3_ENDPOINT names another; credentials as AWS_* variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Dec, blobs

from pipeline import storage
from pipeline.storage import Store, find_parquet

BUCKET = "dec-pipeline-test"
SECRET = "planted-secret-0f1e2d"  # moto takes any


@pytest.fixture(scope="module")
def s3_env() -> Iterator[dict[str, str]]:
    """Environment of a process that uses the endpoint; an empty bucket is there."""
    import s3fs

    server = None
    endpoint = os.environ.get("DEC_TEST_S3_ENDPOINT")
    if not endpoint:
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", "test"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AWS_SECRET_ACCESS_KEY", SECRET),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        storage.s3.cache_clear()
        storage._arrow_s3.cache_clear()
        bucket = s3fs.S3FileSystem()
        if not bucket.exists(BUCKET):
            bucket.mkdir(BUCKET)
        yield env
        bucket.rm(BUCKET, recursive=True)
    storage.s3.cache_clear()
    storage._arrow_s3.cache_clear()
    if server:
        server.stop()


@pytest.fixture
def table_on_s3(s3_env: dict[str, str]) -> str:
    store = Store(f"s3://{BUCKET}/table")
    for number in range(3):
        store.write_table(f"year={2024 + number}/part.parquet", blobs(600).slice(number * 200, 200))
    store.write_bytes("_SUCCESS", b"")
    return store.url


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
    found = find_parquet(table_on_s3 + path)
    assert [file.name for file in found] == names
    for file in found:
        assert file.url.startswith(table_on_s3)
        assert file.bytes > 0
        assert storage.version_of(file.url) == file.version


def test_nothing_there(s3_env: dict[str, str]) -> None:
    with pytest.raises(FileNotFoundError):
        find_parquet(f"s3://{BUCKET}/nowhere")


def test_the_whole_pipeline(
    dec: Dec, settings: dict[str, Any], table_on_s3: str, tmp_path: Path, s3_env: dict[str, str]
) -> None:
    settings["source"] |= {"path": table_on_s3, "keys": ["id", "year"]}
    settings["output"] = f"s3://{BUCKET}/lake"
    result = dec("run", "--ds", "2026-01-31", "--json", settings=settings, env=s3_env)
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
    assert s3_env["AWS_SECRET_ACCESS_KEY"].encode() not in log


def test_missing_bucket(dec: Dec, settings: dict[str, Any], s3_env: dict[str, str]) -> None:
    settings["source"]["path"] = "s3://no-such-bucket-here/table"
    result = dec("run", settings=settings, env=s3_env)
    assert result.code == 3
    assert "s3://no-such-bucket-here/table" in result.err
    assert len(result.err.splitlines()) == 1
