"""The table of faults that is kept: complete, and what the results say."""

from __future__ import annotations

import pytest

from faults.ledger import TABLE, Ledger, Line, Results
from faults.test_driver import FAULT, unmeasured
from pipeline.run import STAGES


def test_every_fault_that_was_injected_was_survived() -> None:
    results = Results.read()
    assert [ln for ln in results.lines if ln.survived != ln.injected or not ln.injected] == []
    assert TABLE.read_text("utf-8") == results.table()
    words = " ".join(f"{line.fault} {line.where}" for line in results.lines)
    for row in ("loss of a whole node, without", "503 SlowDown", "20%", "disk full", "spilling"):
        assert row in words
    for row in ("corrupt", "clock skew", "two runs", "out of memory"):
        assert row in words


def test_the_driver_was_killed_in_every_stage() -> None:
    assert unmeasured(Results.read().lines) == []


def test_a_stage_without_a_kill_is_noticed() -> None:
    lines = [Line(FAULT, stage.name, 3, 3) for stage in STAGES if stage.name != "report"]
    assert unmeasured(lines) == ["report"]


def test_lines_measured_again_say_when() -> None:
    ledger = Ledger()
    ledger.injected("fire", "pin")
    ledger.survived("fire", "pin", rows=1_000)
    before = Results("2026-01-31, commit abc", (Line("fire", "pin", 2, 2), Line("flood", "pin")))
    after = before.updated(ledger.lines.values(), "2026-02-01, commit def")
    assert [line.injected for line in after.lines] == [1, 0]
    text = after.table()
    assert "Last complete result: 2026-01-31, commit abc;" in text
    assert "| fire | pin | 1 | 1 | 1,000 | 2026-02-01, commit def |" in text
    assert "| flood | pin | 0 | 0 | 0 |  |" in text


@pytest.mark.parametrize("stage", ["explain", "describe", "report"])
def test_stages_after_publishing_are_in_the_table(stage: str) -> None:
    assert any((ln.fault, ln.where) == (FAULT, stage) for ln in Results.read().lines)
