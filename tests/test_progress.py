"""Several who watch a run as one."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from pipeline.progress import Watchers, figures


class Heard:
    """Remembers what it was told, and fails when it is told of ``fails_at``."""

    def __init__(self, fails_at: str = "") -> None:
        self.told: list[tuple[object, ...]] = []
        self._fails_at = fails_at

    def stage_started(self, stage: str) -> None:
        self.told.append(("started", stage))
        if stage == self._fails_at:
            raise OSError("the server is away")

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        self.told.append(("advanced", done, total, unit, note))

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("measured", stage, step, dict(values)))

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        self.told.append(("finished", stage, seconds, reused))


def test_each_is_told_everything(caplog: pytest.LogCaptureFixture) -> None:
    well, ill = Heard(), Heard(fails_at="sample")
    watchers = Watchers(ill, well)
    watchers.stage_started("pin")
    watchers.stage_advanced(1, 2, "rows", "loss 1")
    watchers.measured("pin", 3, {"loss": 0.5})
    watchers.stage_finished("pin", 1.5, reused=True)
    assert well.told == ill.told
    assert well.told == [
        ("started", "pin"),
        ("advanced", 1, 2, "rows", "loss 1"),
        ("measured", "pin", 3, {"loss": 0.5}),
        ("finished", "pin", 1.5, True),
    ]

    with caplog.at_level(logging.WARNING):
        watchers.stage_started("sample")
        watchers.stage_finished("sample", 2.0, reused=False)
    assert "Heard failed and is no longer called" in caplog.text
    assert well.told[-1] == ("finished", "sample", 2.0, False)
    assert ill.told[-1] == ("started", "sample")  # and nothing after


def test_nobody_watches() -> None:
    Watchers().stage_started("pin")


def test_a_refusal_is_a_figure_and_other_flags_are_none() -> None:
    assert figures({"rows": 3, "refused": True, "passed": True}) == {"rows": 3, "refused": 1}
    assert figures({"refused": False}) == {"refused": 0}
