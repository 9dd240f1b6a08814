"""A bad shard, or a storage that fails: an S3 endpoint that misbehaves in every way but one."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from pipeline import storage
from pipeline.artifacts.inputs import FeatureColumn
from pipeline.errors import BadShard, PipelineError, TransientError
from pipeline.input.footers import SHARD_SCHEMA
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.storage.finding import find_parquet

READER = Reader(
    (FeatureColumn(name="x", width=1, vector=False),), "float64", "error", pa.schema([]), False
)


class Endpoint(ThreadingHTTPServer):
    """One bucket with one object.

    Attributes:
        content: Of the object; None: it is not there.
        broken: How requests for its content are answered.
        proper_answers: That many come before.
    """

    content: bytes | None
    broken = ""
    proper_answers = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        content = self.server.content
        if content is None or self.path.count("/") < 2:
            return self._answer(404, b"")
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        return None

    def do_GET(self) -> None:
        content, server = self.server.content, self.server
        if "list-type" in self.path:
            return self._answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        if content is None:
            return self._answer(404, _xml("NoSuchKey"))
        if server.broken and not server.proper_answers:
            if server.broken in _REFUSALS:
                return self._answer(int(server.broken), _xml(_REFUSALS[server.broken]))
        span = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (
            (int(span[1]), min(int(span[2]) + 1, len(content))) if span else (0, len(content))
        )
        body = content[start:end]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if server.broken and not server.proper_answers:
            self.wfile.write(body[: len(body) // 2])
            if server.broken == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return None
        server.proper_answers = max(0, server.proper_answers - 1)
        self.wfile.write(body)
        return None


_REFUSALS = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}


def _xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    for name in ("REGION", "DEFAULT_REGION"):
        monkeypatch.setenv(f"AWS_{name}", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    forget_clients()
    yield server
    server.shutdown()
    server.server_close()
    forget_clients()


def forget_clients() -> None:
    """Which know the endpoint that they were made for."""
    storage.s3.forget()
    s3fs.S3FileSystem.clear_instance_cache()


def parquet(rows: int = 5000) -> bytes:
    sink = io.BytesIO()
    x = np.random.default_rng(0).normal(size=rows)
    pq.write_table(pa.table({"x": x}), sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(2000) + content[middle + 2000 :]


URL = "s3://bucket/table/a.parquet"


def pinned(content: bytes) -> pa.Table:
    """Pieces of the object as it was listed."""
    metadata = pq.read_metadata(io.BytesIO(content))
    row = (URL, "a.parquet", len(content), hashlib.md5(content).hexdigest(), metadata.num_rows)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    more = ([g.num_rows for g in groups], [g.total_byte_size for g in groups], [], 0)
    shards = pa.Table.from_pylist(
        [dict(zip(SHARD_SCHEMA.names, row + more, strict=True))], SHARD_SCHEMA
    )
    return pieces_of_shards(shards, 64)


def error_of(pieces: pa.Table) -> PipelineError:
    with pytest.raises(PipelineError) as error:
        list(READER.blocks(pieces))
    return error.value


def test_whole_content(endpoint: Endpoint) -> None:
    endpoint.content = parquet()
    assert sum(len(block.x_BF) for block in READER.blocks(pinned(endpoint.content))) == 5000


def test_content_that_cannot_be_decoded(endpoint: Endpoint) -> None:
    good = parquet()
    endpoint.content = damaged(good)
    error = error_of(pinned(endpoint.content))
    assert isinstance(error, BadShard)
    assert (error.url, "decompression failed" in error.reason) == (URL, True)


@pytest.mark.parametrize(
    ("broken", "answers"),
    [
        *itertools.product(["503", "truncated", "403"], [0, 1]),
        ("500", 1),
        ("reset", 1),
    ],
)
def test_a_storage_that_fails(endpoint: Endpoint, broken: str, answers: int) -> None:
    """Whether the footer came before it failed, or nothing did."""
    endpoint.content = parquet()
    pieces = pinned(endpoint.content)
    endpoint.broken, endpoint.proper_answers = broken, answers
    error = error_of(pieces)
    assert not isinstance(error, BadShard)
    assert isinstance(error, TransientError) == (broken != "403"), error


def test_damaged_content_of_a_storage_that_fails(endpoint: Endpoint) -> None:
    """Nobody knows by then whether the shard or the answer was damaged."""
    endpoint.content = damaged(parquet())
    pieces = pinned(endpoint.content)
    endpoint.broken, endpoint.proper_answers = "503", 2
    assert not isinstance(error_of(pieces), BadShard)


def test_content_that_is_gone(endpoint: Endpoint) -> None:
    pieces = pinned(parquet())
    endpoint.content = None
    error = error_of(pieces)
    assert isinstance(error, BadShard)
    assert error.reason == "it does not exist"


def test_content_that_is_another(endpoint: Endpoint) -> None:
    pieces = pinned(parquet())
    endpoint.content = parquet(rows=10)
    error = error_of(pieces)
    assert isinstance(error, BadShard)
    assert error.reason == "it changed since it was pinned"


def test_checksums_of_pages_are_looked_at(tmp_path: Path) -> None:
    """Damage that every decoder would take for values."""
    path = tmp_path / "a.parquet"
    table = pa.table({"x": np.random.default_rng(0).normal(size=1000)})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (file,) = find_parquet(str(path)).files
    row = (file.url, file.name, file.bytes, file.version, 1000, [1000], [8000], [], 0)
    shards = pa.Table.from_pylist([dict(zip(SHARD_SCHEMA.names, row, strict=True))], SHARD_SCHEMA)
    error = error_of(pieces_of_shards(shards, 64))
    assert isinstance(error, BadShard)
    assert "crc" in error.reason.lower()


def test_fewer_rows_than_the_footer_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1.0, 2.0]}), path)
    (file,) = find_parquet(str(path)).files
    row = (file.url, file.name, file.bytes, file.version, 3, [3], [24], [], 0)
    shards = pa.Table.from_pylist([dict(zip(SHARD_SCHEMA.names, row, strict=True))], SHARD_SCHEMA)
    error = error_of(pieces_of_shards(shards, 64))
    assert isinstance(error, BadShard)
    assert error.reason == "row group 0 ends after 2 rows"
