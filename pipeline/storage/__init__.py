"""The only access to filesystems, so that local folders and s3:// are one code path."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.counts import count
from pipeline.errors import ConfigError, PipelineError, StorageFull
from pipeline.locations import S3_SCHEME as S3_SCHEME
from pipeline.locations import checked_location
from pipeline.storage import s3
from pipeline.storage.retries import answers_of


@dataclass(frozen=True)
class FoundFile:
    """A file in a listing."""

    url: str  # absolute path or s3://bucket/key
    name: str  # path below the location that was searched
    bytes: int
    version: str  # S3's entity tag, or local modification time and size; changes with the content
    modified: float = 0.0  # time of the last write by the store's clock, in seconds since 1970
    identity: str = ""  # the same for all paths that lead to one file, by links of any kind


def absolute(location: str) -> str:
    """A location with the same meaning in every working directory.

    Raises:
        ConfigError: It is neither a local path nor an s3:// URL.
    """
    try:
        location = checked_location(location)
    except ValueError as error:
        raise ConfigError(f"{location} {error}") from None
    if location.startswith(S3_SCHEME):
        return location
    return os.path.abspath(os.path.expanduser(location))


def why(error: BaseException) -> str:
    """The reason in a filesystem's or Arrow's error, in one line."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, PermissionError):
        return "permission denied"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:300] or type(error).__name__


class Store:
    """A folder, local or s3://bucket/prefix, that need not exist yet; can be sent to workers."""

    def __init__(self, url: str) -> None:
        self.url = absolute(url).rstrip("/") or "/"

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def child(self, path: str) -> Store:
        """The folder below this one."""
        return Store(self.locate(path))

    def locate(self, path: str) -> str:
        """Absolute location of a path in this folder."""
        return f"{self.url}/{path}" if path else self.url

    def read_bytes(self, path: str) -> bytes:
        """Content of a file; while the file is replaced, either the old or the new content.

        Raises:
            FileNotFoundError: There is no such file.
        """
        location = self.locate(path)
        return s3.read(location) if location.startswith(S3_SCHEME) else Path(location).read_bytes()

    def read_json(self, path: str) -> Any:
        """Content of a JSON file."""
        return json.loads(self.read_bytes(path))

    def read_table(
        self, path: str, columns: Sequence[str] | None = None, rows: pc.Expression | None = None
    ) -> pa.Table:
        """Read a Parquet file, or some columns, or the rows that meet a condition, by batches."""
        with open_input(self.locate(path)) as file:
            wanted = None if columns is None else list(columns)
            return pq.read_table(file, columns=wanted, filters=rows)

    def exists(self, path: str) -> bool:
        """Whether there is a file at this path."""
        location = self.locate(path)
        return s3.exists(location) if location.startswith(S3_SCHEME) else os.path.isfile(location)

    def write_bytes(self, path: str, content: bytes | pa.Buffer) -> None:
        """Write or replace a file atomically."""
        location = self.locate(path)
        if location.startswith(S3_SCHEME):
            s3.put(location, content)
        else:
            with _staged_beside(location, content) as staged:
                os.replace(staged, location)
        count("bytes_written", len(content))

    def write_json(self, path: str, content: Any) -> None:
        """Write or replace a JSON file atomically."""
        self.write_bytes(path, _to_json(content))

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write or replace a small table as Parquet, atomically."""
        self.write_bytes(path, parquet_bytes(table))

    def create_json(self, path: str, content: Any) -> bool:
        """Write a JSON file only if the path is free (put-if-absent); returns whether it was."""
        location, encoded = self.locate(path), _to_json(content)
        if location.startswith(S3_SCHEME):
            created = s3.put_if_absent(location, encoded)
        else:
            with _staged_beside(location, encoded) as staged:
                try:
                    os.link(staged, location)
                    created = True
                except FileExistsError:
                    created = False
        if created:
            count("bytes_written", len(encoded))
        return created

    def list(self, path: str = "") -> list[FoundFile]:
        """Files directly in a folder, sorted by name; empty when there is no such folder."""
        location = self.locate(path)
        files = []
        if location.startswith(S3_SCHEME):
            with answers_of(location), contextlib.suppress(FileNotFoundError):
                entries = s3.client(location).ls(location, detail=True)
                files = [found_on_s3(e, location) for e in entries if e["type"] == "file"]
        else:
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(location):
                    # Another process's staged file may vanish during the listing.
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file():
                            files.append(found_locally(entry.path, location))
        return sorted(files, key=lambda file: file.name)

    def walk(self, path: str = "") -> Sequence[FoundFile]:
        """All files below a folder, hidden ones too; names are relative to it."""
        location = self.locate(path)
        if location.startswith(S3_SCHEME):
            entries: Iterable[Any] = ()
            with answers_of(location), contextlib.suppress(FileNotFoundError):  # no such bucket
                entries = s3.client(location).find(location, detail=True).values()
            # A key that ends in a slash stands for a folder in some tools.
            return [found_on_s3(e, location) for e in entries if not e["name"].endswith("/")]
        files = []
        for parent, _, names in os.walk(location):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    files.append(found_locally(os.path.join(parent, name), location))
        return files

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files, local ones in this order; missing ones are ignored."""
        if self.url.startswith(S3_SCHEME):
            bucket, _, prefix = self.url.removeprefix(S3_SCHEME).partition("/")
            keys = [f"{prefix}/{path}" if prefix else path for path in paths]
            for start in range(0, len(keys), 1000):  # S3's limit
                some = [{"Key": key} for key in keys[start : start + 1000]]
                # s3fs's own removal does not report refusals.
                with answers_of(self.url):
                    answer = s3.client(self.url).call_s3(
                        "delete_objects", Bucket=bucket, Delete={"Objects": some, "Quiet": True}
                    )
                for error in answer.get("Errors", []):
                    kind = PermissionError if error.get("Code") == "AccessDenied" else OSError
                    raise kind(f"{error.get('Key')}: {error.get('Code')}")
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.locate(path))

    def prune(self, path: str) -> None:
        """Remove a folder and its subfolders where they are empty; object stores have none."""
        if not self.url.startswith(S3_SCHEME):
            for parent, _, _ in os.walk(self.locate(path), topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(parent)


def parquet_bytes(table: pa.Table, row_group_rows: int | None = None) -> bytes:
    """A table, encoded as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def sha256(content: bytes | pa.Buffer) -> str:
    """Hex digest of content."""
    return hashlib.sha256(content).hexdigest()


def _to_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def _staged_beside(location: str, content: bytes | pa.Buffer) -> Iterator[str]:
    """A complete, flushed temporary file beside its final location; removed on exit."""
    staged = os.path.join(os.path.dirname(location), f".{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(os.path.dirname(location), exist_ok=True)
        with open(staged, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _storage_full(location, staged, len(content)) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def _storage_full(location: str, staged: str, needed: int) -> StorageFull:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)  # so that its bytes count as free
    folder = next(folder for folder in Path(location).parents if folder.exists())
    free = shutil.disk_usage(folder).free
    return StorageFull(
        f"{location} cannot be written: its disk is full or over quota; this file alone needs "
        f"{needed:,} bytes, and {free:,} bytes are free. No partial file was left. Make room, then "
        "run the same run id again: it keeps what is complete"
    )


# ------------------------------------------------------------------ reading and finding input


def open_input(location: str) -> pa.NativeFile:
    """Open a file for random access; local files are memory-mapped."""
    if location.startswith(S3_SCHEME):
        return s3.open_input(location)
    return pa.memory_map(location) if os.path.getsize(location) else pa.BufferReader(b"")


def arrow_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a location, and the path in it."""
    if location.startswith(S3_SCHEME):
        return s3.arrow_filesystem(location)
    return fs.LocalFileSystem(), location


def version_of(location: str) -> str:
    """Current version of a file; see ``FoundFile``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if location.startswith(S3_SCHEME):
        with answers_of(location):
            return found_on_s3(s3.client(location).info(location), location).version
    return found_locally(location, location).version


def found_locally(path: str, root: str, stat: os.stat_result | None = None) -> FoundFile:
    """A local file in a folder ``root``, or below it."""
    stat = stat or os.stat(path)
    name = os.path.relpath(path, root).replace(os.sep, "/")
    version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    # Some file systems number files anew, so the number alone would not do.
    identity = f"{stat.st_dev:x}-{stat.st_ino:x}-{version}" if stat.st_ino else path
    return FoundFile(path, name, stat.st_size, version, stat.st_mtime, identity)


def found_on_s3(entry: dict[str, Any], root: str) -> FoundFile:
    """An object of a listing of s3fs, below ``root``."""
    url = S3_SCHEME + entry["name"]
    name = url.removeprefix(root.rstrip("/") + "/")
    version = str(entry.get("ETag", "")).strip('"')
    return FoundFile(url, name, entry["size"], version, entry["LastModified"].timestamp(), url)


def check_writable(output: str) -> None:
    """Check that a run's output is writable by writing and removing an empty file.

    Raises:
        ConfigError: It is not.
    """
    store = Store(output)
    probe = f".write-check-{uuid.uuid4().hex}"
    location = store.locate(probe)
    missing = [folder for folder in Path(location).parents if not folder.exists()]
    try:
        store.write_bytes(probe, b"")
    except OSError as error:
        raise ConfigError(
            f"output={output} cannot be written: {why(error)}; give a folder or bucket that you "
            "may write to"
        ) from None
    if location.startswith(S3_SCHEME):
        # A role may be allowed to write and not to delete.
        with contextlib.suppress(OSError, PipelineError), answers_of(location):
            s3.client(location).rm_file(location)
        return
    os.unlink(location)
    for folder in missing:  # leave no trace of a run that stops at the next check
        with contextlib.suppress(OSError):  # in use by another process
            folder.rmdir()
