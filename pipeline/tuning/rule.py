"""Which trial is recommended: limits, a front, a score, and the simplest of those that tie.

Decision 0030 says why each part is there, and tests/benchmarks/TUNE.md how often it is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.tuning.measures import Measures
from pipeline.tuning.trials import Trial, order_of

# Of an even share, in the smallest cluster: fewer rows are stragglers, not a cluster.
_LEAST_OF_EVEN = 0.05
# Of the rows, in the largest; that of gate.max_cluster_share.
_MOST_SHARE = 0.9
# A model whose KL on rows that it did not see is three times that on its own has memorised them.
_LEAST_GENERALISATION = 1 / 3
FAILED_SCORE = -1.0


def breach(trial: Trial) -> str | None:
    """Which limit a trial breaks, in words; None where it may be recommended."""
    measures = trial.measures
    if measures is None:
        return trial.failed or "failed"
    if measures.empty_clusters:
        return f"{measures.empty_clusters} clusters without rows"
    if measures.smallest_share * trial.settings.clusters < _LEAST_OF_EVEN:
        return f"smallest cluster has {measures.smallest_share:.2%} of the rows"
    if measures.largest_share > _MOST_SHARE:
        return f"largest cluster has {measures.largest_share:.0%} of the rows"
    if (ratio := measures.generalisation) is not None and ratio < _LEAST_GENERALISATION:
        return f"KL on unseen rows is {1 / max(ratio, 1e-9):.1f} times that on its own"
    return None


def score_of(measures: Measures) -> float:
    """Modularity and stability together: their geometric mean, 0 where either is not above 0."""
    return math.sqrt(max(0.0, measures.modularity) * max(0.0, measures.stability))


def searched_score(trial: Trial) -> float:
    """What the searcher is told: the score, or less than any where a limit is broken."""
    if trial.measures is None or breach(trial):
        return FAILED_SCORE
    return score_of(trial.measures)


def on_front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other one beats in one of stability, modularity, silhouette and loses none."""
    points = [_figures(trial) for trial in trials]
    return [
        trial
        for trial, own in zip(trials, points, strict=True)
        if not any(np.all(other >= own) and np.any(other > own) for other in points)
    ]


def _figures(trial: Trial) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = trial.measures
    assert found is not None  # a trial that failed broke a limit
    return np.array([found.stability, found.modularity, found.silhouette])


@dataclass(frozen=True)
class Recommendation:
    """The choice, and how it came about.

    Attributes:
        trial: That is recommended.
        score: Its score.
        best: The trial with the highest score.
        best_score: That score.
        error: A standard error of a score; see ``score_error``.
        front: Trials on the Pareto front of stability, modularity and silhouette.
        tied: Trials within one error of the best, the recommended one among them.
        left_out: Those that break a limit, with the limit.
    """

    trial: Trial
    score: float
    best: Trial
    best_score: float
    error: float
    front: tuple[Trial, ...]
    tied: tuple[Trial, ...]
    left_out: tuple[tuple[Trial, str], ...]


def recommend(trials: Sequence[Trial]) -> Recommendation | None:
    """Choose; None where every trial breaks a limit.

    1. Trials that break a limit are out.
    2. Those on the Pareto front of stability, modularity and silhouette are left.
    3. Of them, the one with the highest score is the best.
    4. Of those within one standard error of it, the one with the fewest clusters is recommended,
       and of several the smallest model.
    """
    left_out = [(trial, why) for trial in trials if (why := breach(trial))]
    allowed = [trial for trial in trials if not breach(trial)]
    if not allowed:
        return None
    front = on_front(allowed)
    best = max(front, key=searched_score)
    error = score_error(allowed)
    tied = [t for t in front if searched_score(t) >= searched_score(best) - error]
    chosen = min(tied, key=lambda trial: order_of(trial.settings))
    return Recommendation(
        trial=chosen,
        score=searched_score(chosen),
        best=best,
        best_score=searched_score(best),
        error=error,
        front=tuple(front),
        tied=tuple(tied),
        left_out=tuple(left_out),
    )


def score_error(trials: Sequence[Trial]) -> float:
    """A standard error of a score, pooled over trials.

    A trial has two fits, too few to say how much its own score varies; but all trials together
    have many. The modularities of two fits differ by √2 standard deviations in the root mean
    square; the score of a trial varies as their mean does, at least.
    """
    errors = [trial.measures.modularity_error for trial in trials if trial.measures]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
