"""Finding out, inside what Ray raises, what really went wrong."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import ray.exceptions
import ray.train

from pipeline.errors import PipelineError, TransientError
from pipeline.storage import why

_WRAPPERS = (ray.exceptions.RayTaskError, ray.train.TrainingFailedError)


def pipeline_error(error: BaseException) -> PipelineError:
    """The pipeline's error that made work on Ray fail, or one that says what did.

    Ray wraps an exception once for every process that it crosses, each time in another way.

    Returns:
        Our own error where one is inside; a TransientError for a lost worker, node or
        connection; a plain PipelineError for an exception that nobody foresaw.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, PipelineError):
            # A plain copy: Ray's is of a class made up on the spot that also derives from its own,
            # and Ray Data adds lines about its retries behind the message.
            kind = next(k for k in type(cause).__mro__ if k.__module__ == PipelineError.__module__)
            message = str(cause.args[0] if cause.args else cause).splitlines()[0]
            return typing.cast(PipelineError, kind(message))
    # A TrainingFailedError only says that one of its workers, named inside, did.
    last = next((c for c in causes if not isinstance(c, _WRAPPERS)), causes[0])
    if isinstance(last, (OSError, ray.exceptions.RayError, *_WRAPPERS)):
        return TransientError(
            f"{type(last).__name__}: {why(last)}; the same run id continues where this one stopped"
        )
    return PipelineError(f"{type(last).__name__}: {why(last)}; this is a defect, please report it")


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
        inner += list(getattr(error, "worker_failures", {}).values())  # of Ray Train
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]
