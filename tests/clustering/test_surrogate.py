"""A tree that imitates: its rules say what the labels were made by, and its fidelity is counted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris

from pipeline.clustering import surrogate
from pipeline.clustering.surrogate import Condition, Rule, TreeFeature, between, imitate, number

NAMES = [TreeFeature(name) for name in ("f0", "f1", "f2", "f3")]


def squares(rows: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Three clusters that f1 and f2 decide, and two columns that decide nothing."""
    x = np.random.default_rng(0).uniform(0, 10, size=(rows, 4))
    return x, np.where(x[:, 1] > 3, 5, np.where(x[:, 2] > 7.5, 8, 2))


def test_rules_find_what_the_labels_were_made_by() -> None:
    x, label = squares()
    found = imitate(x, label, depth=3, seed=0)
    assert found is not None
    assert {rule.cluster_id: rule.text(NAMES) for rule in found.rules} == {
        2: "f1 ≤ 3 and f2 ≤ 7.5",
        5: "f1 > 3",
        8: "f1 ≤ 3 and f2 > 7.5",
    }
    assert found.fidelity > 0.995
    assert [c.cluster_id for c in found.clusters] == [2, 5, 8]
    assert sum(rule.rows for rule in found.rules) == found.fitted_rows == 1_600


def test_fidelity_is_that_of_the_rules_on_rows_held_out() -> None:
    x, label = load_iris(return_X_y=True)
    random = np.random.default_rng(1)
    label = np.where(random.random(len(label)) < 0.2, random.integers(0, 3, len(label)), label)
    found = imitate(x, label, depth=2, seed=3)
    assert found is not None
    # Which rows are held out follows from the seed alone.
    held = np.sort(np.random.default_rng(3).permutation(150)[:30])
    told = np.full(30, -1)
    for rule in found.rules:
        met = np.ones(30, bool)
        for c in rule.conditions:
            met &= (x[held, c.feature] > c.low) & (x[held, c.feature] <= c.high)
        assert (told[met] == -1).all()
        told[met] = rule.cluster_id
        assert (rule.held_out, rule.correct) == (
            met.sum(),
            (label[held][met] == rule.cluster_id).sum(),
        )
    assert found.held_out_rows == 30
    assert found.fidelity == pytest.approx(np.mean(told == label[held]))
    largest = np.bincount(np.delete(label, held)).argmax()
    assert found.baseline == pytest.approx(np.mean(label[held] == largest))
    for c in found.clusters:
        mine, here = label[held] == c.cluster_id, told == c.cluster_id
        assert (c.rows, c.predicted, c.correct) == (mine.sum(), here.sum(), (mine & here).sum())
        assert c.recall == pytest.approx(c.correct / c.rows)


def test_conditions_on_one_feature_are_merged() -> None:
    x = np.linspace(0, 100, 1_001)[:, None]
    label = np.digitize(x[:, 0], [20, 40, 60, 80])
    found = imitate(x, label, depth=4, seed=0)
    assert found is not None
    texts = {rule.cluster_id: rule.text([TreeFeature("x[17]")]) for rule in found.rules}
    for cluster in range(5):
        assert texts[cluster].count("x[17]") == 1  # and one leaf each
    assert texts[2].startswith("40 <") or texts[2].startswith("39.9")
    assert len(found.rules) == 5


def test_leaves_of_one_cluster_side_by_side_are_one_rule() -> None:
    x, label = squares()
    x, label = x[label != 8], np.where(label[label != 8] == 5, 5, 2)
    found = imitate(x, label, depth=6, seed=0)  # far deeper than needed
    assert found is not None
    assert [rule.text(NAMES) for rule in found.rules] == ["f1 ≤ 3", "f1 > 3"]


def test_missing_values_are_an_answer() -> None:
    x, _ = squares()
    x[::3, 0] = np.nan
    x[1::30, 0] = np.inf  # as good as missing
    label = np.where(np.isfinite(x[:, 0]), np.where(x[:, 1] > 3, 1, 2), 0)
    found = imitate(x, label, depth=3, seed=0)
    assert found is not None
    texts = {rule.cluster_id: rule.text(NAMES) for rule in found.rules}
    assert texts[0] == "f0 is missing"
    assert found.fidelity == 1
    clean = np.where(np.isfinite(x), x, np.nan)
    assert (sum(rule.holds(clean).astype(int) for rule in found.rules) == 1).all()


def test_missing_values_beside_numbers() -> None:
    x = np.linspace(0, 10, 500)[:, None].copy()
    x[::5] = np.nan
    label = np.where(np.isnan(x[:, 0]) | (x[:, 0] > 5), 1, 0)
    found = imitate(x, label, depth=2, seed=0)
    assert found is not None
    low, high = (rule.text([TreeFeature("f")]) for rule in found.rules)
    assert low == "f ≤ 5"
    assert high == "(f > 5 or missing)"
    assert found.fidelity == 1


def test_of_more_clusters_than_leaves_the_largest_have_rules() -> None:
    random = np.random.default_rng(0)
    label = np.concatenate([np.zeros(500), np.ones(300), np.arange(200) % 50 + 2]).astype(int)
    x = np.stack([label == 0, label == 1], axis=1) + random.normal(size=(1000, 2)) / 100
    found = imitate(x, label, depth=1, seed=0)
    assert found is not None
    assert len(found.rules) == 2
    assert {rule.cluster_id for rule in found.rules} <= {0, 1, None}
    deeper = imitate(x, label, depth=2, seed=0)
    assert deeper is not None
    assert {r.cluster_id for r in deeper.rules} >= {0, 1}
    assert len(deeper.clusters) == 52  # the others are there, and the rules find none of them
    assert deeper.fidelity < 0.9  # whatever is said of their rows counts as wrong


def test_bounded_work_on_wide_and_long_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "MOST_FEATURES", 8)
    monkeypatch.setattr(surrogate, "MOST_ROWS", 300)
    x = np.random.default_rng(0).normal(size=(3_000, 200))
    label = (x[:, 123] > 0.5).astype(int)
    x[::7, 123] = np.nan
    found = imitate(x, np.where(np.isnan(x[:, 123]), 1, label), depth=2, seed=0)
    assert found is not None
    assert (found.considered_features, found.fitted_rows, found.held_out_rows) == (8, 300, 600)
    assert {c.feature for rule in found.rules for c in rule.conditions} == {123}
    assert found.fidelity > 0.95


def test_the_same_again_and_with_large_numbers() -> None:
    x, label = squares(500)
    x[:, 1] = np.where(x[:, 1] > 3, 1e300, -1e300)  # beyond what scikit-learn computes with
    one, two = (imitate(x, label, depth=3, seed=4) for _ in range(2))
    assert one == two
    assert one is not None
    assert one.fidelity > 0.98


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_rows(rows: int) -> None:
    assert imitate(np.zeros((rows, 2)), np.zeros(rows, int), depth=3, seed=0) is None


def test_one_cluster_alone() -> None:
    found = imitate(np.zeros((50, 2)), np.full(50, 4), depth=3, seed=0)
    assert found is not None
    assert [(rule.cluster_id, rule.text(NAMES)) for rule in found.rules] == [(4, "always")]
    assert found.fidelity == found.baseline == 1


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [(3, 4, 3), (0, 10, 5), (0.1234, 0.1239, 0.1236), (-2.5, 9, 3), (1e300, 1.5e300, 1e300)],
)
def test_the_shortest_number_between(below: float, above: float, expected: float) -> None:
    assert between(below, above) == expected
    assert below <= between(below, above) < above


def test_a_gap_of_one_float() -> None:
    below = 0.1
    above = float(np.nextafter(below, 1))
    assert between(below, above) == below


def test_words() -> None:
    assert Condition(0, low=1.5).text(TreeFeature("f")) == "f > 1.5"
    assert Condition(0, low=1.5, high=3).text(TreeFeature("f")) == "1.5 < f ≤ 3"
    assert Condition(0).text(TreeFeature("f")) == "f is there"
    assert Rule(1, (), 3).precision is None
    assert (number(3.0), number(-0.25), number(1e20)) == ("3", "-0.25", "1e+20")


def test_words_of_typed_columns() -> None:
    red, member = TreeFeature("colour", "category", "red"), TreeFeature("member", "boolean")
    assert [Condition(0, low=0).text(red), Condition(0, high=0).text(red)] == [
        "colour = red",
        "colour ≠ red",
    ]
    assert Condition(0, low=0, missing=True).text(member) == "(member = true or missing)"
    assert Condition(0, high=0).text(member) == "member = false"
    assert Condition(0, low=0).text(TreeFeature("colour", "missing")) == "colour is missing"
    when = TreeFeature("seen", "time")
    assert Condition(0, high=86_400).text(when) == "seen ≤ 1970-01-02 00:00"
    assert Condition(0, low=1e300).text(when) == "seen > 1e+300"
