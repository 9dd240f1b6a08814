"""The table of faults that is kept: nothing in it was lost, and it is what the ledger says."""

import json
from pathlib import Path

from faults.conftest import Line, render

HERE = Path(__file__).parent


def test_every_fault_that_was_injected_was_survived() -> None:
    lines = [Line(**line) for line in json.loads((HERE / "faults.json").read_text("utf-8"))]
    assert [line for line in lines if line.survived != line.injected or not line.injected] == []
    assert (HERE.parent / "FAULTS.md").read_text("utf-8") == render(lines)
    words = " ".join(f"{line.fault} {line.where}" for line in lines)
    for row in ("SIGKILL of the driver", "loss of a whole node, without", "503 SlowDown", "20%"):
        assert row in words
    for row in ("disk full", "spilling", "corrupt", "clock skew", "two runs", "out of memory"):
        assert row in words
