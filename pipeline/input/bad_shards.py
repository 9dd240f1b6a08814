"""Bad shards: what makes a shard one, told apart from a storage that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.config import Config
from pipeline.errors import BadShard, InputError, PipelineError, TransientError
from pipeline.storage import S3_SCHEME, open_input, version_of, why
from pipeline.storage.retries import is_passing

VANISHED = "it does not exist"  # as ``why`` puts it
CHANGED = "it changed since it was pinned"
_HINT = "or go on without it: source.on_bad_shard: quarantine"


@dataclass(frozen=True)
class ShardVersion:
    """One version of one shard."""

    url: str
    name: str
    version: str


def changed(shard: ShardVersion) -> BadShard:
    """Another version lies there now."""
    return BadShard(
        f"shard {shard.name} changed since this run pinned it; a run reads one version of its "
        f"input. Start a new run id to use the new one, {_HINT}",
        shard.url,
        CHANGED,
    )


def diagnosed(
    shard: ShardVersion, error: Exception, read_again: Callable[[pa.NativeFile], object]
) -> PipelineError:
    """What an error means that came up while a shard was read.

    The error alone does not tell. Arrow raises an OSError for a page that it cannot decode and for
    what S3 answers, and an answer that was cut short looks like a truncated file. So this looks
    again. The shard is bad when it is gone, when it is of another version, or when its storage
    hands over every byte that is asked for and they still cannot be decoded. Whatever else goes
    wrong is the storage's failure, and no shard is blamed for it.

    Args:
        shard: As it was pinned.
        error: OSError or ArrowException.
        read_again: Reads what could not be read, from the file that it is given.

    Returns:
        The error to raise: BadShard, or what a storage that fails leads to.

    Raises:
        MemoryError: There was not enough of it, which is no fault of the shard.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, NotImplementedError):  # what this Arrow was built without
        return storage_error(shard.name, error)
    try:
        if version_of(shard.url) != shard.version:
            return changed(shard)
        with _WatchedFile(shard.url) as watched:
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
                    return storage_error(shard.name, again)
                return _unreadable(shard, why(again))
    except FileNotFoundError as gone:
        return _unreadable(shard, why(gone))
    except OSError as failure:
        return storage_error(shard.name, failure)
    return TransientError(
        f"shard {shard.name} could not be read, and a moment later it could: {why(error)}; "
        "the same run id continues"
    )


def _unreadable(shard: ShardVersion, reason: str) -> BadShard:
    return BadShard(
        f"shard {shard.name} cannot be read: {reason}; restore it, take it out of source.path, "
        f"{_HINT}",
        shard.url,
        reason,
    )


def storage_error(shard: str, error: Exception) -> PipelineError:
    """What a storage that fails leads to, for now or for good; it makes no shard a bad one."""
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
    """A shard that is read to find out whose fault it is: it notes what its storage does wrong.

    Never mapped into memory, where a disk's error would end the process.
    """

    def __init__(self, url: str) -> None:
        self.failure: Exception | None = None
        remote = url.startswith(S3_SCHEME)
        self._file = open_input(url) if remote else fs.LocalFileSystem().open_input_file(url)
        self._size = self._file.size()

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        """Asked for by Arrow, like all below."""
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))

    def size(self) -> int:
        return int(self._size)

    def read(self, wanted: int = -1) -> bytes:
        left = self._size - self._file.tell()
        expected = left if wanted < 0 else min(wanted, left)
        try:
            content: bytes = self._file.read(expected)
        except (OSError, PipelineError) as failure:
            self.failure = failure
            raise
        if len(content) < expected:
            self.failure = ConnectionError(f"{len(content)} of {expected} bytes came")
            raise self.failure
        return content


def check_bound(config: Config, bad: Sequence[QuarantinedShard], shards: int) -> None:
    """Raise an InputError when more shards are bad than may be left out.

    Args:
        config: The settings.
        bad: The bad shards.
        shards: All shards, these included.
    """
    allowed = math.floor(config.source.max_bad_share * shards + 1e-9)  # 0.29 * 100 is 28.99…
    if bad and (len(bad) > allowed or len(bad) == shards):
        some = "; ".join(f"{shard.name}: {shard.reason}" for shard in bad[:3])
        raise InputError(
            f"{len(bad)} of {shards} shards are bad ({some}); "
            f"source.max_bad_share={config.source.max_bad_share} lets a run leave out {allowed}. "
            "Restore them, or take them out of source.path"
            + ("" if len(bad) == shards else ", or raise the setting")
        )
