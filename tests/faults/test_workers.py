"""SIGKILL of the processes that Ray runs the work in, amid it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from faults.ledger import FULL, Ledger
from faults.nights import (
    WIDE_ROWS,
    Night,
    assert_every_row_once,
    pacing,
    ray_processes,
    wide_settings,
)

pytestmark = pytest.mark.faults

ASSIGNER = "MapWorker(MapBatches(Assigner))"
TRAINER = "RayTrainWorker"
READER = "MapBatches(read)"
# Both go on in the same way.
TRAININGS = ("pretrain", "refine") if FULL else ("pretrain",)


@pytest.fixture
def night(tmp_path: Path, ray_address: str) -> Iterator[Night]:
    settings = wide_settings(tmp_path / "wide")
    settings["augment"] = {"function": "paced:paced"}
    settings["pretrain"] |= {"batch_rows": 300}  # two updates a pass
    settings["refine"] = {"passes": 200, "batch_rows": 300, "tol": 0} if FULL else {"passes": 0}
    found = Night(tmp_path / "night", settings, ray_address)
    yield found
    found.stop()


def kill_one(night: Night, title: str) -> psutil.Process:
    """SIGKILL a process as soon as it is at work of this name."""
    process: psutil.Process = night.wait_for(lambda: ray_processes(title), step_s=0.01)[0]
    process.kill()
    return process


def test_killed_amid_sampling_training_and_assigning(night: Night, ledger: Ledger) -> None:
    hit, pace = {}, pacing(night.folder)
    night.start()
    hit["sample"] = kill_one(night, READER)
    ledger.injected("SIGKILL of a Ray Data task's worker", "sample")
    for stage in TRAININGS:
        pace.touch()
        checkpoint = night.marker(stage).with_name("checkpoint.safetensors")
        night.wait_for(checkpoint.exists)
        hit[stage] = kill_one(night, TRAINER)
        assert not night.complete(stage)
        ledger.injected("SIGKILL of a train worker", stage)
        pace.unlink()
    parts = night.lake / "runs/night/assignments"
    night.wait_for(lambda: list(parts.glob("part-*")), step_s=0.005)
    hit["assign"] = kill_one(night, ASSIGNER)
    assert not night.complete("assign")
    ledger.injected("SIGKILL of an assign actor", "assign")
    result = night.finish()
    assert result.code == 0, result.err
    assert not any(process.is_running() for process in hit.values())
    log = night.logs()
    for stage in TRAININGS:  # one line each, and not from the start again
        assert log.count(f"training for runs/night/stages/{stage}: retry ") == 1
    assert log.count("resumes after pass") == len(TRAININGS)
    assert set(night.artifact("pretrain")["workers"]) == {2}
    assert_every_row_once(night)
    ledger.survived("SIGKILL of a Ray Data task's worker", "sample", rows=WIDE_ROWS)
    for stage in TRAININGS:
        ledger.survived("SIGKILL of a train worker", stage, rows=WIDE_ROWS)
    ledger.survived("SIGKILL of an assign actor", "assign", rows=WIDE_ROWS)
