"""Trying again: how often, after which pause, and said once each time."""

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

_FIRST_PAUSE_S = 2.0  # what died is gone at once, and starting again takes longer anyway
_LONGEST_PAUSE_S = 30.0  # far below what it costs to start over


def with_retries(
    settings: Execution,
    what: str,
    work: Callable[[], R],
    *,
    memory: str,
    progress: Callable[[], int] = lambda: 0,
) -> R:
    """Call work until it succeeds; what is lost outside is tried again, a defect is not.

    Args:
        settings: ``retries`` bounds the failures in a row that get no further.
        what: Names the work in the log.
        work: Goes on where the attempt before it ended.
        memory: What to change when workers run out of memory again and again, as an imperative.
        progress: How far the work is; a failure after progress is the first in a row.

    Raises:
        ConfigError: There is too little memory even so.
        Interrupted: The work was asked to end, which is not tried again.
        PipelineError: What else stopped it.
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
                pause_s = pause(failures)
                count("retries", kind=type(failure).__name__)
                log.warning(
                    "%s: tried again in %.1f s, retry %d of %d: %s",
                    what,
                    pause_s,
                    failures,
                    settings.retries,
                    failure,
                )
                time.sleep(pause_s)
                continue
            if isinstance(failure, OutOfMemory):
                raise ConfigError(
                    f"{what}: {failure}, again after {failures - 1} retries. To need less, {memory}"
                ) from error
            if lost_worker(error):
                raise TransientError(
                    f"{failure}. Where workers are ended for want of memory, {memory}"
                ) from error
            raise failure from error


def pause(failures: int) -> float:
    """Seconds to wait after this many failures in a row.

    Twice as long each time, and by chance half of it or all: what failed together does not
    come back together.
    """
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (failures - 1))
    return longest * random.SystemRandom().uniform(0.5, 1.0)  # not from the seed of the results
