"""A small decision tree that imitates a model: rules in the user's columns, and how true they are.

The tree is fitted on raw features, so that its rules are about values that the user knows. What a
rule says is what is measured: thresholds are rounded to the shortest number that parts the same
rows, conditions on one feature are merged, and fidelity is counted with those very rules on rows
that the tree was not fitted on.

Bounds: at most ``MOST_ROWS`` rows, ``MOST_FEATURES`` features and ``_MOST_CELLS`` values of both
are looked at, of wider rows the features that differ most between clusters; a tree of depth d has
2^d leaves, so that of more clusters the largest 2^d alone can have rules.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
_MOST_HELD_BACK = 20_000
_HELD_BACK_SHARE = 0.2
# Rules about fewer rows are accidents of the sample.
_LEAST_LEAF_ROWS = 5
_FEATURES_AT_A_TIME = 64
# Larger numbers are as good as this one: scikit-learn adds them all up in single precision.
_LARGEST = 1e30
# Up to here floats tell one integer from the next.
_LARGEST_INTEGER = 2.0**53


Kind = Literal["number", "time", "boolean", "category", "missing"]


@dataclass(frozen=True)
class Asked:
    """What a value of a row is about.

    Attributes:
        name: The user's column; with its place where it is a component of a vector.
        kind: "number"; "time": seconds since 1970; "boolean", and for one value of a category
            "category", and for whether it has none "missing": 1 where it is so, else 0.
        value: Of the category.
    """

    name: str
    kind: Kind = "number"
    value: str | None = None

    def answer(self, *, yes: bool) -> str:
        """What 1 or 0 means."""
        if self.kind == "missing":
            return f"{self.name} is {'missing' if yes else 'there'}"
        if self.kind == "category":
            return f"{self.name} {'=' if yes else '≠'} {self.value}"
        return f"{self.name} = {'true' if yes else 'false'}"

    def number(self, value: float) -> str:
        """A value as people write it."""
        return point_in_time(value) if self.kind == "time" else number(value)


@dataclass(frozen=True)
class Condition:
    """``low < x <= high`` for one feature.

    Attributes:
        feature: Its place in a row.
        low: −inf: none. Where it is inf, only a missing value will do.
        high: inf: none.
        missing: Whether a missing value will do.
    """

    feature: int
    low: float = -math.inf
    high: float = math.inf
    missing: bool = False

    def holds(self, x_B: NDArray[np.floating]) -> NDArray[np.bool_]:
        """For which values it does; those that are missing are NaN."""
        held: NDArray[np.bool_] = (x_B > self.low) & (x_B <= self.high)
        return held | np.isnan(x_B) if self.missing else held

    def text(self, asked: Asked) -> str:
        """As people write it."""
        name = asked.name
        if self.low == math.inf:
            return f"{name} is missing"
        if self.low == -math.inf and self.high == math.inf:
            return f"{name} is there"
        if asked.kind not in ("number", "time"):
            words = asked.answer(yes=self.low >= 0)
        elif self.low > -math.inf and self.high < math.inf:
            words = f"{asked.number(self.low)} < {name} ≤ {asked.number(self.high)}"
        elif self.low > -math.inf:
            words = f"{name} > {asked.number(self.low)}"
        else:
            words = f"{name} ≤ {asked.number(self.high)}"
        return f"({words} or missing)" if self.missing else words


@dataclass(frozen=True)
class Rule:
    """One leaf: rows that meet all conditions are of the cluster, as far as the tree can tell.

    Attributes:
        cluster_id: Of the cluster; None: of one that is too small to have rules.
        conditions: At most one a feature, in the order of the tree.
        rows: Rows that the tree was fitted on and that meet them.
        held_back: Rows that it was not fitted on and that meet them.
        right: Those of them that the model puts into that cluster.
    """

    cluster_id: int | None
    conditions: tuple[Condition, ...]
    rows: int
    held_back: int = 0
    right: int = 0

    @property
    def precision(self) -> float | None:
        """Share of the rows that meet it which are of the cluster; None: none was held back."""
        return self.right / self.held_back if self.held_back else None

    def holds(self, x_BF: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which rows meet all conditions."""
        held = np.ones(len(x_BF), bool)
        for condition in self.conditions:
            held &= condition.holds(x_BF[:, condition.feature])
        return held

    def text(self, asked: Sequence[Asked]) -> str:
        """Its conditions as people write them."""
        words = [condition.text(asked[condition.feature]) for condition in self.conditions]
        return " and ".join(words) or "always"


@dataclass(frozen=True)
class Imitated:
    """How well the rules describe one cluster, on rows held back.

    Attributes:
        cluster_id: Of the cluster.
        rows: Held-back rows of the cluster, by the model.
        told: Those that its rules would put into it.
        right: Those that both do.
    """

    cluster_id: int
    rows: int
    told: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of the rows that the rules put there which the model does too."""
        return self.right / self.told if self.told else None

    @property
    def recall(self) -> float | None:
        """Share of the rows that the model puts there which the rules do too."""
        return self.right / self.rows if self.rows else None


@dataclass(frozen=True)
class Surrogate:
    """The rules, and how far they can be trusted.

    Attributes:
        rules: Every row meets exactly one of them, or none where it misses a value that no row
            missed which the tree was fitted on. By cluster, the one with most rows first.
        clusters: Every cluster of the sample, by id.
        fidelity: Share of held-back rows that the rules put where the model does.
        baseline: The same of always saying the largest cluster.
        fitted_rows: Rows that the tree was fitted on.
        held_back_rows: Rows that it was measured on.
        features: Features that were looked at, of all that a row has.
    """

    rules: tuple[Rule, ...]
    clusters: tuple[Imitated, ...]
    fidelity: float
    baseline: float
    fitted_rows: int
    held_back_rows: int
    features: int


def imitate(
    x_NF: NDArray[np.generic], label_N: NDArray[np.integer], *, depth: int, seed: int
) -> Surrogate | None:
    """Fit a tree to a model's labels, and measure its rules.

    Args:
        x_NF: Raw rows, shape (rows, features); missing values are NaN, infinite ones count as such.
        label_N: Cluster id of each row by the model, shape (rows,).
        depth: Levels of the tree, at most: conditions of a rule before they are merged.
        seed: Which rows are held back. The same rows, depth and seed give the same rules.

    Returns:
        None where there are not two rows to fit on and one to measure on.
    """
    from sklearn.tree import DecisionTreeClassifier

    held_back, fitted = _split(len(label_N), x_NF.shape[1], seed)
    if len(fitted) < 2 or not len(held_back):
        return None
    label_B = label_N[fitted]
    columns = _telling_features(x_NF, fitted, label_B)
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
    told_x_HC = _finite_or_nan(x_NF[np.ix_(held_back, columns)])
    measured = _measure(rules, told_x_HC, label_N[held_back], np.unique(label_N))
    rules = [_of_row(rule, columns) for rule in measured[0]]
    rules.sort(key=lambda rule: (rule.cluster_id is None, rule.cluster_id or 0, -rule.rows))
    largest = ids[counts.argmax()]
    return Surrogate(
        rules=tuple(rules),
        clusters=measured[1],
        fidelity=sum(rule.right for rule in rules) / len(held_back),
        baseline=float(np.mean(label_N[held_back] == largest)),
        fitted_rows=len(fitted),
        held_back_rows=len(held_back),
        features=len(columns),
    )


def number(value: float) -> str:
    """A number in the fewest digits that are exactly it."""
    if value == int(value) and abs(value) < _LARGEST_INTEGER:
        return str(int(value))
    return repr(float(value))


def point_in_time(seconds: float) -> str:
    """Seconds since 1970 as people write them."""
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    try:
        return f"{start + datetime.timedelta(seconds=seconds):%Y-%m-%d %H:%M}"
    except OverflowError:
        return f"{seconds:.4g}"


def iso_time(seconds: float, kind: str) -> str | float:
    """Seconds since 1970 as ISO 8601 has them, or as they are where there is no such date.

    Args:
        seconds: In UTC where the column has a time zone, by its own clock where it has none.
        kind: Of the column, in Arrow's words.
    """
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC if "tz=" in kind else None)
    try:
        return (start + datetime.timedelta(seconds=round(seconds, 3))).isoformat()
    except (OverflowError, ValueError):
        return seconds


def between(below: float, above: float) -> float:
    """The shortest number t with below <= t < above, near the middle; of integers an integer.

    ``x <= t`` then parts values up to ``below`` from those of ``above`` on.
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
    held_back = min(math.ceil(rows * _HELD_BACK_SHARE), _MOST_HELD_BACK)
    most = min(MOST_ROWS, _MOST_CELLS // min(width, MOST_FEATURES))
    return np.sort(order[:held_back]), np.sort(order[held_back : held_back + most])


def _finite_or_nan(x_BF: NDArray[np.generic]) -> NDArray[np.float64]:
    values = x_BF.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _as_tree_input(x_BC: NDArray[np.float64]) -> NDArray[np.float32]:
    """What scikit-learn computes with, in single precision."""
    return np.clip(x_BC, -_LARGEST, _LARGEST).astype(np.float32)


def _telling_features(
    x_NF: NDArray[np.generic], rows_B: NDArray[np.int64], label_B: NDArray[np.integer]
) -> NDArray[np.int64]:
    """The features to look at: all, or those whose means differ most between clusters."""
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


@dataclass
class _Node:
    """A node of the tree as it is read out: a leaf, or a question with two answers."""

    place: int
    rows: int
    left: _Node | None = None
    right: _Node | None = None
    yes: Condition = field(default_factory=lambda: Condition(0))
    no: Condition = field(default_factory=lambda: Condition(0))


def _leaves(
    tree: DecisionTreeClassifier, x_BC: NDArray[np.float64], place_B: NDArray[np.integer]
) -> Iterator[tuple[int, tuple[Condition, ...], int]]:
    """Class, conditions and rows of every leaf; two of one class side by side are one."""
    grown = tree.tree_
    missing_left = grown.missing_go_to_left

    def read(node: int, rows: NDArray[np.int64]) -> _Node:
        counts = np.bincount(place_B[rows])
        found = _Node(int(counts.argmax()), len(rows))
        if grown.children_left[node] == -1:
            return found
        feature = int(grown.feature[node])
        x_R = x_BC[rows, feature]
        gone_R = np.isnan(x_R)
        # As scikit-learn does it: on its own numbers, which are of single precision.
        left_R = _as_tree_input(x_R) <= grown.threshold[node]
        left_R[gone_R] = bool(missing_left[node])
        below = x_R[left_R & ~gone_R].max(initial=-np.inf)
        above = x_R[~left_R & ~gone_R].min(initial=np.inf)
        if not math.isfinite(below):  # only missing values answer yes
            split = -math.inf
        elif not math.isfinite(above):
            split = math.inf
        else:
            split = between(float(below), float(above))
        seen, to_left = bool(gone_R.any()), bool(missing_left[node])
        found.yes = Condition(feature, high=split, missing=seen and to_left)
        found.no = Condition(feature, low=split, missing=seen and not to_left)
        if split == -math.inf:
            found.yes = Condition(feature, low=math.inf, missing=True)
        found.left = read(grown.children_left[node], rows[left_R])
        found.right = read(grown.children_right[node], rows[~left_R])
        answers = found.left, found.right
        if all(a.left is None for a in answers) and answers[0].place == answers[1].place:
            found.left = found.right = None
        return found

    def walk(
        node: _Node, so_far: tuple[Condition, ...]
    ) -> Iterator[tuple[int, tuple[Condition, ...], int]]:
        if node.left is None or node.right is None:
            yield node.place, so_far, node.rows
            return
        yield from walk(node.left, _and(so_far, node.yes))
        yield from walk(node.right, _and(so_far, node.no))

    yield from walk(read(0, np.arange(len(x_BC))), ())


def _and(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """One more condition, merged with one that there is on the same feature."""
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
) -> tuple[list[Rule], tuple[Imitated, ...]]:
    """Rules and clusters with what they are worth on rows held back."""
    told, right = dict.fromkeys(ids.tolist(), 0), dict.fromkeys(ids.tolist(), 0)
    measured = []
    for rule in rules:
        met_H = rule.holds(x_HC)
        hits = 0
        if rule.cluster_id is not None:
            hits = int((label_H[met_H] == rule.cluster_id).sum())
            told[rule.cluster_id] += int(met_H.sum())
            right[rule.cluster_id] += hits
        measured.append(replace(rule, held_back=int(met_H.sum()), right=hits))
    found, counts = np.unique(label_H, return_counts=True)
    rows = dict(zip(found.tolist(), counts.tolist(), strict=True))
    clusters = tuple(Imitated(i, rows.get(i, 0), told[i], right[i]) for i in ids.tolist())
    return measured, clusters


def _of_row(rule: Rule, columns: NDArray[np.int64]) -> Rule:
    """The rule about features of a whole row, instead of those that were looked at."""
    conditions = (replace(c, feature=int(columns[c.feature])) for c in rule.conditions)
    return replace(rule, conditions=tuple(conditions))
