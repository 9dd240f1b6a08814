"""The examples for Airflow and Dagster: loaded by them, and their outcome for each exit code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jobs.cli import app

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "infra" / "orchestrators").glob("*.py"))
DS = "2026-01-31"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_in(path: Path) -> list[str]:
    """Words of the list that begins with "dec"; a word that is not a literal becomes the date."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.List) and isinstance(node.elts[0], ast.Constant):
            words = [e.value if isinstance(e, ast.Constant) else DS for e in node.elts]
            if words[0] == "dec":
                return words
    raise AssertionError(f"{path} starts no dec")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_command_is_one_of_ours(path: Path) -> None:
    _, name, *arguments = command_in(path)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    given = commands[name].make_context(name, arguments).params
    assert (given["ds"], given["follow"]) == (DS, True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_codes_of_temporary_failures_are_retried(path: Path) -> None:
    (codes,) = re.findall(r"^WORTH_A_RETRY = \(([\d, ]+)\)$", path.read_text(), re.MULTILINE)
    from pipeline import errors

    for code in map(int, codes.split(",")):
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, errors.PipelineError)
            and kind.exit_code == code
        ]
        assert any(kind.retryable for kind in kinds)


@pytest.fixture
def dec_ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a `dec` on the PATH that records its arguments and ends with a code."""

    def put(code: int) -> Path:
        program, told = tmp_path / "dec", tmp_path / "told"
        program.write_text(f'#!/bin/sh\necho "$@" > {told}\nexit {code}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return told

    return put


# In a process of its own: Airflow makes a home and configures logging when it is imported.
_AIRFLOW = """
import sys
sys.path.insert(0, sys.argv[1])
import airflow_dag
from airflow.sdk.exceptions import AirflowFailException
dag = airflow_dag.dec_nightly()
assert dag.max_active_runs == 1
task = dag.get_task("submit")
try:
    task.python_callable(ds=sys.argv[2])
    print("done")
except AirflowFailException:
    print("failed")
except RuntimeError:
    print("again", task.retries)
"""


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, "done"), (5, "done"), (6, "again 5"), (9, "again 5"), (2, "failed")]
)
def test_airflow(code: int, outcome: str, dec_ends_with: Any, tmp_path: Path) -> None:
    pytest.importorskip("airflow", reason="apache-airflow is not installed")
    told = dec_ends_with(code)
    env = os.environ | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    folder = str(ROOT / "infra" / "orchestrators")
    done = subprocess.run(
        [sys.executable, "-c", _AIRFLOW, folder, DS], env=env, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == [outcome], done.stderr
    assert f"--ds {DS}" in told.read_text()


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, "done"), (5, "done"), (6, "again"), (2, "failed")]
)
def test_dagster(code: int, outcome: str, dec_ends_with: Any) -> None:
    dagster = pytest.importorskip("dagster", reason="dagster is not installed")
    module = loaded(ROOT / "infra" / "orchestrators" / "dagster_asset.py")
    told = dec_ends_with(code)
    context = dagster.build_asset_context(partition_key=DS)
    if outcome == "done":
        done = dagster.materialize([module.assignments], partition_key=DS)
        assert done.success
    elif outcome == "again":
        with pytest.raises(dagster.RetryRequested):
            module.assignments(context)
    else:
        with pytest.raises(dagster.Failure) as failure:
            module.assignments(context)
        assert failure.value.allow_retries is False
    assert f"--ds {DS}" in told.read_text()
