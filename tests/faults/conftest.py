"""The ledger of faults: what was injected, what survived it, how many rows were compared by key.

``DEC_WRITE_FAULTS=1 pytest tests/faults`` writes ``tests/FAULTS.md`` from it; a part of the tests
replaces only its own lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_KEPT = Path(__file__).with_name("faults.json")
_TABLE = Path(__file__).parent.parent / "FAULTS.md"


@dataclass
class Line:
    """A row of the table.

    Attributes:
        fault: What was done to the run.
        where: The stage, or what else was hit.
        injected: How often.
        survived: How often the end was the promised one: every row once, or one clear error.
        rows: Rows that were compared by key against the input, over all of these times.
    """

    fault: str
    where: str
    injected: int = 0
    survived: int = 0
    rows: int = 0


class Ledger:
    """Lines by fault and place."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Line] = {}

    def injected(self, fault: str, where: str, times: int = 1) -> None:
        """A fault was injected; call it before looking at what became of the run."""
        self.lines.setdefault((fault, where), Line(fault, where)).injected += times

    def survived(self, fault: str, where: str, *, rows: int, times: int = 1) -> None:
        """The end was as promised; call it after the last assertion."""
        line = self.lines[fault, where]
        line.survived += times
        line.rows += rows


_LEDGER = Ledger()


@pytest.fixture
def ledger() -> Ledger:
    return _LEDGER


@pytest.fixture(scope="session", autouse=True)
def _written() -> Iterator[None]:
    yield
    if os.environ.get("DEC_WRITE_FAULTS") and _LEDGER.lines:
        before = json.loads(_KEPT.read_text("utf-8")) if _KEPT.exists() else []
        lines = {(old["fault"], old["where"]): Line(**old) for old in before} | _LEDGER.lines
        kept = [asdict(lines[key]) for key in sorted(lines)]
        _KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _TABLE.write_text(render([lines[key] for key in sorted(lines)]), "utf-8")


def render(lines: list[Line]) -> str:
    """The table as Markdown."""
    text = [
        "# Faults",
        "",
        "Written by `DEC_WRITE_FAULTS=1 pytest tests/faults`; do not edit. Survived means that the",
        "end was the promised one: after running again where that is what the fault calls for,",
        "every row of the input is published once and nothing else is, compared by key; or the run",
        "ended in one clear error and published nothing.",
        "",
        "| fault | where | injected | survived | rows compared |",
        "|---|---|--:|--:|--:|",
    ]
    text += [
        f"| {line.fault} | {line.where} | {line.injected} | {line.survived} | {line.rows:,} |"
        for line in lines
    ]
    return "\n".join(text) + "\n"
