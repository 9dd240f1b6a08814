"""Iceberg and Delta tables on an object store, over HTTP."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from published_tables import (
    FORMATS,
    Night,
    config_of,
    expected,
    first_reader,
    publish_at_once,
    rows_of,
)

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import (
    CommitStateUnknown,
)
from pipeline.lake.tables import check_table
from pipeline.storage import Store

pytestmark = pytest.mark.s3

BUCKET = "dec-pipeline-tables"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket at DEC_TEST_S3_ENDPOINT, or of moto's server."""
    import s3fs

    server = None
    endpoint = os.environ.get("DEC_TEST_S3_ENDPOINT")
    if not endpoint:
        server, endpoint = moto_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, os.environ.get(name, "planted-secret"))
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        forget_clients()
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        if not store.exists(BUCKET):
            store.mkdir(BUCKET)
        yield f"s3://{BUCKET}"
        store.rm(BUCKET, recursive=True)
    forget_clients()
    if server:
        server.terminate()
        server.wait(30)


def moto_process() -> tuple[subprocess.Popen[bytes], str]:
    """moto's server, not as a thread: deltalake waits for answers without letting go of the GIL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return server, f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    server.kill()
    raise TimeoutError("moto's server does not answer")


def forget_clients() -> None:
    storage.s3.forget()


@pytest.fixture(params=FORMATS)
def config_on_s3(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> Config:
    lake = f"{bucket}/{tmp_path.name}"
    if request.param == "delta":
        return config_of(lake, "delta")
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    return config_of(lake, "iceberg", catalog=catalog)


def test_on_an_object_store(config_on_s3: Config) -> None:
    config = config_on_s3
    check_table(config, Store(config.output))
    a = Night(config, "a", "2026-01-01", range(50))
    b = Night(config, "b", "2026-01-02", range(30, 70))
    again = Night(config, "c", "2026-01-01", range(40, 57), parts=1)
    for night in (a, b, again, again):
        night.publish()
    assert rows_of(first_reader(config)(config)) == expected(b, again)
    everything = b"".join(
        again.lake.read_bytes(f"{path}/{file.name}")
        for path in ("delta/_delta_log", f"iceberg/{config.lake.table}/metadata")
        for file in again.lake.list(path)
        if file.name.endswith("json")
    )
    assert b"2026-01-02" in everything
    assert b"planted-secret" not in everything


@pytest.mark.skipif("DEC_TEST_S3_ENDPOINT" in os.environ, reason="only moto has a Glue catalog")
def test_with_a_glue_catalog(bucket: str, tmp_path: Path) -> None:
    # One after the other: moto takes every commit, Glue only those that know the latest version.
    lake, catalog = f"{bucket}/{tmp_path.name}", {"type": "glue"}
    test_on_an_object_store(config_of(lake, "iceberg", table="ml.clusters", catalog=catalog))


def test_racing_on_an_object_store(config_on_s3: Config) -> None:
    # Delta's versions are created by put-if-absent: nobody needs a lock service.
    nights = publish_at_once(config_on_s3)
    assert rows_of(first_reader(config_on_s3)(config_on_s3)) == expected(*nights)


def test_store_that_cannot_be_reached(
    config_on_s3: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_on_s3
    Night(config, "a", "2026-01-01", range(9)).publish()
    night = Night(config, "b", "2026-01-01", range(5))
    commit = night.commit
    night.table.prepare(commit)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        forget_clients()
        with pytest.raises(CommitStateUnknown, match="nothing was deleted"):
            night.table.follow(commit, lambda: True)
    forget_clients()
    assert night.table.follow(commit, lambda: True)
    assert rows_of(first_reader(config)(config)) == expected(night)
