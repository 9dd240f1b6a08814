"""SIGKILL of the driver in every stage, then the same run id again."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import SMALL

from faults.conftest import Ledger
from faults.nights import PATIENCE_S, Night
from pipeline.run import STAGES

pytestmark = pytest.mark.faults

FAULT = "SIGKILL of the driver"
ROWS = 600
KILLS = 3
# A stage of a millisecond may be over before it is hit; what it changed is then taken back.
TRIES = 12


@pytest.fixture
def settings(table_folder: Path) -> dict[str, Any]:
    """Trainings of many passes and checkpoints, over a small table."""
    return {
        "source": {"path": str(table_folder), "features": ["x"], "keys": ["id"]},
        "clusters": 3,
        **SMALL,
        "pretrain": {"passes": 150, "min_updates": 0, "batch_rows": 32},
        "refine": {"passes": 40, "batch_rows": 32, "tol": 0},
        "execution": {"workers": 1, "checkpoint_seconds": 1},
    }


def test_killed_in_every_stage_at_three_points_each(
    settings: dict[str, Any], ray_address: str, tmp_path: Path, ledger: Ledger
) -> None:
    calm = Night(tmp_path / "calm", settings, ray_address)
    result = calm.run("--json")
    assert result.code == 0, result.err
    seconds = {stage["stage"]: stage["seconds"] for stage in result.json["stages"]}
    expected = calm.rows()

    night = Night(tmp_path / "stormy", settings, ray_address)
    points = random.Random(5)
    before = tmp_path / "before"
    for stage in (stage.name for stage in STAGES):
        for kill in range(KILLS):
            shutil.rmtree(before, ignore_errors=True)
            if night.lake.exists():
                shutil.copytree(night.lake, before)
            for attempt in range(TRIES):
                night.start()
                night.wait_for_stage(stage)
                # A third of the stage each; earlier where that came too late.
                part = (kill + points.random()) / KILLS * 0.7**attempt
                time.sleep(part * max(0.002, seconds.get(stage, 0)))
                night.kill()
                if not night.complete(stage):
                    break
                shutil.rmtree(night.lake)
                if before.exists():
                    shutil.copytree(before, night.lake)
            else:
                pytest.fail(f"stage {stage} was over each time before it could be hit")
            ledger.injected(FAULT, stage)
            if stage in (
                "publish",
                "explain",
                "describe",
                "summary",
                "report",
            ):  # readers see all of it or nothing
                assert night.snapshots() in ([], ["1.json"])
                assert not night.snapshots() or night.rows().num_rows == ROWS
            else:
                assert night.snapshots() == []
    result = night.run()
    assert result.code == 0, result.err
    assert night.snapshots() == ["1.json"]
    rows = night.rows()
    assert rows["id"].to_pylist() == list(range(ROWS))
    assert rows.equals(expected)  # not only every row once: what an undisturbed run says of it
    for stage in (stage.name for stage in STAGES):
        ledger.survived(FAULT, stage, rows=ROWS, times=KILLS)


def test_killed_with_a_ray_of_its_own_and_training_workers(
    settings: dict[str, Any], tmp_path: Path, ledger: Ledger
) -> None:
    settings["pretrain"]["passes"] = 100_000  # until it is killed
    settings["execution"]["workers"] = 2
    night = Night(tmp_path / "night", settings, None)
    night.start()
    checkpoint = night.lake / "runs/night/stages/pretrain/checkpoint.safetensors"
    night.wait_for(checkpoint.exists)
    children = psutil.Process(night.process.pid).children(recursive=True)
    assert sum("ray::" in " ".join(child.cmdline()) for child in children) >= 2
    night.kill()
    ledger.injected(FAULT, "pretrain, two workers and a Ray of its own")
    try:
        # The Ray that it started ends with it: nothing stays behind on the machine.
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert alive == []
    finally:
        for child in children:
            if child.is_running():
                child.kill()
    # No more passes, or it would learn for ever; and in place, which is faster.
    result = night.run("--set", "pretrain.passes=2", "--set", "execution.workers=1")
    assert result.code == 0, result.err
    assert night.rows()["id"].to_pylist() == list(range(ROWS))
    ledger.survived(FAULT, "pretrain, two workers and a Ray of its own", rows=ROWS)
