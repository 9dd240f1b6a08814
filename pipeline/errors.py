"""Every way a run can end badly, one class for each thing the operator does about it.

A message says what, got, expected and the next step. The entry points print that one line and
exit with the class's own code, so a scheduler can tell a broken config from a night to retry.
"""

from __future__ import annotations

import errno
import re


class PipelineError(Exception):
    """A failure that has a cause the operator can act on.

    Attributes:
        exit_code: Exit status of the process for this kind of failure.
        retryable: Whether running the same run id again, unchanged, may succeed.
    """

    exit_code = 1
    retryable = False


class ConfigError(PipelineError):
    """The settings are wrong or cannot be satisfied: fix the YAML or the ``--set``."""

    exit_code = 2


class InputError(PipelineError):
    """The data is wrong: a missing path, a schema that does not fit, NaN, a corrupt shard."""

    exit_code = 3


class BadShard(InputError):
    """One shard is corrupt, truncated, gone, or not the version that was pinned.

    Attributes:
        url: Where it lies.
        reason: What is wrong with it, for the list of what was left out.
    """

    def __init__(self, message: str, url: str = "", reason: str = "") -> None:
        super().__init__(message, url, reason)  # all of it in args, which survive pickling
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        """The message alone."""
        return str(self.args[0])


class NumericalError(PipelineError):
    """The computation went wrong, for example a loss that is not finite."""

    exit_code = 4


class GateRefused(PipelineError):
    """The new model was refused; the model in use still serves."""

    exit_code = 5


class TransientError(PipelineError):
    """Something outside failed and may work next time: retry the same run id."""

    exit_code = 6
    retryable = True


class NodesLost(TransientError):
    """Nodes of the cluster are gone, and what ran there has no room elsewhere."""


class OutOfMemory(TransientError):
    """Workers ran out of memory: tried again with less work at a time, before anybody is asked."""


class StorageFull(TransientError):
    """The output has no room left: make room, then the same run id goes on where this one ended."""

    retryable = False  # unchanged, nothing would change


class CommitError(PipelineError):
    """Publishing failed."""

    exit_code = 7


class CommitConflict(CommitError):
    """Another run published first: refresh and retry."""

    exit_code = 7
    retryable = True


class CommitStateUnknown(CommitError):
    """Nobody knows whether the commit landed: stop; nothing is deleted."""

    exit_code = 8


class LeaseHeld(PipelineError):
    """Another attempt works on the same ds: wait for it, or stop it and start again."""

    exit_code = 9
    retryable = True


class StorageRefused(PipelineError):
    """The object store said no for good: credentials, permissions, or the bucket's owner."""

    exit_code = 10


class Interrupted(PipelineError):
    """Asked to leave: what is complete is kept, and the same run id goes on from there."""

    exit_code = 130  # the shell's for a process that SIGINT ended
    retryable = True


# What Arrow, torch, C++, Python and Ray say when an allocation fails or memory is nearly used up.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|cannot allocate memory|can't allocate memory|bad_alloc"
    r"|(malloc|realloc) of size|MemoryError|running low on memory|can't start new thread",
    re.IGNORECASE,
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; libraries say so with exceptions of many kinds."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return not isinstance(error, PipelineError) and bool(_OUT_OF_MEMORY.search(str(error)))
