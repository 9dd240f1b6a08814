"""SIGTERM amid a training: what was learnt is saved, the run leaves in time and goes on later."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, blobs, write_shards
from faults.nights import Night, ray_processes
from safetensors import safe_open

from pipeline.distributed.checkpoints import CheckpointMeta
from pipeline.errors import Interrupted

pytestmark = pytest.mark.slow

ROWS = 10_000
PASSES = 8
DAY_S = 86_400


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Passes of seconds, for their many updates, and no checkpoint before the night is over."""
    return {
        "source": {
            "path": str(write_shards(tmp_path / "input", blobs(ROWS))),
            "features": ["x"],
            "keys": ["id"],
        },
        "clusters": 3,
        **SMALL,
        "pretrain": {"passes": PASSES, "min_updates": 0, "batch_rows": 8},
        "refine": {"passes": 1, "batch_rows": 256},
        "execution": {"workers": 1, "checkpoint_seconds": DAY_S},
    }


@pytest.fixture
def night(settings: dict[str, Any], ray_address: str, tmp_path: Path) -> Iterator[Night]:
    found = Night(tmp_path / "night", settings, ray_address)
    yield found
    found.stop()


def start_until_a_state_is_kept(night: Night, *words: str) -> None:
    """And until the driver has shown that record: before it has, a signal ends the run at once."""
    night.start(*words)
    night.wait_for(lambda: "keeps the state of record" in night.log)
    night.wait_for(lambda: "[night pretrain] pretrain " in night.log)


def stopped_amid_a_pass(night: Night, *words: str) -> int:
    """SIGTERM after a pass of an attempt; the number of passes that its checkpoint has."""
    start_until_a_state_is_kept(night, *words)
    night.process.send_signal(signal.SIGTERM)
    result = night.finish()
    assert result.code == Interrupted.exit_code == 130, result.err
    assert "Resume with: dec run config.yaml --run-id night" in result.err
    assert len(result.err.splitlines()) == 1
    assert not night.complete("pretrain")
    failure = json.loads((night.lake / "runs/night/failure.json").read_text())
    assert (failure["kind"], failure["stage"]) == ("Interrupted", "pretrain")
    assert failure["retryable"]
    # By itself, not by the end of its grace.
    assert "stops as requested, after" in (night.lake / failure["log"]).read_text()
    with safe_open(night.marker("pretrain").with_name("checkpoint.safetensors"), "pt") as file:
        meta = CheckpointMeta.model_validate_json(file.metadata()["meta"])
        passes = int(file.get_tensor("passes_done"))
    assert not meta.complete
    assert [record["number"] for record in meta.history] == list(range(1, passes + 1))
    return passes


def test_saves_the_last_point_of_rest_and_goes_on_from_there(night: Night) -> None:
    two = ("--set", "execution.workers=2")
    of_two = stopped_amid_a_pass(night, *two)
    assert of_two >= 1
    beside_the_driver = stopped_amid_a_pass(night)
    assert beside_the_driver > of_two
    assert f"resumes after pass {of_two} with 1 workers" in night.logs()

    # Workers that do not answer keep nobody longer than the grace, and lose nothing that was saved.
    start_until_a_state_is_kept(night, *two, "--set", "execution.grace_seconds=5")
    trainers = ray_processes("RayTrainWorker")
    assert len(trainers) == 2
    for process in trainers:
        process.suspend()
    try:
        night.process.send_signal(signal.SIGTERM)
        result = night.finish()
    finally:
        for process in trainers:
            if process.is_running():
                process.resume()
    assert result.code == Interrupted.exit_code, result.err
    assert "Resume with: dec run config.yaml --run-id night" in result.err

    result = night.run()
    assert result.code == 0, result.err
    # What was not saved in time was learnt again; each time, a grace was given.
    assert night.logs().count(f"resumes after pass {beside_the_driver} ") == 2
    assert night.logs().count("a stop was requested; rank 0 is told") >= 2
    assert len(night.artifact("pretrain")["losses"]) == PASSES
    assert night.rows()["id"].to_pylist() == list(range(ROWS))
    assert json.loads((night.lake / "runs/night/failure.json").read_text())["resolved_at"]
