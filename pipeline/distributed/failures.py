"""Finding out, inside what Ray raises, what really went wrong."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator

import ray.exceptions
import ray.train
from ray.train.v2._internal import exceptions as train_errors

from pipeline.errors import OutOfMemory, PipelineError, TransientError, says_out_of_memory
from pipeline.storage import why

_WRAPPERS = (
    ray.exceptions.RayTaskError,
    ray.train.TrainingFailedError,
    train_errors.WorkerHealthCheckFailedError,
)
# Ray Train's, of workers that do not answer in time or that never came.
_LOST = (
    train_errors.WorkerHealthCheckTimeoutError,
    train_errors.WorkerGroupStartupFailedError,
    train_errors.WorkerGroupStartupTimeoutError,
)
# What the other workers say when one of them is gone.
_LOST_PEER = re.compile(r"gloo/transport|NCCL|[Cc]onnection (reset|closed) by peer")


def pipeline_error(error: BaseException) -> PipelineError:
    """The pipeline's error that made work on Ray fail, or one that says what did.

    Ray wraps an exception once for every process that it crosses, each time in another way.

    Returns:
        Our own error where one is inside; an OutOfMemory for an allocation that failed; a
        TransientError for a lost worker, node or connection; a plain PipelineError for an
        exception that nobody foresaw.
    """
    causes = list(_causes(error))
    ours = [cause for cause in causes if isinstance(cause, PipelineError)]
    # Ray's are of classes made up on the spot that also derive from its own; ours is inside.
    ours.sort(key=lambda cause: type(cause).__module__ != PipelineError.__module__)
    for cause in ours:
        # A plain copy: Ray Data adds lines about its retries behind the message.
        kind = next(k for k in type(cause).__mro__ if k.__module__ == PipelineError.__module__)
        message, *more = cause.args or (str(cause),)
        return typing.cast(PipelineError, kind(str(message).splitlines()[0], *more))
    if memory := next((c for c in causes if says_out_of_memory(c)), None):
        return OutOfMemory(f"a worker ran out of memory: {why(memory)}")
    # A TrainingFailedError only says that one of its workers, named inside, did; and those that
    # lost it in the middle of a sum only say that it is gone.
    told = [cause for cause in causes if not isinstance(cause, _WRAPPERS)] or causes[:1]
    last = next((cause for cause in told if not _LOST_PEER.search(str(cause))), told[0])
    outside = isinstance(last, (OSError, ray.exceptions.RayError, *_LOST, *_WRAPPERS))
    if outside or _LOST_PEER.search(str(last)):
        return TransientError(
            f"{type(last).__name__}: {why(last)}; the same run id continues where this one stopped"
        )
    return PipelineError(f"{type(last).__name__}: {why(last)}; this is a defect, please report it")


def lost_worker(error: BaseException) -> bool:
    """Whether a process of Ray ended amid its work, for a reason that it could not tell."""
    kinds = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it, each once, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        error = waiting.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        inner = [error.__cause__, error.__context__, getattr(error, "cause", None)]
        # The others are of Ray Train.
        inner += [getattr(error, n, None) for n in ("controller_failure", "health_check_failure")]
        inner += list(getattr(error, "worker_failures", {}).values())
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]
