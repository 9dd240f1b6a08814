"""Agreement of two partitions, from their contingency table alone.

The table has one cell for each pair of clusters, or of a cluster and a known class, however many
rows were counted into it: scores are exact over billions of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """Scores in [0, 1], the adjusted Rand index possibly below 0; higher is better."""

    acc: float  # clustering accuracy under the best one-to-one matching (Xie et al. 2016, eq. 10)
    nmi: float  # mutual information over the arithmetic mean of the entropies
    ari: float  # adjusted Rand index (Hubert & Arabie 1985)
    rows: int


def agreement(contingency: NDArray[np.int64]) -> Agreement:
    """Score a contingency table: rows counted by cluster and class, (n_clusters, n_classes)."""
    from scipy.optimize import linear_sum_assignment

    rows = int(contingency.sum())
    if not rows:
        return Agreement(acc=0.0, nmi=0.0, ari=0.0, rows=0)
    matched = linear_sum_assignment(contingency, maximize=True)
    acc = contingency[matched].sum() / rows
    by_cluster, by_class = contingency.sum(axis=1), contingency.sum(axis=0)
    mean_entropy = (entropy(by_cluster) + entropy(by_class)) / 2
    information = entropy(by_cluster) + entropy(by_class) - entropy(contingency)
    nmi = information / mean_entropy if mean_entropy else 1.0
    return Agreement(float(acc), float(nmi), adjusted_rand(contingency), rows)


def adjusted_rand(contingency: NDArray[np.number]) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985); 1 for equal partitions, about 0 by chance."""
    both, every = _pairs(contingency), _pairs(contingency.sum(keepdims=True))
    first, second = _pairs(contingency.sum(axis=1)), _pairs(contingency.sum(axis=0))
    expected, greatest = first * second / max(every, 1.0), (first + second) / 2
    return 1.0 if greatest == expected else (both - expected) / (greatest - expected)


def entropy(counts: NDArray[np.int64]) -> float:
    """Shannon entropy of the distribution that these counts describe, in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _pairs(counts: NDArray[np.number]) -> float:
    """Σ n·(n−1)/2, in float64: pairs of a billion rows do not fit an int64 product."""
    n = counts.astype(np.float64)
    return float((n * (n - 1) / 2).sum())
