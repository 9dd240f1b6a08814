"""Bad shards, as opposed to a storage that fails."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.config import Config
from pipeline.errors import BadShard, InputError, PipelineError, TransientError
from pipeline.storage import S3_SCHEME, open_input, version_of, why
from pipeline.storage.retries import is_passing

T = TypeVar("T")

# A version that begins so is that of a file in a lake table's plan; its size follows.
TABLE_VERSION = "table:"
VANISHED = "it does not exist"  # as ``why`` says it
CHANGED = "it changed since it was pinned"
_HINT = "or go on without it: source.on_bad_shard: quarantine"


@dataclass(frozen=True)
class ShardVersion:
    """One version of one shard."""

    url: str
    name: str
    version: str


def is_as_pinned(shard: ShardVersion) -> bool:
    """Whether a shard is still the pinned version.

    Raises:
        FileNotFoundError: It is gone.
    """
    if not shard.version.startswith(TABLE_VERSION):
        return version_of(shard.url) == shard.version
    size = int(shard.version.removeprefix(TABLE_VERSION).partition("-")[0], 16)
    with open_input(shard.url) as source:
        return int(source.size()) == size


def changed(shard: ShardVersion) -> BadShard:
    """The error for a shard that was replaced by another version."""
    return BadShard(
        f"shard {shard.name} changed since this run pinned it; a run reads one version of its "
        f"input. Start a new run id to use the new one, {_HINT}",
        shard.url,
        CHANGED,
    )


def read_shard(shard: ShardVersion, read: Callable[[pa.NativeFile], T]) -> T:
    """Open a shard and read from it.

    Raises:
        BadShard: The shard cannot be decoded, is gone, or has changed; for others see
            ``diagnosed``.
    """
    try:
        with open_input(shard.url) as source:
            return read(source)
    except (OSError, pa.ArrowException) as error:
        raise diagnosed(shard, error, read) from None


def diagnosed(
    shard: ShardVersion, error: Exception, read_again: Callable[[pa.NativeFile], object]
) -> PipelineError:
    """The error to raise for a failed read: BadShard, or that of a failing storage.

    The error alone does not tell: Arrow raises an OSError for a page that it cannot decode as well
    as for an answer of S3, and a short answer looks like a truncated file. So the shard is read
    again: ``read_again`` repeats the read on the file that it is given. The shard is bad when it is
    gone, when it has another version, or when the storage returns every requested byte and they
    still cannot be decoded. Everything else is a failure of the storage.

    Raises:
        MemoryError: Memory ran out, which is no fault of the shard.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, NotImplementedError):
        return _unsupported(shard, error)
    try:
        if not is_as_pinned(shard):
            return changed(shard)
        with contextlib.closing(_WatchedFile(shard.url)) as watched:
            try:
                read_again(pa.PythonFile(watched, mode="r"))
            except (OSError, pa.ArrowException, PipelineError) as again:
                if isinstance(watched.failure, PipelineError):
                    return watched.failure
                if watched.failure is not None:
                    return storage_error(shard.name, watched.failure)
                if isinstance(again, MemoryError):
                    raise
                if isinstance(again, NotImplementedError):
                    return _unsupported(shard, again)
                return _unreadable(shard, why(again))
    except FileNotFoundError as gone:
        return _unreadable(shard, why(gone))
    except OSError as failure:
        return storage_error(shard.name, failure)
    return TransientError(
        f"shard {shard.name} could not be read at first, but a second read succeeded: "
        f"{why(error)}; the same run id continues"
    )


def _unreadable(shard: ShardVersion, reason: str) -> BadShard:
    return BadShard(
        f"shard {shard.name} cannot be read: {reason}; restore it, take it out of source.path, "
        f"{_HINT}",
        shard.url,
        reason,
    )


def _unsupported(shard: ShardVersion, error: Exception) -> InputError:
    return InputError(
        f"shard {shard.name} cannot be read: {why(error)}; the installed pyarrow does not read "
        "this. Write the shard in another way, or take it out of source.path"
    )


def storage_error(shard: str, error: Exception) -> PipelineError:
    """The error for a storage that fails, for now or permanently."""
    reason = why(error)
    if is_passing(error):
        return TransientError(
            f"shard {shard} cannot be read now: {reason}; the same run id continues"
        )
    return InputError(
        f"shard {shard} cannot be read: {reason}; check permissions and endpoint, or take it out "
        "of source.path"
    )


class _WatchedFile:
    """A file for Arrow that records failures of its storage.

    It is never memory-mapped: there, a disk error would kill the process.
    """

    def __init__(self, url: str) -> None:
        self.failure: Exception | None = None
        remote = url.startswith(S3_SCHEME)
        self._file = open_input(url) if remote else fs.LocalFileSystem().open_input_file(url)
        self._size = self._file.size()
        self.close, self.tell, self.seek = self._file.close, self._file.tell, self._file.seek
        self.size = self._file.size

    @property
    def closed(self) -> bool:
        """Part of the interface that Arrow needs, like the methods of the file itself."""
        return bool(self._file.closed)

    def read(self, wanted: int = -1) -> bytes:
        left = self._size - self._file.tell()
        expected = left if wanted < 0 else min(wanted, left)
        try:
            content: bytes = self._file.read(expected)
        except (OSError, PipelineError) as failure:
            self.failure = failure
            raise
        if len(content) < expected:
            self.failure = ConnectionError(f"received {len(content)} of {expected} bytes")
            raise self.failure
        return content


def check_bound(config: Config, bad: Sequence[QuarantinedShard], shards: int) -> None:
    """Raise an InputError when more of all ``shards`` are bad than may be left out."""
    allowed = math.floor(config.source.max_bad_share * shards + 1e-9)  # 0.29 * 100 is 28.99…
    if bad and (len(bad) > allowed or len(bad) == shards):
        some = "; ".join(f"{shard.name}: {shard.reason}" for shard in bad[:3])
        raise InputError(
            f"{len(bad)} of {shards} shards are bad ({some}); "
            f"source.max_bad_share={config.source.max_bad_share} allows to leave out {allowed}. "
            "Restore them, or take them out of source.path"
            + ("" if len(bad) == shards else ", or raise the setting")
        )
