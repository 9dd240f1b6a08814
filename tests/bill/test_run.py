"""A run on S3 beside what was estimated: its requests, and what its stages took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL, blobs
from faults.proxy import Proxy, Request
from object_store import BUCKET
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.run import stages_of
from pipeline.storage import Store, parquet_bytes

pytestmark = pytest.mark.slow

SHARDS, ROW_GROUPS = 12, 4
TABLE, LAKE = f"s3://{BUCKET}/counted", f"s3://{BUCKET}/counting"


class Run:
    """A run that is over, and the requests that it made."""

    def __init__(self, config: Path, summary: dict[str, Any], requests: list[Request]) -> None:
        self.config, self.summary, self.requests = config, summary, requests

    def plan(self, *words: str) -> Any:
        result = CliRunner().invoke(app, ["plan", *words, str(self.config)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout


@pytest.fixture(scope="module")
def run(s3_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    rows = 50 * ROW_GROUPS
    for number in range(SHARDS):
        shard = blobs(rows * SHARDS).slice(number * rows, rows)
        Store(TABLE).write_bytes(f"{number}.parquet", parquet_bytes(shard, row_group_rows=50))
    folder = tmp_path_factory.mktemp("run")
    config = {
        "source": {"path": TABLE, "features": ["x"], "keys": ["id"]},
        "output": LAKE,
        "clusters": 3,
        "evaluate": {"label": "label"},
        **SMALL,
        # On a slow machine, a lease is renewed more often than estimated.
        "execution": {"workers": 1, "lease_seconds": 3600},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with Proxy(s3_env["AWS_ENDPOINT_URL"]) as proxy:
        words = ["run", "config.yaml", "--run-id", "first", "--json"]
        result = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, **s3_env, "AWS_ENDPOINT_URL": proxy.url},
        )
        assert result.returncode == 0, result.stderr
        yield Run(folder / "config.yaml", json.loads(result.stdout), proxy.requests)


def cost(request: Request) -> str:
    """What a request costs as: S3 charges for a LIST as for a PUT, and nothing for a DELETE."""
    if request.method == "DELETE" or "?delete" in request.path:
        return "free"
    listing = "list-type=" in request.path
    return "gets" if request.method in ("GET", "HEAD") and not listing else "puts"


def test_as_many_requests_as_estimated(run: Run) -> None:
    made = Counter(cost(request) for request in run.requests)
    stages = run.summary["estimate"]["stages"]
    for kind in ("gets", "puts"):
        estimated = sum(stage[kind] for stage in stages)
        assert made[kind] / 1.25 <= estimated <= made[kind] * 1.25, (kind, made, stages)
    # Of the input alone: pin, sample, both trainings and assign.
    source = sum(cost(r) == "gets" and "/counted/" in r.key for r in run.requests)
    groups = SHARDS * ROW_GROUPS
    by_hand = 2 * (SHARDS + 1) + 3 * 5 * groups + (4 * SHARDS + groups)
    assert source / 1.25 <= by_hand <= source * 1.25


def test_planned_and_took(run: Run) -> None:
    kept = run.summary["estimate"]
    assert kept["rates"] == "defaults, not measured here"
    assert [stage["stage"] for stage in kept["stages"]] == [
        "run",
        *(s.name for s in stages_of("refit")),
    ]
    compared = run.plan("--run", "first", "--json")
    took = {time["stage"]: time["seconds"] for time in compared["took"]}
    assert (
        list(took) == [stage.name for stage in stages_of("refit")][:-2]
    )  # its summary is not over yet
    made = 5 + min(run.summary["refine_updates"], 2)  # five passes teach
    assert compared["refine_passes"] == made
    text = run.plan("--run", "first")
    assert "took/planned" in text
    assert f"refine made {made} of 7 passes" in text


def test_the_next_plan_knows_what_the_last_run_took(run: Run) -> None:
    compared = run.plan("--run", "first", "--json")
    plan = run.plan("--json")
    assert plan["last_run"] == "first"
    assert plan["estimate"]["rates"] == "calibrated from run first, defaults for the rest"
    assert plan["estimate"]["factors"] == compared["factors"]
    took = {time["stage"]: time["seconds"] for time in compared["took"]}
    for stage in plan["estimate"]["stages"]:
        if stage["stage"] in ("sample", "pretrain", "assign") and not stage["at_most"]:
            assert stage["seconds"] == pytest.approx(took[stage["stage"]], rel=0.2)


def test_a_run_that_is_not_there(run: Run) -> None:
    result = CliRunner().invoke(app, ["plan", "--run", "no-such-run", str(run.config)])
    assert result.exit_code == 3
    assert "run no-such-run" in result.stderr
