"""Starts and publishes that meet: one run does the work, one publish wins, the others say so."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Dec, blobs, published
from forked_dec import ForkedDec

from faults.ledger import Ledger
from pipeline.artifacts import records
from pipeline.errors import CommitConflict, CommitStateUnknown, ConfigError, LeaseHeld
from pipeline.lake.lease import take
from pipeline.lake.snapshots import Partition, latest_snapshot, publish
from pipeline.storage import Store

pytestmark = pytest.mark.faults

DS = "2026-01-31"
ROWS = 600
CONFIG = ConfigError.exit_code


def only_once(lake: Path | str, ds: str = DS) -> pa.Table:
    """The published rows: every row of the input, by key, exactly once."""
    rows = published(lake, ds)
    assert sorted(rows["id"].to_pylist()) == list(range(ROWS))
    assert len(set(rows["run_id"].to_pylist())) == 1
    return rows


def stage(lake: Store, run: str) -> Partition:
    """Part files of a run, as assign leaves them: not visible yet."""
    ids = blobs(ROWS).select(["id"])
    files = []
    for number in range(3):
        path = f"runs/{run}/assignments/part-{number}.parquet"
        part = ids.slice(number * 200, 200)
        lake.write_table(path, part.append_column("run_id", pa.repeat(pa.scalar(run), 200)))
        files.append({"path": path, "rows": 200, "bytes": 1})
    listing = f"runs/{run}/stages/assign/files.json"
    lake.write_json(listing, {"rows": ROWS, "files": files})
    return Partition(run_id=run, model_id="m", rows=ROWS, files=listing)


def start(folder: Path, config: dict[str, Any], *words: str, ray: str) -> ForkedDec:
    """``dec run`` as a process of its own."""
    path, text = folder / "config.yaml", yaml.safe_dump(config)
    if not path.exists() or path.read_text() != text:  # another run may be reading it
        path.write_text(text)
    env = {**os.environ, "RAY_ADDRESS": ray}
    return ForkedDec(["run", "config.yaml", "--ds", DS, *words], folder, env)


def wait_for(true: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)


# ------------------------------------------------------------------------------- two runs at once


def test_started_twice_works_once(
    settings: dict[str, Any], ray_address: str, tmp_path: Path, dec: Dec, ledger: Ledger
) -> None:
    config = settings | {
        "pretrain": {"passes": 100_000, "min_updates": 0},  # until somebody stops it
        "execution": {"workers": 1, "checkpoint_seconds": 1},
    }
    fault = ("two runs at once", "start")
    ids = ["a", "a", "b"]  # a scheduler's double start, and another run of the same ds
    starts = [start(tmp_path, config, "--run-id", run, ray=ray_address) for run in ids]
    ledger.injected(*fault, times=2)
    try:
        wait_for(lambda: sum(p.poll() is not None for p in starts) >= 2, "two that give up")
        (winner,) = [number for number, process in enumerate(starts) if process.poll() is None]
        for number, process in enumerate(starts):
            if number != winner:
                _, err = process.communicate()
                assert process.returncode == LeaseHeld.exit_code, err
                assert len(err.splitlines()) == 1
                assert f"ds {DS} is being worked on by run {ids[winner]} (process" in err
        runs = tmp_path / "lake/runs"
        assert [path.name for path in runs.iterdir()] == [ids[winner]]  # the other did no work
        training = runs / ids[winner] / "stages/pretrain/checkpoint.safetensors"
        wait_for(training.exists, "checkpoint")
    finally:
        for process in starts:
            process.send_signal(signal.SIGINT)
    assert starts[winner].wait(120) == 130

    # What was stopped in good order keeps nobody waiting.
    env = {"RAY_ADDRESS": ray_address}
    words = ("run", "--ds", DS, "--run-id", ids[winner])
    result = dec(*words, settings=settings, env=env)
    assert result.code == 0, result.err
    assert result.err == ""
    only_once(tmp_path / "lake")
    ledger.survived(*fault, rows=ROWS, times=2)

    # Another config under the id of a run that is published, and killed right after its commit.
    (runs / ids[winner] / "stages/publish/done.json").unlink()
    fault = ("a run id used by another config", "publish")
    ledger.injected(*fault)
    other = dec(*words, "--set", "clusters=4", settings=settings, env=env)
    assert other.code == CONFIG
    assert f"run {ids[winner]} is published with other settings (clusters)" in other.err
    only_once(tmp_path / "lake")
    ledger.survived(*fault, rows=ROWS)


def test_a_run_that_stood_still_for_too_long_stops(
    settings: dict[str, Any], ray_address: str, tmp_path: Path, dec: Dec, ledger: Ledger
) -> None:
    config = settings | {
        "pretrain": {"passes": 100_000, "min_updates": 0},
        "execution": {"workers": 1, "checkpoint_seconds": 1, "lease_seconds": 3},
    }
    fault = ("two runs at once", "publish")
    first = start(tmp_path, config, "--run-id", "night", ray=ray_address)
    try:
        training = tmp_path / "lake/runs/night/stages/pretrain/checkpoint.safetensors"
        wait_for(training.exists, "checkpoint")
        first.send_signal(signal.SIGSTOP)
        time.sleep(4)  # its lease ends
        ledger.injected(*fault)
        again = dec(
            "run",
            "--ds",
            DS,
            "--run-id",
            "night",
            settings=settings,
            env={"RAY_ADDRESS": ray_address},
        )
        assert again.code == 0, again.err
        before = only_once(tmp_path / "lake")
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=240)
    finally:
        first.kill()
    assert first.returncode == LeaseHeld.exit_code, err
    assert "the lease of run night went to run night" in err
    assert len(err.splitlines()) == 1
    assert only_once(tmp_path / "lake").equals(before)
    assert [path.name for path in (tmp_path / "lake/snapshots").iterdir()] == ["1.json"]
    ledger.survived(*fault, rows=ROWS)


def _race(url: str, run: str, meet: str, runners: int) -> str:
    """Publish at the same moment as the others; what came of it."""
    lake = Store(url)

    def together() -> None:  # everybody has read the log, nobody has written to it
        lake.write_bytes(f"{meet}/{run}", b"")
        while len(lake.list(meet)) < runners:
            time.sleep(0.001)

    try:
        partition = Partition(
            run_id=run, model_id="m", rows=ROWS, files=f"runs/{run}/stages/assign/files.json"
        )
        return str(publish(lake, DS, partition, run, hold=together).snapshot)
    except CommitConflict as conflict:
        return str(conflict)


def test_of_many_that_publish_one_ds_at_once_one_wins(tmp_path: Path, ledger: Ledger) -> None:
    rounds, runners = 5, 3
    lake = Store(str(tmp_path / "lake"))
    with ProcessPoolExecutor(runners, get_context("spawn")) as processes:
        for number in range(1, rounds + 1):
            runs = [f"round-{number}-{name}" for name in "abc"]
            for run in runs:
                stage(lake, run)
            ledger.injected("two runs at once", "publish")
            asked = [
                processes.submit(_race, lake.url, run, f"meet-{number}", runners) for run in runs
            ]
            answers = dict(zip(runs, (call.result(timeout=120) for call in asked), strict=True))
            (winner,) = [run for run, answer in answers.items() if answer == str(number)]
            for run in set(runs) - {winner}:
                assert f"run {winner} published while run {run} was about to" in answers[run]
            assert only_once(lake.url)["run_id"][0].as_py() == winner
            ledger.survived("two runs at once", "publish", rows=ROWS)


# ------------------------------------------------------------------ a run id used by another config


def test_a_run_id_stands_for_one_input_and_one_ds(
    settings: dict[str, Any], tmp_path: Path, dec: Dec, ledger: Ledger
) -> None:
    fault = ("a run id used by another config", "start")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    words = ["stage", "pin", str(config), "--run-id", "r"]
    dates = ("2026-01-30", "2026-01-31")
    ledger.injected(*fault)
    both = [
        ForkedDec([*words, "--ds", ds], tmp_path, os.environ)
        for ds in dates  # at the same time, each with a lease of its own
    ]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, CONFIG], errors
    won = 0 if both[0].returncode == 0 else 1
    assert f"run r is for ds {dates[won]}, not {dates[1 - won]}" in errors[1 - won]
    ledger.survived(*fault, rows=0)

    lake = Store(settings["output"])

    def files() -> set[tuple[str, str]]:
        return {(f.name, f.version) for f in lake.walk("runs") if "/logs/" not in f.name}

    before = files()
    ledger.injected(*fault)
    pq.write_table(blobs(90), tmp_path / "other.parquet")
    settings["source"]["path"] = str(tmp_path / "other.parquet")
    other = dec("stage", "pin", "--run-id", "r", "--ds", dates[won], settings=settings)
    assert other.code == CONFIG
    assert "run r has pinned source.path=" in other.err
    assert files() == before
    ledger.survived(*fault, rows=0)


# ----------------------------------------------------------------------------------- clock skew

SKEWED = """
import datetime, os, sys, time
from pipeline.artifacts import records
from pipeline.lake import lease
from pipeline.storage import Store

lake, ds, offset = Store(sys.argv[1]), sys.argv[2], float(sys.argv[3])
real, boot = time.time, f"machine {offset}"


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(real() + offset, tz)


class Stamping(Store):  # a shared folder whose files carry the time of the machine that wrote them
    def write_json(self, path, content):
        super().write_json(path, content)
        os.utime(self.locate(path), (real() + offset,) * 2)


time.time = lambda: real() + offset
records.datetime.datetime = Clock
lease._boot = lambda: boot
lease.take(Stamping(lake.url), ds, "run skewed", seconds=4)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("hours", [-30, -2, 2, 30])
def test_a_machine_whose_clock_is_wrong_holds_its_lease_as_long_as_any_other(
    tmp_path: Path, ledger: Ledger, hours: int
) -> None:
    lake = Store(str(tmp_path))
    fault = ("clock skew", "start")
    words = [sys.executable, "-c", SKEWED, lake.url, DS, str(hours * 3600)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        ledger.injected(*fault)
        time.sleep(0.5)  # it renews
        with pytest.raises(LeaseHeld, match="run skewed"):
            take(lake, DS, "run right", seconds=60)
    finally:
        holder.kill()
        holder.wait()
    waits: list[str] = []
    take(lake, DS, "run right", seconds=60, on_wait=waits.append).release()
    assert len(waits) == 1
    ledger.survived(*fault, rows=0)


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_machine_whose_clock_is_wrong_publishes_in_its_turn(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    lake = Store(str(tmp_path))
    fault = ("clock skew", "publish")
    publish(lake, DS, stage(lake, "first"), "1")
    ledger.injected(*fault)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(time.time() + hours * 3600, tz)

    with monkeypatch.context() as patch:
        patch.setattr(records.datetime, "datetime", Clock)
        publish(lake, DS, stage(lake, "skewed"), "2")
    newest = latest_snapshot(lake)
    assert newest is not None
    off = datetime.datetime.fromisoformat(newest.committed_at) - datetime.datetime.now(datetime.UTC)
    assert abs(off.total_seconds()) > 80_000  # the clock was wrong indeed
    assert only_once(lake.url)["run_id"][0].as_py() == "skewed"
    publish(lake, DS, stage(lake, "third"), "3")
    assert only_once(lake.url)["run_id"][0].as_py() == "third"
    ledger.survived(*fault, rows=2 * ROWS)


# ----------------------------------------------------- an upload that succeeded, and said otherwise


@pytest.mark.parametrize("reads", [True, False])
def test_a_commit_that_landed_and_answered_an_error_is_one_commit(
    tmp_path: Path, ledger: Ledger, reads: bool
) -> None:
    class Lossy(Store):
        cut_off = False

        def create_json(self, path: str, content: Any) -> bool:
            super().create_json(path, content)
            self.cut_off = not reads
            raise OSError("connection reset by peer")

        def read_bytes(self, path: str) -> bytes:
            if self.cut_off:
                raise OSError("connection refused")
            return super().read_bytes(path)

    fault = ("upload that succeeded but answered an error", "publish")
    lake = Store(str(tmp_path))
    partition = stage(lake, "night")
    ledger.injected(*fault)
    if reads:  # the log is asked at once
        publish(Lossy(lake.url), DS, partition, "commit")
    else:  # nobody can tell: the run stops, deletes nothing, and looks first when it is run again
        staged = {file.name for file in lake.walk("runs")}
        with pytest.raises(CommitStateUnknown, match="nothing was deleted"):
            publish(Lossy(lake.url), DS, partition, "commit")
        assert {file.name for file in lake.walk("runs")} >= staged
    assert publish(lake, DS, partition, "commit").snapshot == 1
    assert [file.name for file in lake.list("snapshots")] == ["1.json"]
    only_once(lake.url)
    ledger.survived(*fault, rows=ROWS)
