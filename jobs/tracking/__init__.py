"""Experiment trackers: MLflow, TensorBoard and OpenLineage, as far as ``track`` configures them.

Their failures never change or fail a run. Each gets its events in order in a thread of its own, and
a few seconds at the end for those that are left.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts.records import Artifact
from pipeline.artifacts.summaries import Summary
from pipeline.config import Config
from pipeline.errors import ConfigError, Interrupted, PipelineError
from pipeline.progress import Progress
from pipeline.storage import Store, why

log = logging.getLogger(__name__)

# Time for the last events at the end of a run; shorter within a grace period.
_LAST_SECONDS, _LAST_SECONDS_OF_GRACE = 10.0, 3.0
# A tracker that hangs must not fill the memory with waiting events.
_WAITING = 10_000
_PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard", "openlineage": "openlineage.client"}


@dataclass(frozen=True)
class Attempt:
    """An attempt at a run; its start in UTC distinguishes attempts at the same run."""

    config: Config
    run_id: str
    ds: str
    lake: Store
    started: datetime.datetime


@dataclass(frozen=True)
class Ending:
    """End of an attempt: its error, the last stage that started, the summary of a complete run."""

    error: PipelineError | None
    stage: str
    summary: Summary | None


class Tracker:
    """Base of all trackers, which ignores every event; its methods may raise and block."""

    def begin(self) -> None:
        """The attempt holds the lease of its ds, and starts."""

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See ``Progress.measured``."""

    def stage_finished(self, stage: str) -> None:
        """A stage is complete."""

    def end(self, ending: Ending) -> None:
        """Record how the attempt ended; the last call."""


class Trackers(Progress):
    """Progress observer that forwards events to all configured trackers.

    ``on_failure`` is called with the message of a failed tracker, from another thread.

    Raises:
        ConfigError: The package of a tracker is not installed.
    """

    def __init__(self, attempt: Attempt, on_failure: Callable[[str], None]) -> None:
        track = attempt.config.track
        wanted = [name for name in _PACKAGES if getattr(track, name) is not None]
        for name in wanted:
            if not _is_installed(_PACKAGES[name]):
                raise ConfigError(
                    f"track.{name} needs a package that is not installed; run: "
                    f"pip install 'dec-pipeline[{name}]'"
                )
        self._channels = [_Channel(name, attempt, on_failure) for name in wanted]
        self._begun = False

    def begin(self) -> None:
        """Start the trackers; earlier events are not forwarded."""
        if not self._begun:
            self._begun = True
            for channel in self._channels:
                channel.start()
            self._forward("begin")

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Forwarded to each tracker."""
        self._forward("measured", stage, step, values)

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Forwarded to each tracker, with the stage's duration as a metric."""
        if not reused:
            self._forward("measured", stage, 0, {"seconds": seconds})
        self._forward("stage_finished", stage)

    def end(self, error: PipelineError | None, stage: str, result: Artifact | None) -> None:
        """Forward the end, and wait a few seconds for the trackers."""
        if not self._begun:
            return
        summary = result if isinstance(result, Summary) else None
        self._forward("end", Ending(error, stage, summary))
        hurry = isinstance(error, Interrupted)
        deadline = time.monotonic() + (_LAST_SECONDS_OF_GRACE if hurry else _LAST_SECONDS)
        for channel in self._channels:
            channel.close(deadline)

    def _forward(self, what: str, *arguments: Any) -> None:
        if self._begun:
            for channel in self._channels:
                channel.put(what, *arguments)


class _Channel:
    """A tracker with its queue of events and its thread."""

    def __init__(self, name: str, attempt: Attempt, on_failure: Callable[[str], None]) -> None:
        self._name, self._attempt, self._on_failure = name, attempt, on_failure
        self._events: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"track.{name}", daemon=True)
        self._failed = False

    def start(self) -> None:
        self._thread.start()

    def put(self, what: str, *arguments: Any) -> None:
        if not self._failed:
            try:
                self._events.put_nowait((what, arguments))
            except queue.Full:
                self._fail("it is too slow")

    def close(self, deadline: float) -> None:
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._fail("it timed out at the end of the run")

    def _work(self) -> None:
        try:
            module = importlib.import_module(f"jobs.tracking.{self._name}")
            tracker: Tracker = getattr(module, f"{self._name.capitalize()}Tracker")(self._attempt)
            while event := self._events.get():
                what, arguments = event
                getattr(tracker, what)(*arguments)
        except Exception as error:
            log.warning("track.%s failed", self._name, exc_info=True)
            self._fail(why(error))

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(f"track.{self._name}: {reason}; the run goes on without it")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def final_tags(summary: Summary) -> dict[str, str]:
    """Tags of a complete run."""
    names = ("model_id", "shipped", "challenger", "snapshot", "action", "refused")
    return {name: str(getattr(summary, name)) for name in names}


def final_figures(summary: Summary) -> dict[str, float]:
    """Final metrics of a run: its totals, and the quality of each candidate."""
    comparison = summary.comparison
    figures: dict[str, float | None] = {
        "run/rows": summary.rows_out,
        "run/mean_confidence": summary.mean_confidence,
        "run/generalisation": comparison.generalisation if comparison else None,
        "run/seconds": sum(time.seconds for time in summary.stages),
    }
    names = ("rows_labelled", "rows_carried", "churn", "max_psi", "refused")
    figures |= {f"run/{name}": getattr(summary, name) for name in names}
    for candidate in comparison.candidates if comparison else ():
        quality: dict[str, float | None] = {
            "separation": candidate.separation,
            "balance": candidate.balance,
            "stability": candidate.stability,
            "empty_clusters": candidate.empty_clusters,
        }
        quality |= {f"silhouette_{s.space}": s.silhouette for s in candidate.spaces}
        if scores := candidate.scores:
            quality |= {"acc": scores.acc, "nmi": scores.nmi, "ari": scores.ari}
        figures |= {f"{candidate.kind}/{name}": value for name, value in quality.items()}
    return {name: float(value) for name, value in figures.items() if value is not None}
