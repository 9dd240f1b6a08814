"""The ``dec`` command and the module that a Ray job runs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Dec, published

COMMANDS = ("run", "plan", "check", "stage", "gc", "example")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(dec: Dec, command: tuple[str, ...]) -> None:
    result = dec(*command, "--help")
    assert result.code == 0
    assert "Usage:" in result.out
    if not command:
        assert all(name in result.out for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app; "
        "CliRunner().invoke(app, ['--help']); "
        "print([m for m in ('ray', 'torch', 'pyarrow', 'faiss', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_run_imports_ray_when_it_is_configured() -> None:
    """Ray looks once, when it is imported, whether it is to keep to this machine."""
    code = (
        "import sys, jobs.nightly; "
        "print([m for m in ('ray', 'torch', 'faiss') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_example(dec: Dec, tmp_path: Path) -> None:
    result = dec("example", "digits", str(tmp_path / "digits"))
    assert result.code == 0
    assert "1,797 digits" in result.out
    table = pq.read_table(tmp_path / "digits")
    assert table.column_names == ["id", "x", "label"]
    assert len(list((tmp_path / "digits").iterdir())) == 6
    assert len(table) == 1797


def test_plan(dec: Dec, settings: dict[str, Any]) -> None:
    result = dec("plan", "--json", settings=settings)
    assert result.code == 0, result.err
    plan = result.json
    assert (plan["shards"], plan["rows"], plan["slices"], plan["row_groups"]) == (4, 600, 1, 4)
    assert plan["features"] == [{"name": "x", "width": 8, "vector": True}]
    assert plan["row_bytes"] == 8 * 4
    assert plan["cached"] is True
    assert plan["config"]["refine"]["alpha"] == 1.0  # resolved: not in the file
    assert not Path(settings["output"]).exists()
    text = dec("plan", settings=settings)
    assert "from memory" in text.out
    streamed = dec("plan", "--set", "execution.cache_mib=0", settings=settings)
    assert "streamed" in streamed.out


def test_check_looks_at_every_value(dec: Dec, settings: dict[str, Any], table_folder: Path) -> None:
    fine = dec("check", "--json", settings=settings)
    assert fine.json == {
        "shards": 4,
        "rows": 600,
        "values_checked": True,
        "quarantined": [],
        "rows_usable": 600,
        "left_out": [],
    }
    path = table_folder / "shard-3.parquet"
    table = pq.read_table(path)
    x = table["x"].to_pylist()
    x[7] = None
    pq.write_table(table.set_column(1, "x", [x]), path)
    bad = dec("check", settings=settings)
    assert bad.code == 3
    assert "shard-3.parquet, column x: 1 of 150 rows" in bad.err
    assert dec("check", "--footers-only", settings=settings).code == 0


def test_stages_one_by_one_and_in_the_wrong_order(
    dec: Dec, settings: dict[str, Any], ray_address: str
) -> None:
    env = {"RAY_ADDRESS": ray_address}
    assert dec("stage", "pine", settings=settings).code == 2
    early = dec("stage", "pretrain", "--run-id", "r", settings=settings, env=env)
    assert early.code == 3
    assert "stage pretrain needs stage pin" in early.err
    for name in ("pin", "decide", "sample"):
        result = dec("stage", name, "--run-id", "r", settings=settings, env=env)
        assert result.code == 0, result.err
        assert result.out == f"stage {name} is complete in run r\n"
    run = Path(settings["output"]) / "runs/r/stages"
    assert {path.parent.name for path in run.glob("*/done.json")} == {"pin", "decide", "sample"}


@pytest.mark.slow
def test_nightly_publishes_under_its_date(
    settings: dict[str, Any], ray_address: str, tmp_path: Path
) -> None:
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", "night.yaml", "--ds", "2026-01-31", "--set", "refine.passes=1"]
    result = subprocess.run(
        [sys.executable, "-m", "jobs.nightly", *words],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    rows = published(tmp_path / "lake", "2026-01-31")
    assert set(rows["ds"].to_pylist()) == {"2026-01-31"}
    assert len(rows) == 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ds", "today"), "--ds 'today' must be a date"),
        (("--run-id", "../escape"), "--run-id '../escape' must be letters"),
    ],
)
def test_wrong_names(
    dec: Dec, settings: dict[str, Any], words: tuple[str, str], message: str
) -> None:
    result = dec("run", *words, settings=settings)
    assert result.code == 2
    assert message in result.err
    assert not Path(settings["output"]).exists()


def test_a_cluster_that_is_not_there(dec_process: Dec, settings: dict[str, Any]) -> None:
    result = dec_process("run", settings=settings, env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert result.code == 6
    assert "RAY_ADDRESS=127.0.0.1:1 cannot be reached" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.slow
def test_progress_on_a_terminal(
    settings: dict[str, Any], ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    for name, value in {"RAY_ADDRESS": ray_address, "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    seen = bytearray()

    def keep(descriptor: int) -> bytes:
        content = os.read(descriptor, 65536)
        seen.extend(content)
        return content

    status = pty.spawn([sys.executable, "-m", "jobs.cli", "run", "config.yaml"], keep)
    assert os.waitstatus_to_exitcode(status) == 0
    text = seen.decode()
    for stage in ("pin", "sample", "pretrain", "init_centroids", "refine", "assign", "publish"):
        assert stage in text
    assert "600 of 600 rows" in text
    assert "/s" in text
    for noise in ("Ray Train", "Dataset dataset_", "WARNING", "pid="):
        assert noise not in text


@pytest.mark.slow
def test_interrupted_and_resumed(
    settings: dict[str, Any], ray_address: str, tmp_path: Path, dec: Dec
) -> None:
    """By Ctrl-C; end_to_end/test_stopping.py is about SIGTERM."""
    settings["pretrain"] = {"passes": 100_000, "min_updates": 0}  # until somebody stops it
    settings["execution"] = {"workers": 2, "checkpoint_seconds": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", "config.yaml", "--run-id", "night"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_address},
        stderr=subprocess.PIPE,
        text=True,
    )
    sampled = tmp_path / "lake/runs/night/stages/sample/done.json"
    deadline = time.monotonic() + 120
    training = tmp_path / "lake/runs/night/stages/pretrain/checkpoint.safetensors"
    while not training.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert training.exists()  # Ray Train's workers are at it
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Resume with: dec run config.yaml --run-id night" in err
    assert len(err.splitlines()) == 1

    before = sampled.stat().st_mtime_ns
    settings["pretrain"]["passes"] = 2
    settings["execution"] = {"workers": 1}  # a run may go on with another number of them
    result = dec("run", "--run-id", "night", settings=settings)
    assert result.code == 0, result.err
    assert sampled.stat().st_mtime_ns == before  # what was complete was kept
    assert sorted(published(tmp_path / "lake")["id"].to_pylist()) == list(range(600))
