"""Progress of a run, reported by its stages to observers that the entry points choose."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


class Progress:
    """Base of all observers, which ignores the progress of one stage after another."""

    def stage_started(self, stage: str) -> None:
        """A stage begins to work."""

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Work done so far in the current stage, in units such as "rows"; total if known."""

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Figures of a stage by name.

        Those of each record of a training (loss, kl, label_change, …), where ``step`` is its
        number, which repeats after a retry; and with step 0 the numbers in the stage's artifact.
        """

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """A stage is complete, now or (reused) in an earlier attempt at this run."""


class Watchers(Progress):
    """Fan out to all observers; one that fails is dropped and does not fail the run."""

    def __init__(self, *watchers: Progress) -> None:
        self._watchers = list(watchers)

    def stage_started(self, stage: str) -> None:
        """See ``Progress``."""
        self._tell("stage_started", stage)

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """See ``Progress``."""
        self._tell("stage_advanced", done, total, unit, note)

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See ``Progress``."""
        self._tell("measured", stage, step, values)

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """See ``Progress``."""
        self._tell("stage_finished", stage, seconds, reused=reused)

    def _tell(self, what: str, *arguments: Any, **named: Any) -> None:
        for watcher in list(self._watchers):
            try:
                getattr(watcher, what)(*arguments, **named)
            except Exception:
                name = type(watcher).__name__
                log.warning("%s failed and is no longer called", name, exc_info=True)
                self._watchers.remove(watcher)


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a training's record or of an artifact by name, for ``Progress.measured``.

    ``cluster_rows`` become the number of clusters with rows and the share of the largest.
    """
    values = {
        name: float(value)
        for name, value in record.items()
        if name != "number" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if cluster_rows := record.get("cluster_rows"):
        values["clusters"] = float(sum(rows > 0 for rows in cluster_rows))
        values["largest_share"] = max(cluster_rows) / max(1, sum(cluster_rows))
    if "refused" in record:  # a night's own model
        values["refused"] = float(record["refused"])
    if "event" in record:
        values["collapse_events"] = float(record["event"] is not None)
    return values


def duration(seconds: float) -> str:
    """A duration in seconds below two minutes, then in minutes, then in hours."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
