"""Which trial is recommended: limits, a score, and the smallest of those that tie.

Decision 0030 says why each part is there, and tests/benchmarks/TUNE.md how often it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.tuning.measures import Measures
from pipeline.tuning.trials import Trial

# Of an even share, in the smallest cluster: fewer rows are stragglers, not a cluster.
_LEAST_OF_EVEN = 0.05
# Of the rows, in the largest; that of gate.max_cluster_share.
_MOST_SHARE = 0.9
# A model whose KL on rows that it did not see is three times that on its own has memorised them.
_LEAST_GENERALISATION = 1 / 3
FAILED_SCORE = -1.0
# Of silhouette and stability beside modularity, which has 1. A silhouette prefers round clusters,
# which the true ones need not be. Two fits agree by chance: from one K to the next, stability goes
# up and down by a tenth, modularity by less than a hundredth. Decision 0030 has the figures.
_SILHOUETTE, _STABILITY = 0.5, 0.05
# Of the square of a standard normal: what a median of squares is of their mean.
_MEDIAN = 0.455


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
    """Modularity + silhouette / 2 + stability / 20: each with about as much noise as the first."""
    return measures.modularity + _SILHOUETTE * measures.silhouette + _STABILITY * measures.stability


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
        front: The Pareto front of stability, modularity and silhouette: what there is to trade.
        tied: Those within one error of the best, the recommended one among them.
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
    2. Of the others, the one with the highest score is the best. No other one beats it in one of
       stability, modularity and silhouette without losing in another.
    3. Of those within one standard error of it, the smallest network is recommended: the narrowest,
       then the one with the smallest embedding, then the one that is refined for the fewest passes;
       and among equals the one with the highest score. The number of clusters is no size to be kept
       small: too few are as wrong as too many.
    """
    left_out = [(trial, why) for trial in trials if (why := breach(trial))]
    allowed = [trial for trial in trials if not breach(trial)]
    if not allowed:
        return None
    best = max(allowed, key=searched_score)
    error = score_error(allowed)
    tied = [t for t in allowed if searched_score(t) >= searched_score(best) - error]
    chosen = min(tied, key=_cost)
    return Recommendation(
        trial=chosen,
        score=searched_score(chosen),
        best=best,
        best_score=searched_score(best),
        error=error,
        front=tuple(on_front(allowed)),
        tied=tuple(tied),
        left_out=tuple(left_out),
    )


def _cost(trial: Trial) -> tuple[float, ...]:
    settings = trial.settings
    network = (settings.width, settings.embedding, settings.refine_passes)
    return (*network, -searched_score(trial))


def score_error(trials: Sequence[Trial]) -> float:
    """A standard error of a score, pooled over trials.

    A trial has two fits, too few to say how much its own score varies; all trials together have
    many. By their median, for the worst trials vary most and shall not decide what ties with the
    best. Stability, which is one number of both fits, adds to it what nobody can tell from them.
    """
    squares = [
        found.modularity_error**2 + (_SILHOUETTE * found.silhouette_error) ** 2
        for found in (trial.measures for trial in trials)
        if found is not None
    ]
    return float(np.sqrt(np.median(squares) / _MEDIAN)) if squares else 0.0
