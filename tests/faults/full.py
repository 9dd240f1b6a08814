"""All faults as often as the table says: three kills in every stage, every kind of bad answer.

    python -m tests.faults.full [PYTEST ARGUMENTS]

Takes about an hour on two cores, and writes ``tests/FAULTS.md``. With arguments, such as
``-k driver``, it replaces the lines of those tests alone. Writes nothing where a test fails.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from .ledger import TABLE, Line, Results

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """Run the tests, and write the table if all of them passed."""
    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "lines.json"
        os.environ["DEC_FAULTS_FULL"] = str(left)
        # The ledger's own test is about the table that is written here.
        words = ["-m", "faults", "-v", str(FOLDER), *arguments]
        if (code := pytest.main(words)) != pytest.ExitCode.OK:
            return int(code)
        lines = [Line(**line) for line in json.loads(left.read_text("utf-8"))]
    measured = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, commit {_commit()}"
    if arguments:
        results = Results.read().updated(lines, measured)
    else:
        results = Results(measured, tuple(sorted(lines, key=lambda line: (line.fault, line.where))))
    results.write()
    print(f"{TABLE}: {len(lines)} lines measured")
    return 0


def _commit() -> str:
    """Short name of the commit; with a plus where files differ from it."""
    words = ["git", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
