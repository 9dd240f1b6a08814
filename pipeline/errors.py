"""Errors of a run, one class for each thing that the operator does about it.

A message says what, got, expected and the next step. The entry points print it as one line and exit
with the code of the class, so that a scheduler can tell a broken config from a night to retry.
"""

from __future__ import annotations

import errno
import re


class PipelineError(Exception):
    """A failure with a cause that the operator can act on.

    Attributes:
        exit_code: Exit status of the process.
        retryable: Whether the same run id, unchanged, may succeed when run again.
    """

    exit_code = 1
    retryable = False


class ConfigError(PipelineError):
    """Settings are wrong or cannot be satisfied: fix the YAML or the ``--set``."""

    exit_code = 2


class InputError(PipelineError):
    """Input is wrong: a missing path, a schema that does not fit, NaN, a corrupt shard."""

    exit_code = 3


class BadShard(InputError):
    """A shard is corrupt, truncated, missing, or not the version that was pinned.

    Attributes:
        reason: What is wrong with it, for the list of excluded shards.
    """

    def __init__(self, message: str, url: str = "", reason: str = "") -> None:
        super().__init__(message, url, reason)  # all in args, which survive pickling
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        """The message alone."""
        return str(self.args[0])


class NumericalError(PipelineError):
    """A computation failed, for example by a loss that is not finite."""

    exit_code = 4


class GateRefused(PipelineError):
    """The gate refused the new model; the model in use still serves."""

    exit_code = 5


class TransientError(PipelineError):
    """Something outside failed and may pass: retry the same run id."""

    exit_code = 6
    retryable = True


class NodesLost(TransientError):
    """Nodes of the cluster are lost, and there is no room elsewhere for what ran on them."""


class OutOfMemory(TransientError):
    """Workers ran out of memory: retried, with less work at a time where that is possible."""


class StorageFull(TransientError):
    """The output's storage is full: make room, then run the same run id again."""

    retryable = False  # not until there is room


class CommitError(PipelineError):
    """Publishing failed."""

    exit_code = 7


class CommitConflict(CommitError):
    """Another run published first: retry."""

    retryable = True


class CommitStateUnknown(CommitError):
    """It is unknown whether the commit succeeded: stop; nothing is deleted."""

    exit_code = 8


class LeaseHeld(PipelineError):
    """Another attempt is working on the same ds: wait for it, or stop it and retry."""

    exit_code = 9
    retryable = True


class StorageRefused(PipelineError):
    """Permanent refusal by the object store: credentials, permissions, or the bucket's owner."""

    exit_code = 10


class Interrupted(PipelineError):
    """Stopped on request: what is complete is kept, and the same run id continues from there."""

    exit_code = 130  # a shell's code for SIGINT
    retryable = True


# Messages of Arrow, torch, C++, Python and Ray about failed allocations and scarce memory.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|cannot allocate memory|can't allocate memory|bad_alloc"
    r"|(malloc|realloc) of size|MemoryError|running low on memory|can't start new thread",
    re.IGNORECASE,
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; libraries raise exceptions of many kinds for it."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return not isinstance(error, PipelineError) and bool(_OUT_OF_MEMORY.search(str(error)))
