"""What a person reads at the end of a run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobs import console
from jobs.console import StageLines, verdict
from pipeline.artifacts.models import Candidate, Comparison, ModelKind
from pipeline.artifacts.records import StoredFile


def compared(
    separations: dict[ModelKind, float],
    *,
    empty: dict[ModelKind, int] | None = None,
    generalisation: float | None = None,
) -> Comparison:
    """A comparison with these separations, best first."""
    rest: dict[str, Any] = {"spaces": (), "balance": 1.0, "stability": None, "scores": None}
    first, second, *_ = separations.values()
    return Comparison(
        candidates=tuple(
            Candidate(
                kind=kind, separation=value, empty_clusters=(empty or {}).get(kind, 0), **rest
            )
            for kind, value in separations.items()
        ),
        winner=next(iter(separations)),
        margin=first - second,
        rows=600,
        held_out_rows=12,
        generalisation=generalisation,
        centroids=StoredFile(path="c", sha256="0", bytes=1),
        restarts=20,
    )


WHERE = "(on neighbours in scaled features)."


def test_dec_won() -> None:
    result = compared({"dec": 3.81, "autoencoder": 3.77, "kmeans": 3.5})
    assert verdict(result, "dec") == [
        f"DEC won: separation 3.81 against 3.77 of autoencoder + k-means {WHERE}",
        "Shipped: DEC.",
    ]


@pytest.mark.parametrize(
    ("shipped", "line"),
    [
        ("dec", "Shipped all the same: DEC, by refine.select: dec; auto ships the winner."),
        ("kmeans", "Shipped: k-means."),
    ],
)
def test_kmeans_won(shipped: str, line: str) -> None:
    result = compared({"kmeans": 0.4, "dec": 0.3, "autoencoder": 0.2})
    won, then = verdict(result, shipped)
    assert won == f"k-means won: separation 0.40 against 0.30 of DEC {WHERE}"
    assert then == line


def test_a_tie_goes_to_the_simpler_one() -> None:
    result = compared({"kmeans": 0.4, "autoencoder": 0.4, "dec": 0.4})
    won = verdict(result, "dec")[0]
    assert won == "k-means won: it is as good as autoencoder + k-means, and simpler " + WHERE


def test_empty_clusters_are_the_reason() -> None:
    values: dict[ModelKind, float] = {"autoencoder": 0.2, "kmeans": 0.1, "dec": 0.9}
    result = compared(values, empty={"kmeans": 3, "dec": 4})
    won = verdict(result, "dec")[0]
    assert won == "autoencoder + k-means won: 0 empty clusters, k-means has 3 " + WHERE


def test_generalisation() -> None:
    result = compared({"dec": 0.2, "kmeans": 0.1}, generalisation=0.934)
    assert verdict(result, "dec")[-1] == (
        "DEC's KL on the rows that it learnt from is 0.93 times that on 12 sampled rows that it "
        "did not see."
    )


def test_lines_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    lines = StageLines(said.append)
    lines.stage_started("pin")
    lines.stage_advanced(1, 4, "shards")  # not so soon
    lines.stage_finished("pin", 0.25, reused=False)
    monkeypatch.setattr(console, "_LINE_SECONDS", 0)
    lines.stage_started("pretrain")
    lines.stage_advanced(1200, 5000, "rows", "pass 3")
    lines.stage_finished("pretrain", 0.0, reused=True)
    texts = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in said]
    assert re.fullmatch(r"pretrain        1,200 of 5,000 rows · [\d,]+/s · pass 3", texts.pop(3))
    assert texts == [
        "pin             started",
        "pin             done in 0.2 s",
        "pretrain        started",
        "pretrain        already complete",
    ]
