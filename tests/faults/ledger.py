"""The ledger of faults: what was injected, what survived it, how many rows were compared by key.

``python -m tests.faults.full`` fills it and writes ``tests/FAULTS.md``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Every fault as often as the table says, instead of one of each kind.
FULL = "DEC_FAULTS_FULL" in os.environ
KEPT = Path(__file__).with_name("faults.json")
TABLE = Path(__file__).parents[1] / "FAULTS.md"


@dataclass
class Line:
    """A row of the table.

    Attributes:
        fault: Kind of fault.
        where: Stage, or other place that was hit.
        injected: Number of injections.
        survived: Number of injections after which the end was the promised one: every row once, or
            one clear error.
        rows: Number of rows compared by key with the input, over all of these injections.
        measured: Date and commit, where they are not those of the last complete result.
    """

    fault: str
    where: str
    injected: int = 0
    survived: int = 0
    rows: int = 0
    measured: str = ""


@dataclass
class Ledger:
    """Lines by fault and place."""

    lines: dict[tuple[str, str], Line] = field(default_factory=dict)

    def injected(self, fault: str, where: str, times: int = 1) -> None:
        """Count a fault; to be called before looking at what became of the run."""
        self.lines.setdefault((fault, where), Line(fault, where)).injected += times

    def survived(self, fault: str, where: str, *, rows: int, times: int = 1) -> None:
        """Count a promised end; to be called after the last assertion."""
        line = self.lines[fault, where]
        line.survived += times
        line.rows += rows


@dataclass(frozen=True)
class Results:
    """Kept results.

    Attributes:
        complete: Date and commit of the last complete result.
        lines: The table's lines.
    """

    complete: str
    lines: tuple[Line, ...]

    @classmethod
    def read(cls) -> Results:
        kept = json.loads(KEPT.read_text("utf-8"))
        return cls(kept["complete"], tuple(Line(**line) for line in kept["lines"]))

    def updated(self, lines: Iterable[Line], measured: str) -> Results:
        """These results with some lines measured again, at this date and commit."""
        found = {(line.fault, line.where): line for line in self.lines}
        for line in lines:
            line.measured = measured
            found[line.fault, line.where] = line
        return Results(self.complete, tuple(found[key] for key in sorted(found)))

    def write(self) -> None:
        """Write the JSON that is kept, and the table."""
        kept = {"complete": self.complete, "lines": [asdict(line) for line in self.lines]}
        KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
        TABLE.write_text(self.table(), "utf-8")

    def table(self) -> str:
        """The table as Markdown."""
        text = [
            "# Faults",
            "",
            "Written by `python -m tests.faults.full`; do not edit. A fault is survived if",
            "every row of the input is published exactly once, compared by key, after running the",
            "same run id again where the fault requires it; or if the run fails with one clear",
            "message and publishes nothing.",
            "",
            f"Last complete result: {self.complete}; rows measured later show their date.",
            "",
            "| fault | where | injected | survived | rows compared | measured again |",
            "|---|---|--:|--:|--:|---|",
        ]
        text += [
            f"| {line.fault} | {line.where} | {line.injected} | {line.survived} "
            f"| {line.rows:,} | {line.measured} |"
            for line in self.lines
        ]
        return "\n".join(text) + "\n"
