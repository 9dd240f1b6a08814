"""SIGKILL of the driver in every stage, then the same run id again."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from conftest import SMALL, Dec, blobs, published, write_shards

from faults.ledger import FULL, Ledger, Line
from faults.nights import PATIENCE_S, Night
from pipeline.run import STAGES

pytestmark = pytest.mark.faults

FAULT = "SIGKILL of the driver"
ROWS = 600
KILLS = 3 if FULL else 1
# One of each way in which stages go on after a kill: the driver's own work, parts of Ray Data, a
# training with checkpoints and one with centroids as well, a task, a commit to the registry, actors
# that write part files, the commit for readers, and what comes after it.
PLACES = (
    *("pin", "sample", "pretrain", "refine", "init_centroids"),
    *("promote", "assign", "publish", "report"),
)
# After the commit, readers see the rows.
READABLE = ("publish", "explain", "describe", "summary", "report")
# A stage of a millisecond may be over before it is hit; what it changed is then taken back.
TRIES = 12


def killed_in() -> list[str]:
    """The stages of a run, all of them in the full form."""
    names = [stage.name for stage in STAGES if stage.name != "warm_start"]  # of refreshes alone
    return names if FULL else [name for name in names if name in PLACES]


def unmeasured(lines: Iterable[Line]) -> list[str]:
    """Stages during which the driver was never killed."""
    hit = {line.where for line in lines if line.fault == FAULT and line.injected}
    return [stage.name for stage in STAGES if stage.name not in hit]


def settings_of(table: Path) -> dict[str, Any]:
    """Trainings of many passes and checkpoints, over a small table."""
    return {
        "source": {"path": str(table), "features": ["x"], "keys": ["id"]},
        "clusters": 3,
        **SMALL,
        "pretrain": {"passes": 150, "min_updates": 0, "batch_rows": 32},
        # Most passes teach, so that a kill amid the stage is one amid teaching.
        "refine": {"teaching_passes": 60, "passes": 20, "batch_rows": 32, "tol": 0},
        "execution": {"workers": 1, "checkpoint_seconds": 1},
    }


@dataclass
class Storm:
    """A run that is killed again and again, and the same run undisturbed.

    Attributes:
        seconds: Duration of each stage of the undisturbed run.
        expected: Rows that it published.
        survivors: Stages during which the run was killed, one for each kill.
    """

    night: Night
    seconds: dict[str, float]
    expected: pa.Table
    survivors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def storm(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    folder = tmp_path_factory.mktemp("storm")
    settings = settings_of(write_shards(folder / "input", blobs(ROWS)))
    calm = Night(folder / "calm", settings, ray_address)
    result = calm.run("--json")
    assert result.code == 0, result.err
    seconds = {stage["stage"]: stage["seconds"] for stage in result.json["stages"]}
    night = Night(folder / "stormy", settings, ray_address)
    yield Storm(night, seconds, calm.rows())
    night.stop()


def kill_during(night: Night, stage: str, part: float, seconds: float) -> None:
    """SIGKILL after this part of the stage, earlier where that comes too late."""
    before = night.folder / "before"
    shutil.rmtree(before, ignore_errors=True)
    if night.lake.exists():
        shutil.copytree(night.lake, before)
    for attempt in range(TRIES):
        night.start()
        night.wait_for_stage(stage)
        time.sleep(part * 0.7**attempt * max(0.002, seconds))
        night.kill()
        if not night.complete(stage):
            return
        shutil.rmtree(night.lake)
        if before.exists():
            shutil.copytree(before, night.lake)
    pytest.fail(f"stage {stage} was over each time before it could be hit")


@pytest.fixture(scope="module")
def orphans() -> Iterator[list[psutil.Process]]:
    """Processes of a Ray whose driver was killed."""
    found: list[psutil.Process] = []
    yield found
    for process in found:
        if process.is_running():
            process.kill()


def test_killed_with_a_ray_of_its_own_and_training_workers(
    table_folder: Path,
    tmp_path: Path,
    ray_address: str,
    dec: Dec,
    orphans: list[psutil.Process],
    ledger: Ledger,
) -> None:
    settings = settings_of(table_folder)
    settings["pretrain"]["passes"] = 100_000  # until it is killed
    settings["execution"]["workers"] = 2
    night = Night(tmp_path / "night", settings, None)
    night.start()
    checkpoint = night.lake / "runs/night/stages/pretrain/checkpoint.safetensors"
    night.wait_for(checkpoint.exists)
    children = psutil.Process(night.process.pid).children(recursive=True)
    words = {child: " ".join(child.cmdline()) for child in children}
    assert sum("ray::" in line for line in words.values()) >= 2
    night.kill()
    ledger.injected(FAULT, "pretrain, two workers and a Ray of its own")
    orphans += children
    # Its agents take longer. A worker might still write its checkpoint, of other work than ours.
    at_work = [child for child, line in words.items() if "Agent" not in line]
    assert psutil.wait_procs(at_work, timeout=PATIENCE_S)[1] == []
    # No more passes, or it would learn for ever; and on a Ray that is there, which is faster.
    settings["pretrain"]["passes"] = 2
    settings["execution"] |= {"workers": 1, "lease_seconds": 1}
    result = dec("run", "--run-id", "night", settings=settings | {"output": str(night.lake)})
    assert result.code == 0, result.err
    assert night.rows()["id"].to_pylist() == list(range(ROWS))
    ledger.survived(FAULT, "pretrain, two workers and a Ray of its own", rows=ROWS)


@pytest.mark.parametrize("stage", killed_in())
def test_killed(storm: Storm, stage: str, ledger: Ledger) -> None:
    """One after the other: each goes on from the kill before."""
    night, points = storm.night, random.Random(stage)
    for kill in range(KILLS):
        kill_during(night, stage, (kill + points.random()) / KILLS, storm.seconds.get(stage, 0))
        ledger.injected(FAULT, stage)
        storm.survivors.append(stage)
        if stage in READABLE:  # all of it or nothing
            assert night.snapshots() in ([], ["1.json"])
            assert not night.snapshots() or night.rows().num_rows == ROWS
        else:
            assert night.snapshots() == []


def test_what_was_killed_ends_as_if_it_had_not_been(storm: Storm, ledger: Ledger) -> None:
    assert storm.survivors
    result = storm.night.run()
    assert result.code == 0, result.err
    assert storm.night.snapshots() == ["1.json"]
    rows = storm.night.rows()
    assert rows["id"].to_pylist() == list(range(ROWS))
    assert rows.equals(storm.expected)
    for stage, kills in Counter(storm.survivors).items():
        ledger.survived(FAULT, stage, rows=ROWS, times=kills)


@pytest.mark.skipif(not FULL, reason="its first stage goes on as other tasks do")
def test_a_refresh_that_is_killed(table_folder: Path, ray_address: str, ledger: Ledger) -> None:
    settings = settings_of(table_folder)
    folder = table_folder.with_name("refresh")
    day = Night(folder, settings, ray_address, "first", command=("nightly", "--ds", "2026-03-01"))
    result = day.run()
    assert result.code == 0, result.err
    settings["schedule"] = {"refresh": {"every_days": 1, "passes": 1}}
    day = Night(folder, settings, ray_address, command=("nightly", "--ds", "2026-03-02"))
    for kill in range(KILLS):
        kill_during(day, "warm_start", (kill + 0.5) / KILLS, 0.1)
        ledger.injected(FAULT, "warm_start")
    result = day.run("--json")
    assert result.code == 0, result.err
    assert result.json["action"] == "refresh"
    rows = published(day.lake, "2026-03-02").sort_by("id")
    assert rows["id"].to_pylist() == list(range(ROWS))
    ledger.survived(FAULT, "warm_start", rows=ROWS, times=KILLS)


def test_nothing_of_a_ray_stays_behind_its_driver(orphans: list[psutil.Process]) -> None:
    """Ray's agents need a minute, for which they try to tell the head; by now, it is over."""
    assert orphans
    _, alive = psutil.wait_procs(orphans, timeout=PATIENCE_S)
    assert alive == []
