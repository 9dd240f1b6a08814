"""Bounded retries with backoff; one log line each."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.config import Execution
from pipeline.counts import count
from pipeline.distributed.failures import lost_worker, pipeline_error
from pipeline.errors import ConfigError, Interrupted, OutOfMemory, TransientError

log = logging.getLogger(__name__)

R = TypeVar("R")

_FIRST_PAUSE_S = 2.0  # a restart takes longer anyway
_LONGEST_PAUSE_S = 30.0  # far less than a restart costs


def with_retries(
    settings: Execution,
    what: str,
    work: Callable[[], R],
    *,
    memory: str,
    progress: Callable[[], int] = lambda: 0,
) -> R:
    """Call work until it succeeds; lost workers and connections are retried, defects are not.

    Args:
        settings: ``retries`` limits the failures in a row without progress.
        what: Name of the work in the log.
        work: The work; a retry continues where the attempt before ended.
        memory: What to change when workers keep running out of memory, as an imperative.
        progress: How far the work is; a failure after progress is the first in a row.

    Raises:
        ConfigError: Workers ran out of memory in every attempt.
        Interrupted: The work was asked to stop.
        PipelineError: The work failed for good.
    """
    failures = 0
    while True:
        before = progress()
        try:
            return work()
        except Exception as error:
            failure = pipeline_error(error)
            if isinstance(failure, Interrupted):
                raise failure from error
            failures = 1 if progress() > before else failures + 1
            if failure.retryable and failures <= settings.retries:
                pause_s, turn = pause(failures), f"retry {failures} of {settings.retries}"
                count("retries", kind=type(failure).__name__)
                log.warning("%s: %s in %.1f s: %s", what, turn, pause_s, failure)
                time.sleep(pause_s)
                continue
            if isinstance(failure, OutOfMemory):
                raise ConfigError(
                    f"{what}: {failure}, again after {failures - 1} retries. To need less, {memory}"
                ) from error
            if lost_worker(error):
                raise TransientError(
                    f"{failure}. If workers were killed for lack of memory, {memory}"
                ) from error
            raise failure from error


def pause(failures: int) -> float:
    """Seconds to wait after this many failures in a row: doubling, with jitter from half to all."""
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1))
    return longest * random.SystemRandom().uniform(0.5, 1.0)  # not from the seed of the results
