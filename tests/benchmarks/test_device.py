"""The benchmark of the model alone runs to its end, without what only the pipeline needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
for name in ("ray", "pydantic", "faiss", "yaml", "sklearn", "scipy", "s3fs", "fsspec"):
    sys.modules[name] = None
from tests.benchmarks import device
device.HIDDEN = (16, 8)
sys.argv = ["device", "--device=cpu", "--features=8", "--clusters=5", "--rows=300", "--repeats=1",
            "--batches", "64", "1024"]
device.main()
"""


def test_runs_with_torch_and_pyarrow_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measures = [row.split("|")[1].strip() for row in done.stdout.splitlines() if row[:2] == "| "]
    assert measures[1:] == [
        "pretraining step, batch of 64",
        "refinement step, batch of 64",
        "assignment, rows on the device",
        "assignment, rows on the host",
        "assignment, rows from Parquet",
    ]
