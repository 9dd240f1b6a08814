"""Runs on a cluster whose nodes an autoscaler of Ray's adds; no wait for those that never come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

CARD = [2.0, 1.0]  # CPUs and GPUs of a node that may be added, twice


def outcomes(version: str) -> list[dict[str, Any]]:
    """What a run that asks for two GPUs gets, and then one that asks for three."""
    program = str(Path(__file__).with_name("autoscaled.py"))
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, program, version], capture_output=True, text=True, env=variables
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_that_says_what_it_will_never_do() -> None:
    two, three = outcomes("v2")
    assert two == {"found": 2, "nodes": [CARD, CARD]}
    assert three["found"].startswith("ConfigError: execution.workers=3 needs 3.5 CPUs and 3 GPUs")
    assert three["found"].endswith("Set execution.workers to 2 or add nodes")
    assert three["nodes"] == [CARD, CARD]


def test_that_says_nothing() -> None:
    two, three = outcomes("v1")
    assert two == {"found": 2, "nodes": [CARD, CARD]}
    assert three["found"].startswith("NodesLost: execution.workers=3 needs 3.5 CPUs and 3 GPUs")
    assert "the autoscaler added none within execution.scale_up_seconds=3" in three["found"]
