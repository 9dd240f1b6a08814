"""The table of the tuning benchmark says what its results say."""

from __future__ import annotations

from typing import Any

import pytest

from .tune import Result, Tried, by_rule, order, render


def tried(clusters: int, score: float | None, nmi: float, stability: float = 0.5) -> Tried:
    rest: dict[str, Any] = {"modularity": 0.5, "silhouette": 0.1, "scaling": "standard"}
    sizes: dict[str, Any] = {"width": 1.0, "embedding": 10, "refine_passes": 10}
    return Tried(clusters=clusters, score=score, nmi=nmi, stability=stability, **rest, **sizes)


def result(recommended: int, seed: int = 2) -> Result:
    trials = [
        tried(5, 0.6, 0.50, stability=0.9),
        tried(10, 0.9, 0.70),
        tried(16, 0.8, 0.72),
        tried(50, None, 0.99, stability=1.0),  # breaks a limit, and is the best all the same
    ]
    return Result(
        table="digits", seed=seed, rows=1797, trials=trials, failed=1, recommended=recommended,
        error=0.01, seconds=60.0, machine="2 cores", budget={"trials": 5},
    )  # fmt: skip


def test_the_best_trial_is_the_best_by_the_labels_alone() -> None:
    assert result(1).gap == pytest.approx(0.29)
    assert order(result(1)) == pytest.approx(0.5)


def test_other_rules_choose_among_the_same_trials() -> None:
    ((by_stability, _),) = by_rule([result(1)], "stability alone")
    assert by_stability.clusters == 5  # not one that breaks a limit
    ((by_score, gap),) = by_rule([result(2)], "score, the highest")
    assert (by_score.clusters, gap) == (10, pytest.approx(0.29))


def test_the_table() -> None:
    near = result(1).model_copy(update={"trials": result(1).trials[:3]})
    text = render([near, result(2, seed=3)])
    assert "| digits | 1,797 | 2 | 4 | 10 | 70.0 | 16, 72.0 | 2.0 | yes |" in text
    assert "| digits | 1,797 | 3 | 5 | 16 | 72.0 | 50, 99.0 | 27.0 | **no** |" in text
    assert "Right in 1 of 2 tunings; K between 10 and 16" in text
    assert "off by 3.0 on average" in text
    assert "| mnist | not measured |" in text
    assert "How often" in render([])
