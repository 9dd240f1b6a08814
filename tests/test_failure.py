"""``failure.json``, and the hint how to resume."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

import pytest

from jobs import failure
from jobs.night import _how_to_resume
from pipeline.engine import Context
from pipeline.errors import TransientError


@pytest.mark.parametrize(
    ("failed", "reached", "resolved"),
    [("gate", "pin", False), ("promote", "identify", False), ("gate", "assign", True)],
)
def test_a_failure_is_overcome_by_its_own_stage_or_a_later_one(
    context: Context, failed: str, reached: str, resolved: bool
) -> None:
    failure.keep(context, failed, TransientError("no"), "log")
    failure.resolve(context.lake, context.run_path, reached)
    kept = context.lake.read_json(f"{context.run_path}/{failure.NAME}")
    assert (kept["resolved_at"] is not None) == resolved


def test_the_hint_how_to_resume_survives_a_shell() -> None:
    attempt = SimpleNamespace(by_schedule=True, run_id="r")
    overrides = ["source.path=it's here", "seed=1"]
    hint = _how_to_resume("my configs/a.yaml", attempt, "2026-01-31", overrides)  # type: ignore[arg-type]
    words = shlex.split(hint.partition("Resume with: ")[2])
    assert words[:3] == ["dec", "nightly", "my configs/a.yaml"]
    assert words[-4:] == ["--set", overrides[0], "--set", overrides[1]]
