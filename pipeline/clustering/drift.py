"""Drift of the input: how far tonight's values of each feature are from the reference sample's.

Each feature has at most ten bins of about equal size by the reference sample. Bin ``b`` holds
``edges[b - 1] < x <= edges[b]``; the outer bins are open to infinity. A value that fills a bin by
itself (the 0 of a sparse feature, both values of a binary one, a constant) shares it with no other
value of the sample. Values below the lowest or above the highest of these have their own bins, so
that a changed constant counts as drift.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# Probability per night that any feature without drift is reported: once in three years of nights.
FALSE_ALARMS = 1e-3


def bin_edges(x_NF: NDArray[np.generic], bins: int = 10) -> NDArray[np.float64]:
    """The inner edges of bins of about equal size, at most ``bins`` for each feature.

    Float64, shape (features, bins - 1), ascending; +inf where a feature needs fewer. They are
    representable in the dtype of ``x_NF``, so that comparisons are exact. NaN and infinite values
    are missing.
    """
    x_NF = x_NF if np.issubdtype(x_NF.dtype, np.floating) else x_NF.astype(np.float64)
    edges_FB = np.full((x_NF.shape[1], bins - 1), np.inf)
    for feature, edges in enumerate(edges_FB):
        x_N = x_NF[:, feature]
        found = _edges(np.sort(x_N[np.isfinite(x_N)]), bins)
        edges[: len(found)] = found
    return edges_FB


def _edges(x_N: NDArray[np.floating], bins: int) -> list[float]:
    """Edges for the sorted values of a feature, ascending."""
    edges: list[float] = []
    if not len(x_N):
        return edges
    fair = len(x_N) / bins
    heavy = False  # whether one value fills the bin below
    start = 0  # of the bin, as a rank
    while start < len(x_N) and len(edges) < bins - 1:
        rows = max(fair, (len(x_N) - start) / (bins - len(edges)))
        value = x_N[min(start + int(np.ceil(rows)), len(x_N)) - 1]
        first, last = np.searchsorted(x_N, value), np.searchsorted(x_N, value, side="right")
        heavy = last - first >= fair
        if heavy and first > start:  # the bin ends right below the heavy value, which comes next
            edges.append(_below(value))
            start = first
        elif last < len(x_N):
            edges.append(float(value))
            start = last
        else:
            break
    # Where there is room, bins for values below the lowest and above the highest heavy value.
    if len(edges) < bins - 1 and heavy:
        edges.append(float(x_N[-1]))
    lowest = np.searchsorted(x_N, x_N[0], side="right")
    if len(edges) < bins - 1 and lowest >= fair:
        edges.insert(0, _below(x_N[0]))
    return edges


def _below(value: np.floating) -> float:
    """The next smaller number of the same dtype."""
    return float(np.nextafter(value, -np.inf, dtype=value.dtype))


def bin_counts(x_BF: NDArray[np.generic], edges_FB: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of finite values in each bin, int64, shape (features, bins); batches can be added."""
    finite_BF = np.isfinite(x_BF)
    value_BF = np.where(finite_BF, x_BF, -np.inf).astype(np.float64, copy=False)
    above_FB = np.zeros((edges_FB.shape[0], edges_FB.shape[1] + 2), np.int64)
    above_FB[:, 0] = finite_BF.sum(axis=0)
    for edge in range(edges_FB.shape[1]):  # nine
        above_FB[:, edge + 1] = (value_BF > edges_FB[:, edge]).sum(axis=0)
    return above_FB[:, :-1] - above_FB[:, 1:]


def psi(expected_FB: NDArray[np.int64], actual_FB: NDArray[np.int64]) -> NDArray[np.float64]:
    """Population stability index, less what chance explains.

    PSI = Σ_b (a_b - e_b) ln(a_b / e_b) of the shares a and e of the rows in each bin (Siddiqi 2006,
    Credit Risk Scorecards); by convention below 0.1 is no change, and above 0.25 a large one.

    Empty bins: each side gets one more row, spread over the bins like both sides together, so that
    no share is 0 where the other is not, and bins empty on both sides add nothing. Missing values
    are a bin of their own; the feature with the fewest shows their number.

    Chance: for two samples of one distribution, PSI / (1/n + 1/m) is about chi-squared with B - 1
    degrees of freedom (Yurdakul 2018, Statistical Properties of the Population Stability Index).
    Its mean, (B - 1)(1/n + 1/m), is subtracted, and PSI counts only above the quantile that all
    features of a night without drift exceed once in 1 / ``FALSE_ALARMS`` nights (Bonferroni). PSI
    strays farther in bins of few rows, and Pearson's statistic of homogeneity, which has the same
    distribution, where one sample is far smaller: both must exceed it.

    Args:
        expected_FB: Rows of the reference in each bin, shape (features, bins).
        actual_FB: Rows of tonight, the same shape.

    Returns:
        psi_F, float64, shape (features,), finite, >= 0; all 0 where one side has no rows.
    """
    if expected_FB.shape != actual_FB.shape:
        raise ValueError(f"expected has the shape {expected_FB.shape}, actual {actual_FB.shape}")
    expected_FB, actual_FB = _with_missing(expected_FB), _with_missing(actual_FB)
    if not expected_FB.any() or not actual_FB.any():
        return np.zeros(len(expected_FB))
    n, m = expected_FB[0].sum(), actual_FB[0].sum()
    both_FB = (expected_FB + actual_FB) / (n + m)
    used_FB = both_FB > 0
    e_FB = (expected_FB + both_FB) / (n + 1)
    a_FB = (actual_FB + both_FB) / (m + 1)
    ratio_FB = np.divide(a_FB, e_FB, out=np.ones_like(a_FB), where=used_FB)
    degrees_F = used_FB.sum(axis=1) - 1
    psi_F = ((a_FB - e_FB) * np.log(ratio_FB)).sum(axis=1)
    apart_FB = np.square(expected_FB / n - actual_FB / m)
    pearson_F = np.divide(apart_FB, both_FB, out=np.zeros_like(a_FB), where=used_FB).sum(axis=1)
    chance_F = _chance(degrees_F, FALSE_ALARMS / len(psi_F)) * (1 / n + 1 / m)
    beyond_F = np.minimum(psi_F, pearson_F) > chance_F
    drift_F: NDArray[np.float64] = np.where(
        beyond_F, np.maximum(psi_F - degrees_F * (1 / n + 1 / m), 0), 0.0
    )
    return drift_F


def _with_missing(counts_FB: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts, with missing values as one more bin."""
    rows_F = counts_FB.sum(axis=1)
    return np.column_stack([counts_FB, rows_F.max(initial=0) - rows_F])


def _chance(degrees_F: NDArray[np.int64], tail: float) -> NDArray[np.float64]:
    """Value that chi-squared exceeds with probability ``tail`` (Wilson and Hilferty 1931)."""
    spread_F = 2 / (9 * np.maximum(degrees_F, 1))
    z = NormalDist().inv_cdf(1 - tail)
    quantile_F: NDArray[np.float64] = degrees_F * (1 - spread_F + z * np.sqrt(spread_F)) ** 3
    return quantile_F
