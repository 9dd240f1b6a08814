"""How stages tell whoever watches what they are doing; the entry points decide how it looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one stage after another."""

    def stage_started(self, stage: str) -> None:
        """A stage begins to work."""

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Work done so far in the current stage, in units such as "rows"; total if known."""

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """A stage is complete, now or (reused) in an earlier attempt at this run."""


class NoProgress:
    """Nobody watches."""

    def stage_started(self, stage: str) -> None:
        """Ignored."""

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Ignored."""

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Ignored."""
