"""The recommended trial: limits, a score, and the smallest network among those that tie.

Decision 0030 says why each part is there, and tests/benchmarks/TUNE.md how often it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.tuning.measures import Measures
from pipeline.tuning.trials import Trial

# Minimum size of the smallest cluster, as a share of an even split: fewer rows are stragglers.
_LEAST_OF_EVEN = 0.05
# Maximum share of the rows in the largest cluster, as gate.max_cluster_share.
_MOST_SHARE = 0.9
# A model whose KL on held-out rows is three times that on its training rows has memorised them.
_LEAST_GENERALISATION = 1 / 3
FAILED_SCORE = -1.0
# Weights of silhouette and stability; modularity has 1. A silhouette prefers round clusters, which
# the true ones need not be. Two fits agree by chance: from one K to the next, stability varies by a
# tenth, modularity by less than a hundredth. Decision 0030 has the figures.
_SILHOUETTE, _STABILITY = 0.5, 0.05
# Median of the square of a standard normal variable, whose mean is 1.
_MEDIAN = 0.455


def breach(trial: Trial) -> str | None:
    """Description of the limit that a trial breaks; None where it may be recommended."""
    measures = trial.measures
    if measures is None:
        return trial.failure or "failed"
    if measures.empty_clusters:
        return f"{measures.empty_clusters} clusters without rows"
    if measures.smallest_share * trial.settings.clusters < _LEAST_OF_EVEN:
        return f"smallest cluster has {measures.smallest_share:.2%} of the rows"
    if measures.largest_share > _MOST_SHARE:
        return f"largest cluster has {measures.largest_share:.0%} of the rows"
    if (ratio := measures.generalisation) is not None and ratio < _LEAST_GENERALISATION:
        return f"KL on held-out rows is {1 / max(ratio, 1e-9):.1f} times that on training rows"
    return None


def score_of(measures: Measures) -> float:
    """Modularity + silhouette / 2 + stability / 20: weighted so that each has similar noise."""
    return measures.modularity + _SILHOUETTE * measures.silhouette + _STABILITY * measures.stability


def search_score(trial: Trial) -> float:
    """Objective of the search: the score, or less than any score where a limit is broken."""
    if trial.measures is None or breach(trial):
        return FAILED_SCORE
    return score_of(trial.measures)


def on_front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front of stability, modularity and silhouette."""
    found = [(trial, trial.measures) for trial in trials if trial.measures is not None]
    points_T3 = np.array([(m.stability, m.modularity, m.silhouette) for _, m in found])
    return [
        trial
        for (trial, _), own in zip(found, points_T3, strict=True)
        if not ((points_T3 >= own).all(axis=1) & (points_T3 > own).any(axis=1)).any()
    ]


@dataclass(frozen=True)
class Recommendation:
    """The recommended trial, and how it was chosen."""

    trial: Trial
    score: float
    best: Trial
    best_score: float
    standard_error: float  # standard error of a score; see ``score_error``
    front: tuple[Trial, ...]  # the Pareto front of stability, modularity and silhouette
    # Trials within one standard error of the best, the recommended one among them.
    tied: tuple[Trial, ...]
    rejected: tuple[tuple[Trial, str], ...]


def recommend(trials: Sequence[Trial]) -> Recommendation | None:
    """Choose a trial; None where every trial breaks a limit.

    1. Trials that break a limit are rejected.
    2. Of the others, the one with the highest score is the best. It is on the Pareto front of
       stability, modularity and silhouette.
    3. Of those within one standard error of it, the smallest network is recommended: the narrowest,
       then the smallest embedding, then the fewest passes of refinement; among equals the highest
       score. The number of clusters is not kept small: too few are as wrong as too many.
    """
    rejected = [(trial, why) for trial in trials if (why := breach(trial))]
    allowed = [trial for trial in trials if not breach(trial)]
    if not allowed:
        return None
    best = max(allowed, key=search_score)
    error = score_error(allowed)
    tied = [t for t in allowed if search_score(t) >= search_score(best) - error]
    chosen = min(tied, key=_cost)
    return Recommendation(
        trial=chosen,
        score=search_score(chosen),
        best=best,
        best_score=search_score(best),
        standard_error=error,
        front=tuple(on_front(allowed)),
        tied=tuple(tied),
        rejected=tuple(rejected),
    )


def _cost(trial: Trial) -> tuple[float, ...]:
    settings = trial.settings
    network = (settings.width, settings.embedding, settings.refine_passes)
    return (*network, -search_score(trial))


def score_error(trials: Sequence[Trial]) -> float:
    """Standard error of a score, pooled over trials.

    A trial has two fits, too few to estimate how much its own score varies; all trials together
    have many. Their median is used, because the worst trials vary most and must not decide what
    ties with the best. The error of stability, one number of both fits, cannot be estimated.
    """
    squares = [
        found.modularity_error**2 + (_SILHOUETTE * found.silhouette_error) ** 2
        for found in (trial.measures for trial in trials)
        if found is not None
    ]
    return float(np.sqrt(np.median(squares) / _MEDIAN)) if squares else 0.0
