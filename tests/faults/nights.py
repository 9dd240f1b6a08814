"""``dec run`` as a process of its own: watched through its log, killed, and run again."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import yaml
from conftest import SMALL, Finished, blobs, published, write_shards
from forked_dec import ForkedDec

from pipeline.config import Execution
from pipeline.lake.snapshots import assignment_files
from pipeline.storage import Store

# For what takes seconds on a quiet machine: a hang fails, a slow machine does not.
PATIENCE_S = 600.0


class Night:
    """A run that is started, killed and started again under one run id.

    Args:
        folder: Folder for the config, logs and output.
        settings: The config; ``output`` is set to ``lake`` in the folder unless given.
        address: Address of the Ray cluster to work on; None starts one with the run.
        run_id: Name of the run.
        command: Command of ``dec`` and its options.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        address: str | None,
        run_id: str = "night",
        command: Sequence[str] = ("run",),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run_id, self.settings = folder, run_id, settings
        self._command = command
        settings = {"output": str(folder / "lake"), **settings}
        if "lease_seconds" in Execution.model_fields:  # who was killed cannot give it back
            settings["execution"] = {"lease_seconds": 1, **settings["execution"]}
        self.lake = Path(settings["output"])
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        self._env = {**os.environ, "COLUMNS": "200", "RAY_TMPDIR": "/tmp"}
        # A process less at each start of a training; no node is drained here.
        self._env["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        self._env.pop("RAY_ADDRESS", None)
        self._address = address
        if address:
            self._env["RAY_ADDRESS"] = address
        self._starts = 0
        self._logs = folder
        self.process: subprocess.Popen[str] | ForkedDec | None = None
        atexit.register(self.stop)  # whatever becomes of the test

    def start(self, *words: str) -> None:
        """Start the command in a process group of its own."""
        self._starts += 1
        self._logs = self.folder / f"{self.run_id}-{self._starts}"
        self._logs.mkdir()
        name, *options = self._command
        words = (name, "config.yaml", "--run-id", self.run_id, *options, *words)
        env = {**self._env, "TMPDIR": str(self._logs)}
        if self._address:
            self.process = ForkedDec(words, self.folder, env)
            return
        self.process = subprocess.Popen(  # as a user does: Ray must not be imported by then
            [sys.executable, "-m", "jobs.cli", *words],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """Output of Ray, its workers and the libraries; empty after the end of the command."""
        with contextlib.suppress(FileNotFoundError, StopIteration):  # not yet, or not any more
            return next(self._logs.glob("dec-*.log")).read_text(errors="replace")
        return ""

    def logs(self) -> str:
        """The logs of all starts that came to an end by themselves, as the run keeps them."""
        paths = sorted(self.lake.glob(f"runs/{self.run_id}/logs/*.log"))
        return "".join(path.read_text(errors="replace") for path in paths)

    def wait_for(self, condition: Callable[[], Any], step_s: float = 0.05) -> Any:
        """Wait until the condition holds while the command runs; returns what it gave."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.poll() is None, self._ended()
            assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s:\n{self.log[-3000:]}"
            time.sleep(step_s)
        return found

    def wait_for_stage(self, stage: str) -> None:
        """Return as soon as this stage is under way."""
        line = f"stage {stage}: started"
        self.wait_for(lambda: line in self.log, step_s=0.0005)

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is tidied up."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE_S)

    def finish(self) -> Finished:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Finished(self.process.returncode, out, err)

    def run(self, *words: str) -> Finished:
        """Start it and wait for its end."""
        self.start(*words)
        return self.finish()

    def complete(self, stage: str) -> bool:
        """Whether the stage's marker is there."""
        return self.marker(stage).exists()

    def marker(self, stage: str) -> Path:
        return self.lake / f"runs/{self.run_id}/stages/{stage}/done.json"

    def artifact(self, stage: str) -> dict[str, Any]:
        """Artifact of a complete stage."""
        found: dict[str, Any] = json.loads(self.marker(stage).read_text())["artifact"]
        return found

    def snapshots(self) -> list[str]:
        """Names of the published snapshots."""
        return sorted(path.name for path in (self.lake / "snapshots").glob("*.json"))

    def rows(self) -> pa.Table:
        """Published rows, by key."""
        return published(self.lake).sort_by("id")

    def stop(self) -> None:
        """Kill the command if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _ended(self) -> str:
        result = self.finish()
        return f"ended early with {result.code}: {result.out}{result.err}\n{self.logs()[-3000:]}"


def ray_processes(title: str, raylet: int | None = None) -> list[psutil.Process]:
    """Ray's worker processes that are at something of this name.

    Of one node, or of all that this process started, and of nobody else on the machine.
    """
    started = psutil.Process(raylet).children(recursive=True)
    words = ((process, _words(process)) for process in started)
    return [p for p, (first, *_) in words if first.startswith("ray::") and title in first]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:  # it ended meanwhile
        return [""]


# Slices that take long enough to be hit amid: half a second each, in ten of them.
WIDE_ROWS, WIDE, SLICES = 240_000, 64, 8


def wide_settings(folder: Path) -> dict[str, Any]:
    """A table in eight slices, of which trainings see 600 rows in many short passes."""
    table = write_shards(folder, blobs(WIDE_ROWS, width=WIDE), SLICES, compression="none")
    return {
        "source": {
            "path": str(table),
            "features": ["x"],
            "keys": ["id"],
            "fit_rows": 600,
            "held_out": 0,
        },
        "clusters": 3,
        **SMALL,
        "pretrain": {"passes": 200, "min_updates": 0, "batch_rows": 32},
        "refine": {"passes": 100, "batch_rows": 32, "tol": 0},
        "execution": {"workers": 2, "checkpoint_seconds": 1, "target_slice_mib": 7},
    }


_PACED = '''"""Rows as they are; a while later, for as long as a file is there."""

import pathlib
import time


def paced(rows, generator):
    if pathlib.Path({flag!r}).exists():
        time.sleep(0.25)
    return rows
'''


def pacing(folder: Path) -> Path:
    """A file; while it is there, each update of ``augment.function: paced:paced`` takes its time.

    Drivers that start in this folder find the function, and so do their workers.
    """
    folder.mkdir(exist_ok=True)
    flag = folder / "slow"
    (folder / "paced.py").write_text(_PACED.format(flag=str(flag)))
    flag.touch()
    return flag


def assert_every_row_once(night: Night, rows: int = WIDE_ROWS) -> None:
    """By key against the input; and no part file is there that the snapshot does not name."""
    assert night.snapshots() == ["1.json"]
    np.testing.assert_array_equal(night.rows()["id"].to_numpy(), np.arange(rows))
    named = {Path(path).name for path in assignment_files(Store(str(night.lake)))}
    there = {path.name for path in (night.lake / f"runs/{night.run_id}/assignments").iterdir()}
    assert there == named
