"""Unwrap Ray's exceptions to their root cause, as one of the pipeline's errors."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator

import ray.exceptions

from pipeline.distributed.private_ray import inner_failures, train_wrappers, worker_lost_errors
from pipeline.errors import OutOfMemory, PipelineError, TransientError, says_out_of_memory
from pipeline.storage import why

Kinds = tuple[type[BaseException], ...]

# Errors of the other workers when one of them is lost.
_LOST_PEER = re.compile(r"gloo/transport|NCCL|[Cc]onnection (reset|closed) by peer")


def pipeline_error(error: BaseException) -> PipelineError:
    """The pipeline's error that made work on Ray fail, or one that describes the cause.

    Ray wraps an exception once for every process that it crosses, each time in another way.

    Returns:
        Our own error where one is inside; an OutOfMemory for a failed allocation; a
        TransientError for a lost worker, node or connection; a plain PipelineError for any other
        exception.
    """
    causes = list(_causes(error))
    ours = [cause for cause in causes if isinstance(cause, PipelineError)]
    # Ray derives classes from its own error and ours; the plain one of ours is inside.
    ours.sort(key=lambda cause: type(cause).__module__ != PipelineError.__module__)
    for cause in ours:
        # A plain copy: Ray Data appends lines about its retries to the message.
        kind = next(k for k in type(cause).__mro__ if k.__module__ == PipelineError.__module__)
        message, *more = cause.args or (str(cause),)
        return typing.cast(PipelineError, kind(str(message).splitlines()[0], *more))
    if memory := next((c for c in causes if says_out_of_memory(c)), None):
        return OutOfMemory(f"a worker ran out of memory: {why(memory)}")
    # Wrappers only say that a worker failed, and workers that lost it amid a sum only say that it
    # is gone.
    wrappers: Kinds = (ray.exceptions.RayTaskError, *train_wrappers())
    candidates = [cause for cause in causes if not isinstance(cause, wrappers)] or causes[:1]
    last = next((cause for cause in candidates if not _LOST_PEER.search(str(cause))), candidates[0])
    outside: Kinds = (OSError, ray.exceptions.RayError, *worker_lost_errors(), *wrappers)
    if isinstance(last, outside) or _LOST_PEER.search(str(last)):
        return TransientError(
            f"{type(last).__name__}: {why(last)}; the same run id continues where this one stopped"
        )
    return PipelineError(f"{type(last).__name__}: {why(last)}; this is a defect, please report it")


def lost_worker(error: BaseException) -> bool:
    """Whether a Ray process died at work without giving a reason."""
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
        inner = (error.__cause__, error.__context__, *inner_failures(error))
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]
