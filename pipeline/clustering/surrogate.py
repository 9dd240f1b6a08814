"""A surrogate decision tree of a model: rules in the user's columns, and their fidelity.

The tree is fitted on raw features, so that its rules are about values that the user knows. The
rules are measured as they are shown: thresholds are rounded to the shortest number that separates
the same rows, conditions on one feature are merged, and fidelity is that of these rules on held-out
rows.

Bounds: at most ``MOST_ROWS`` rows, ``MOST_FEATURES`` features and ``_MOST_CELLS`` values of both
are used, of wider rows the features that differ most between clusters; a tree of depth d has 2^d
leaves, so that among more clusters only the largest 2^d can have rules.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # libraries that take a second to import are, by the functions that need them
    from sklearn.tree import DecisionTreeClassifier

# Fitting takes about a second for a million values and five levels; more rows move the thresholds
# of so small a tree very little.
MOST_ROWS = 20_000
MOST_FEATURES = 256
_MOST_CELLS = 4_000_000
# Enough to know a share to half a point.
_MOST_HELD_OUT = 20_000
_HELD_OUT_SHARE = 0.2
# Rules about fewer rows are accidents of the sample.
_LEAST_LEAF_ROWS = 5
_FEATURES_AT_A_TIME = 64
# Larger numbers are as good as this one: scikit-learn adds them all up in single precision.
_LARGEST = 1e30
# Up to here floats tell one integer from the next.
_LARGEST_INTEGER = 2.0**53


Kind = Literal["number", "time", "boolean", "category", "missing"]


@dataclass(frozen=True)
class TreeFeature:
    """Meaning of one value of a row that the tree is fitted on."""

    name: str  # name of the user's column; with the index of a vector's component
    # "number"; "time": seconds since 1970; or an indicator of 1 and 0: "boolean", "category" for
    # one value of a category, "missing" for rows without a value.
    kind: Kind = "number"
    value: str | None = None

    def answer(self, *, yes: bool) -> str:
        """Text of an indicator's 1 or 0."""
        if self.kind == "missing":
            return f"{self.name} is {'missing' if yes else 'there'}"
        if self.kind == "category":
            return f"{self.name} {'=' if yes else '≠'} {self.value}"
        return f"{self.name} = {'true' if yes else 'false'}"

    def number(self, value: float) -> str:
        """Text of a value."""
        return point_in_time(value) if self.kind == "time" else number(value)


@dataclass(frozen=True)
class Condition:
    """``low < x <= high`` for one feature."""

    feature: int
    low: float = -math.inf  # Lower bound; −inf: none. With +inf only missing values match.
    high: float = math.inf  # upper bound; +inf: none
    missing: bool = False

    def holds(self, x_B: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each value matches; missing values are NaN."""
        held: NDArray[np.bool_] = (x_B > self.low) & (x_B <= self.high)
        return held | np.isnan(x_B) if self.missing else held

    def text(self, about: TreeFeature) -> str:
        """Text of the condition on a feature."""
        name = about.name
        if self.low == math.inf:
            return f"{name} is missing"
        if self.low == -math.inf and self.high == math.inf:
            return f"{name} is there"
        if about.kind not in ("number", "time"):
            words = about.answer(yes=self.low >= 0)
        elif self.low > -math.inf and self.high < math.inf:
            words = f"{about.number(self.low)} < {name} ≤ {about.number(self.high)}"
        elif self.low > -math.inf:
            words = f"{name} > {about.number(self.low)}"
        else:
            words = f"{name} ≤ {about.number(self.high)}"
        return f"({words} or missing)" if self.missing else words


@dataclass(frozen=True)
class Rule:
    """A leaf of the tree: rows that match all conditions are predicted to be in its cluster."""

    cluster_id: int | None  # predicted cluster; None: one of those that are too small to have rules
    # Conditions, at most one per feature, in the order of the tree.
    conditions: tuple[Condition, ...]
    rows: int
    held_out: int = 0
    correct: int = 0  # number of matching held-out rows that the model, too, puts into the cluster

    @property
    def precision(self) -> float | None:
        """``correct / held_out``; None where no held-out row matches."""
        return self.correct / self.held_out if self.held_out else None

    def holds(self, x_BF: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each row matches all conditions."""
        held = np.ones(len(x_BF), bool)
        for condition in self.conditions:
            held &= condition.holds(x_BF[:, condition.feature])
        return held

    def text(self, features: Sequence[TreeFeature]) -> str:
        """Text of all conditions."""
        words = [condition.text(features[condition.feature]) for condition in self.conditions]
        return " and ".join(words) or "always"


@dataclass(frozen=True)
class ClusterFidelity:
    """Fidelity of the rules for one cluster, on held-out rows."""

    cluster_id: int
    rows: int  # held-out rows that the model puts into the cluster
    predicted: int  # held-out rows that the rules put into it
    correct: int  # held-out rows that both put into it

    @property
    def precision(self) -> float | None:
        """``correct / predicted``; None where nothing is predicted."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """``correct / rows``; None without held-out rows."""
        return self.correct / self.rows if self.rows else None


@dataclass(frozen=True)
class Surrogate:
    """The rules and their fidelity."""

    # Rules by cluster, the one with most rows first. Every row matches exactly one, or none where
    # it misses a value that no fitted row missed.
    rules: tuple[Rule, ...]
    clusters: tuple[ClusterFidelity, ...]  # fidelity for every cluster of the sample, by id
    fidelity: float  # share of held-out rows for which rules and model agree
    # Share of held-out rows in the largest cluster: the fidelity of a constant guess.
    baseline: float
    fitted_rows: int
    held_out_rows: int
    considered_features: int


def imitate(
    x_NF: NDArray[np.generic], label_N: NDArray[np.integer], *, depth: int, seed: int
) -> Surrogate | None:
    """Fit a tree to a model's labels, and measure its rules; None with too few rows.

    ``x_NF`` are raw rows, shape (rows, features), whose values that are not finite are missing;
    ``label_N`` are cluster ids by the model, shape (rows,). The same rows, depth and seed, which
    chooses the held-out rows, give the same rules. Two rows to fit on and one to measure on are
    enough.
    """
    from sklearn.tree import DecisionTreeClassifier

    held_out, fitted = _split(len(label_N), x_NF.shape[1], seed)
    if len(fitted) < 2 or not len(held_out):
        return None
    label_B = label_N[fitted]
    columns = _used_features(x_NF, fitted, label_B)
    # The largest first, of equal ones the lower id.
    ids, counts = np.unique(label_B, return_counts=True)
    known = np.sort(ids[np.argsort(-counts, kind="stable")[: 2**depth]])
    place_B = np.searchsorted(known, label_B)
    place_B[~np.isin(label_B, known)] = len(known)  # one class of all others
    x_BC = _finite_or_nan(x_NF[np.ix_(fitted, columns)])
    tree = DecisionTreeClassifier(
        max_depth=depth,
        min_samples_leaf=max(1, min(_LEAST_LEAF_ROWS, len(fitted) // 20)),
        random_state=seed,
    ).fit(_as_tree_input(x_BC), place_B)
    rules = [
        Rule(None if place == len(known) else int(known[place]), conditions, rows)
        for place, conditions, rows in _leaves(tree, x_BC, place_B)
    ]
    x_HC = _finite_or_nan(x_NF[np.ix_(held_out, columns)])
    measured, clusters = _measure(rules, x_HC, label_N[held_out], np.unique(label_N))
    rules = []  # with indices of features in a whole row, instead of among those used
    for rule in measured:
        conditions = [replace(c, feature=int(columns[c.feature])) for c in rule.conditions]
        rules.append(replace(rule, conditions=tuple(conditions)))
    rules.sort(key=lambda rule: (rule.cluster_id is None, rule.cluster_id or 0, -rule.rows))
    largest = ids[counts.argmax()]
    return Surrogate(
        rules=tuple(rules),
        clusters=clusters,
        fidelity=sum(rule.correct for rule in rules) / len(held_out),
        baseline=float(np.mean(label_N[held_out] == largest)),
        fitted_rows=len(fitted),
        held_out_rows=len(held_out),
        considered_features=len(columns),
    )


def number(value: float) -> str:
    """A number in the fewest digits that are exactly it."""
    if value == int(value) and abs(value) < _LARGEST_INTEGER:
        return str(int(value))
    return repr(float(value))


def point_in_time(seconds: float) -> str:
    """Text of a timestamp in seconds since 1970."""
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        return f"{start + datetime.timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except OverflowError:
        return f"{seconds:.4g}"


def iso_time(seconds: float, kind: str) -> str | float:
    """A timestamp in ISO 8601, or the number itself where there is no such date.

    ``kind`` is the Arrow type of its column: with a time zone, seconds are in UTC, else by its own
    clock.
    """
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC if "tz=" in kind else None)
    try:
        return (start + datetime.timedelta(seconds=round(seconds, 3))).isoformat()
    except (OverflowError, ValueError):
        return seconds


def between(below: float, above: float) -> float:
    """The shortest number t with below <= t < above, near the middle; of integers an integer.

    ``x <= t`` then separates values up to ``below`` from those of ``above`` on.
    """
    middle = below / 2 + above / 2
    if below == int(below) and above == int(above) and abs(middle) < _LARGEST_INTEGER:
        return float(math.floor(middle))
    for digits in range(1, 17):
        rounded = float(f"{middle:.{digits}g}")
        if below <= rounded < above:
            return rounded
    return below


def _split(rows: int, width: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to measure on and rows to fit on, ascending."""
    order = np.random.default_rng(seed).permutation(rows)
    held_out = min(math.ceil(rows * _HELD_OUT_SHARE), _MOST_HELD_OUT)
    most = min(MOST_ROWS, _MOST_CELLS // min(width, MOST_FEATURES))
    return np.sort(order[:held_out]), np.sort(order[held_out : held_out + most])


def _finite_or_nan(x_BF: NDArray[np.generic]) -> NDArray[np.float64]:
    values = x_BF.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _as_tree_input(x_BC: NDArray[np.float64]) -> NDArray[np.float32]:
    """What scikit-learn computes with, in single precision."""
    return np.clip(x_BC, -_LARGEST, _LARGEST).astype(np.float32)


def _used_features(
    x_NF: NDArray[np.generic], rows_B: NDArray[np.int64], label_B: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Indices of the features to use: all, or those whose means differ most between clusters."""
    from scipy.sparse import csr_array

    width = x_NF.shape[1]
    if width <= MOST_FEATURES:
        return np.arange(width)
    _, place_B, rows_K = np.unique(label_B, return_inverse=True, return_counts=True)
    rows = len(label_B)
    member_KB = csr_array((np.ones(rows), (place_B, np.arange(rows))), shape=(len(rows_K), rows))
    share_F = np.zeros(width)
    for start in range(0, width, _FEATURES_AT_A_TIME):
        block = _finite_or_nan(x_NF[rows_B, start : start + _FEATURES_AT_A_TIME])
        there = ~np.isnan(block)
        mean = np.where(there, block, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        block = np.where(there, block - mean, 0)
        total = (block**2).sum(axis=0)
        within_means = (member_KB @ block) ** 2 / rows_K[:, None]
        share_F[start : start + block.shape[1]] = np.divide(
            within_means.sum(axis=0), total, out=np.zeros(len(total)), where=total > 0
        )
    return np.sort(np.argsort(-share_F, kind="stable")[:MOST_FEATURES])


# Class, conditions and rows of a leaf.
_Leaf = tuple[int, tuple[Condition, ...], int]


def _leaves(
    tree: DecisionTreeClassifier, x_BC: NDArray[np.float64], place_B: NDArray[np.integer]
) -> list[_Leaf]:
    """Every leaf, left to right; siblings that are leaves of one class become one."""
    grown = tree.tree_
    missing_left = grown.missing_go_to_left

    def read(node: int, rows: NDArray[np.int64], so_far: tuple[Condition, ...]) -> list[_Leaf]:
        here = int(np.bincount(place_B[rows]).argmax()), so_far, len(rows)
        if grown.children_left[node] == -1:
            return [here]
        feature = int(grown.feature[node])
        x_R = x_BC[rows, feature]
        gone_R = np.isnan(x_R)
        # As scikit-learn decides: on its own numbers, which are of single precision.
        left_R = _as_tree_input(x_R) <= grown.threshold[node]
        left_R[gone_R] = bool(missing_left[node])
        below = x_R[left_R & ~gone_R].max(initial=-np.inf)
        above = x_R[~left_R & ~gone_R].min(initial=np.inf)
        missing, to_left = bool(gone_R.any()), bool(missing_left[node])
        if not math.isfinite(below):  # only missing values go left
            split, yes = -math.inf, Condition(feature, low=math.inf, missing=True)
        else:
            split = between(float(below), float(above)) if math.isfinite(above) else math.inf
            yes = Condition(feature, high=split, missing=missing and to_left)
        no = Condition(feature, low=split, missing=missing and not to_left)
        leaves = [
            *read(grown.children_left[node], rows[left_R], _and(so_far, yes)),
            *read(grown.children_right[node], rows[~left_R], _and(so_far, no)),
        ]
        return [here] if len(leaves) == 2 and leaves[0][0] == leaves[1][0] else leaves

    return read(0, np.arange(len(x_BC)), ())


def _and(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """Add a condition, merged with an existing one on the same feature."""
    merged = []
    for old in conditions:
        if old.feature == new.feature:
            low, high = max(old.low, new.low), min(old.high, new.high)
            new = Condition(new.feature, low, high, old.missing and new.missing)
        else:
            merged.append(old)
    return (*merged, new)


def _measure(
    rules: Sequence[Rule],
    x_HC: NDArray[np.float64],
    label_H: NDArray[np.integer],
    ids: NDArray[np.integer],
) -> tuple[list[Rule], tuple[ClusterFidelity, ...]]:
    """Measure rules and clusters on held-out rows."""
    predicted, correct = Counter[int | None](), Counter[int | None]()
    measured = []
    for rule in rules:
        labels = label_H[rule.holds(x_HC)]
        hits = 0 if rule.cluster_id is None else int((labels == rule.cluster_id).sum())
        predicted[rule.cluster_id] += len(labels)
        correct[rule.cluster_id] += hits
        measured.append(replace(rule, held_out=len(labels), correct=hits))
    rows = Counter(label_H.tolist())
    clusters = (ClusterFidelity(i, rows[i], predicted[i], correct[i]) for i in ids.tolist())
    return measured, tuple(clusters)
