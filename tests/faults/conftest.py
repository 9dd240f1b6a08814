"""The one ledger of a session; ``python -m tests.faults.full`` reads what is left of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.ledger import Ledger

_LEDGER = Ledger()


@pytest.fixture
def ledger() -> Ledger:
    return _LEDGER


@pytest.fixture(scope="session", autouse=True)
def _left_for_the_full_run() -> Iterator[None]:
    yield
    if path := os.environ.get("DEC_FAULTS_FULL"):
        lines = [asdict(line) for line in _LEDGER.lines.values()]
        Path(path).write_text(json.dumps(lines), "utf-8")
