"""Permanent ids: every kind of transition against counts worked out by hand, and what holds always.

A contingency table stands for the samples: its cell (i, j) is so many rows that the old model puts
into its cluster i and the new model into its cluster j.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from pipeline.clustering import bipartite
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.matching import KINDS, NONE, Labels, Matched, match, unchanged, unmatched
from pipeline.config import Matching
from pipeline.errors import PipelineError

FIRST_FREE = 100
Counts = Sequence[Sequence[int]]


def rows_of(counts: Counts) -> Labels:
    table = np.array(counts)
    old, new = np.nonzero(table)
    return Labels(np.repeat(old, table[old, new]), np.repeat(new, table[old, new]))


def matched(reference: Counts, tonight: Counts | None = None, **thresholds: float) -> Matched:
    """Old clusters are called 10, 11, …; new ids begin at 100."""
    old, new = np.array(reference).shape
    return match(
        rows_of(reference),
        rows_of(reference if tonight is None else tonight),
        np.arange(10, 10 + old, dtype=np.int32),
        new,
        FIRST_FREE,
        Matching(**thresholds),
    )


def records(found: Matched) -> list[tuple[Any, ...]]:
    """kind, from, to, rows, from_rows, to_rows, from_rows_now, to_rows_now."""
    columns = (column.tolist() for column in vars(found.transitions).values())
    return [
        (KINDS[kind], *(None if n == NONE else n for n in ids), *counts)
        for kind, *rest in zip(*columns, strict=True)
        for ids, counts in [(rest[:2], rest[2:])]
    ]


def ids(found: Matched) -> list[int]:
    return found.ids_K.tolist()


# ------------------------------------------------------------------------------------ each kind


def test_survival_whatever_the_order_of_clusters() -> None:
    found = matched([[0, 40], [60, 0]])
    assert ids(found) == [11, 10]
    assert records(found) == [
        ("survival", 10, 10, 40, 40, 40, 40, 40),
        ("survival", 11, 11, 60, 60, 60, 60, 60),
    ]
    assert found.churn == 0
    assert not found.born_K.any()


def test_survivors_exchange_some_rows() -> None:
    found = matched([[45, 5], [10, 40]])
    assert ids(found) == [10, 11]
    assert found.churn == pytest.approx(15 / 100)
    assert records(found)[0] == ("survival", 10, 10, 45, 50, 55, 50, 55)


def test_merge_the_largest_keeps_its_id() -> None:
    found = matched([[40, 0], [60, 0], [30, 0], [0, 50]])
    assert ids(found) == [11, 13]
    assert records(found) == [
        ("survival", 11, 11, 60, 60, 130, 60, 130),
        ("survival", 13, 13, 50, 50, 50, 50, 50),
        ("merge", 10, 11, 40, 40, 130, 40, 130),
        ("merge", 12, 11, 30, 30, 130, 30, 130),
    ]
    assert found.churn == pytest.approx(70 / 180)


def test_split_the_largest_part_keeps_the_id() -> None:
    found = matched([[30, 45, 25, 0], [0, 0, 0, 50]])
    assert ids(found) == [100, 10, 101, 11]
    assert records(found) == [
        ("survival", 10, 10, 45, 100, 45, 100, 45),
        ("survival", 11, 11, 50, 50, 50, 50, 50),
        ("split", 10, 100, 30, 100, 30, 100, 30),
        ("split", 10, 101, 25, 100, 25, 100, 25),
    ]
    assert found.parents.tolist() == [[100, 10], [101, 10]]
    assert found.churn == pytest.approx(55 / 150)


def test_a_chip_is_no_part() -> None:
    # 15 of 100 rows are below matching.splits.
    found = matched([[85, 15]])
    assert ids(found) == [10, 100]
    assert [r[:3] for r in records(found)] == [("survival", 10, 10), ("birth", 10, 100)]
    found = matched([[85, 15]], splits=0.15)
    assert [r[:3] for r in records(found)] == [("survival", 10, 10), ("split", 10, 100)]


def test_split_and_merge_at_once_keep_as_many_rows_as_can_be() -> None:
    # 10 could stay the first with 55 rows. Then 11 would end: 10 as the second and 11 as the first
    # keep 45 + 50.
    found = matched([[55, 45], [50, 0]])
    assert ids(found) == [11, 10]
    assert found.churn == pytest.approx(55 / 150)


def test_death_its_rows_do_not_come_any_more() -> None:
    # The rows of 11 in the reference sample lie in the cluster of 10 now, and outnumber it.
    found = matched([[80, 0], [100, 0], [0, 50]], [[80, 0], [3, 0], [0, 50]])
    assert ids(found) == [10, 12]
    assert records(found) == [
        ("survival", 10, 10, 80, 80, 180, 80, 83),
        ("survival", 12, 12, 50, 50, 50, 50, 50),
        ("death", 11, None, 0, 100, 0, 3, 0),
    ]


def test_without_the_rule_of_death_that_is_a_merge() -> None:
    found = matched([[80, 0], [100, 0], [0, 50]], [[80, 0], [0, 0], [0, 50]], dies=0)
    assert [r[:3] for r in records(found)] == [
        ("survival", 11, 11),
        ("survival", 12, 12),
        ("merge", 10, 11),
    ]


def test_few_rows_tonight_are_no_death_where_the_new_model_knows_the_cluster_too() -> None:
    found = matched([[50, 0], [0, 30]], [[500, 0], [0, 0]])
    assert ids(found) == [10, 11]
    assert records(found)[1] == ("survival", 11, 11, 30, 30, 30, 0, 0)


def test_birth_rows_that_the_reference_does_not_explain() -> None:
    # 3 old rows went along with 100 that nobody had seen.
    found = matched([[77, 3, 0], [0, 0, 80]], [[77, 100, 0], [0, 0, 80]])
    assert ids(found) == [10, 100, 11]
    assert records(found) == [
        ("survival", 10, 10, 77, 80, 77, 177, 77),
        ("survival", 11, 11, 80, 80, 80, 80, 80),
        ("birth", None, 100, 0, 0, 3, 0, 100),
    ]
    assert not len(found.parents)


def test_birth_is_no_split_though_the_border_moved() -> None:
    # The new cluster took a quarter of 10's old rows; twenty times as many came from nowhere.
    reference = [[60, 20, 0], [0, 0, 900]]
    found = matched(reference, [[60, 400, 0], [0, 0, 900]])
    assert ("birth", None, 100, 0, 0, 20, 0, 400) in records(found)
    # Without those, it is one.
    assert ("split", 10, 100, 20, 80, 20, 80, 20) in records(matched(reference))


def test_reshuffle_is_deaths_and_births_and_says_where_rows_went() -> None:
    found = matched([[30, 30, 30], [30, 30, 30], [30, 30, 30]])
    assert ids(found) == [100, 101, 102]
    assert found.churn == 1
    assert records(found) == [
        *[("birth", 10, new, 30, 90, 90, 90, 90) for new in (100, 101, 102)],
        *[("death", old, 100, 30, 90, 90, 90, 90) for old in (10, 11, 12)],
    ]
    # A third of each one's rows: all are parents.
    pairs = itertools.product((100, 101, 102), (10, 11, 12))
    assert found.parents.tolist() == [list(pair) for pair in pairs]


def test_an_old_cluster_that_a_stranger_swallowed_does_not_name_it() -> None:
    # All of 10 is in the first, but that is a tenth of it; the rest are chips of 11 to 19.
    chips = [[10, 90] for _ in range(9)]
    found = matched([[10, 0], *chips])
    assert ids(found)[0] == 100
    assert ("death", 10, 100, 10, 10, 100, 10, 100) in records(found)


def test_ten_become_one_and_one_becomes_ten() -> None:
    found = matched([[10 + old] for old in range(10)])
    assert ids(found) == [19]
    assert found.transitions.of("merge").sum() == 9
    found = matched([[10 + new for new in range(10)]])
    assert ids(found) == list(range(100, 110))  # no part is a fifth of it
    assert ("death", 10, 109, 19, 145, 19, 145, 19) in records(found)
    assert found.parents[:, 1].tolist() == [10] * 10


def test_one_class_that_is_replaced_by_another_cannot_be_told() -> None:
    # Each model puts the class that it never saw where the other has its own.
    found = matched([[50, 0], [0, 50]], [[60, 0], [0, 40]])
    assert ids(found) == [10, 11]
    assert found.churn == 0


def test_empty_clusters() -> None:
    found = matched([[50, 0, 0], [0, 0, 40], [0, 0, 0]])
    assert ids(found) == [10, 100, 11]
    assert [r[:3] for r in records(found)][2:] == [("birth", None, 100), ("death", 12, None)]


def test_cluster_that_only_tonight_has_rows_of() -> None:
    found = matched([[50, 0], [0, 0]], [[50, 0], [0, 20]])
    assert ids(found) == [10, 11]
    assert records(found)[1] == ("survival", 11, 11, 0, 0, 0, 20, 20)


@pytest.mark.parametrize("clusters", [1, 3, 30])
def test_more_or_fewer_clusters(clusters: int) -> None:
    random = np.random.default_rng(clusters)
    old, new = random.integers(0, 10, 2000), random.integers(0, clusters, 2000)
    found = match(
        Labels(old, new), Labels(old, new), np.arange(10, dtype=np.int32), clusters, 10, Matching()
    )
    assert len(found.ids_K) == len(set(ids(found))) == clusters


def test_thresholds_are_reached_by_equality() -> None:
    # 0.1 · 30 is 3.0000000000000004 in float64.
    found = matched([[27, 3], [0, 2]], splits=0.1, survives=0.6)
    assert ids(found) == [10, 100]
    assert ("split", 10, 100, 3, 30, 5, 30, 5) in records(found)


# ------------------------------------------------------------------- real classes, known by name


def digits_without(missing: int | None, half: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Handwritten digits of one of two disjoint halves, all classes or all but one."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[half::2]
    rows = rows[y[rows] != missing]
    return x[rows].astype(np.float32), y[rows]


@pytest.mark.parametrize("digit", [0, 4, 6])
@pytest.mark.parametrize("vanishes", [True, False])
def test_a_digit_vanishes_or_appears(digit: int, vanishes: bool) -> None:
    before, after = (digit if gone else None for gone in (not vanishes, vanishes))
    (old_x, old_y), (new_x, new_y) = digits_without(before, 0), digits_without(after, 1)
    olds, news = (10 - (missing is not None) for missing in (before, after))
    old_model, new_model = (
        kmeans(x, clusters, restarts=10, iterations=50, seed=seed).centroids_KD
        for x, clusters, seed in ((old_x, olds, 1), (new_x, news, 2))
    )
    reference, tonight = (
        Labels(nearest_centroid(x, old_model), nearest_centroid(x, new_model))
        for x in (old_x, new_x)
    )
    old_ids = np.arange(olds, dtype=np.int32)
    found = match(reference, tonight, old_ids, news, olds, Matching())
    labels, classes = (reference.old, old_y) if vanishes else (tonight.new, new_y)
    cluster = int(np.bincount(labels[classes == digit]).argmax())
    if vanishes:
        assert [r[:3] for r in records(found) if r[1] == cluster] == [("death", cluster, None)]
    else:
        born = int(found.ids_K[cluster])
        assert [r[:3] for r in records(found) if r[2] == born] == [("birth", None, born)]


# ----------------------------------------------------------------------------- what holds always


def permuted(labels: NDArray[np.int64], clusters: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(clusters)[labels]


@pytest.mark.parametrize("seed", range(20))
def test_permuted_refit_changes_no_id(seed: int) -> None:
    random = np.random.default_rng(seed)
    clusters = int(random.integers(1, 60))
    share = random.dirichlet(np.full(clusters, 0.3))  # some hold most rows, some hardly any
    old, now = (random.choice(clusters, rows, p=share) for rows in (3000, 2000))
    found = match(
        Labels(old, permuted(old, clusters, seed)),
        Labels(now, permuted(now, clusters, seed)),
        random.permutation(200)[:clusters].astype(np.int32),
        clusters,
        200,
        Matching(),
    )
    assert found.churn == 0
    used = np.union1d(old, now)
    assert found.transitions.of("survival").sum() == len(used)
    assert found.born_K.sum() == clusters - len(used)  # those that no row is in


@pytest.mark.parametrize("seed", range(20))
def test_rows_whose_partition_stays_keep_their_id(seed: int) -> None:
    """The share of rows whose id changes although their cluster holds the same rows: 0."""
    random = np.random.default_rng(seed)
    old = random.integers(0, 30, 3000)
    # A refit with another seed that broke some clusters, joined others, and left the rest.
    new = old.copy()
    new[(old < 5) & (random.random(3000) < 0.5)] += 30
    new[(old >= 5) & (old < 10)] = 5
    shuffled = (old >= 10) & (old < 15)
    new[shuffled] = random.integers(10, 15, shuffled.sum())
    new = permuted(new, 40, seed)
    ids_J = random.permutation(30).astype(np.int32)
    found = match(Labels(old, new), Labels(old, new), ids_J, 40, 30, Matching())
    stays = old >= 15
    changed = ids_J[old] != found.ids_K[new]
    assert changed[stays].mean() == 0
    assert changed.mean() > 0.1  # the others did change
    assert found.churn == changed.mean()


def some_refit(seed: int) -> tuple[Labels, Labels, NDArray[np.int32], int, Matching]:
    """Partitions that share anything from nothing to nearly all."""
    random = np.random.default_rng(seed)
    olds, news = (int(n) for n in random.integers(1, 25, 2))
    like = random.random()
    samples = []
    for rows in (1500, 1000):
        old = random.choice(olds, rows, p=random.dirichlet(np.ones(olds)))
        same = random.random(rows) < like
        samples.append(Labels(old, np.where(same, old % news, random.integers(0, news, rows))))
    ids_J = random.permutation(1000)[:olds].astype(np.int32)
    survives, splits, dies = random.uniform(0.05, 1), random.uniform(0.05, 1), random.random()
    return *samples, ids_J, news, Matching(survives=survives, splits=splits, dies=dies)


@pytest.mark.parametrize("seed", range(60))
def test_what_any_refit_keeps_to(seed: int) -> None:
    reference, tonight, ids_J, news, thresholds = some_refit(seed)
    found = match(reference, tonight, ids_J, news, 1000, thresholds)
    t = found.transitions

    # No id twice, none again, and new ones without gaps.
    assert found.ids_K.dtype == np.int32
    assert len(set(ids(found))) == news
    assert set(found.ids_K[~found.born_K].tolist()) <= set(ids_J.tolist())
    assert sorted(found.ids_K[found.born_K]) == list(range(1000, 1000 + found.born_K.sum()))

    # Every cluster has one fate, and every one has one origin.
    ends = t.of("survival") | t.of("merge") | t.of("death")
    origins = t.of("survival") | t.of("split") | t.of("birth")
    assert sorted(t.from_id[ends]) == sorted(ids_J)
    assert sorted(t.to_id[origins]) == sorted(ids(found))
    np.testing.assert_array_equal(t.from_id[t.of("survival")], t.to_id[t.of("survival")])
    assert set(t.to_id[t.of("merge")]) <= set(t.to_id[t.of("survival")])
    assert set(t.from_id[t.of("split")]) <= set(t.from_id[t.of("survival")])

    # The counts are those of the rows.
    for kind, old, new, rows, *counts in records(found):
        old_N, new_N = (
            (
                ids_J[labels.old] == old if old is not None else np.zeros(len(labels.old), bool)
                for labels in (reference, tonight)
            ),
            (
                found.ids_K[labels.new] == new
                if new is not None
                else np.zeros(len(labels.new), bool)
                for labels in (reference, tonight)
            ),
        )
        (was, is_), (was_now, is_now) = zip(old_N, new_N, strict=True)
        assert rows == (was & is_).sum(), kind
        assert counts == [was.sum(), is_.sum(), was_now.sum(), is_now.sum()], kind
    assert t.from_rows[ends].sum() == t.to_rows[origins].sum() == len(reference.old)
    assert t.from_rows_now[ends].sum() == t.to_rows_now[origins].sum() == len(tonight.old)
    kept = t.rows[t.of("survival")].sum()
    assert found.churn == pytest.approx(1 - kept / len(reference.old))


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_a_models_clusters_changes_nothing(seed: int) -> None:
    reference, tonight, ids_J, news, thresholds = some_refit(seed)
    first = match(reference, tonight, ids_J, news, 1000, thresholds)
    olds, order = (np.random.default_rng(seed).permutation(n) for n in (len(ids_J), news))
    second = match(
        *(Labels(olds[labels.old], order[labels.new]) for labels in (reference, tonight)),
        ids_J[np.argsort(olds)],
        news,
        1000,
        thresholds,
    )
    seen = np.union1d(reference.new, tonight.new)  # what no row is in cannot be told apart
    np.testing.assert_array_equal(first.ids_K[seen], second.ids_K[order[seen]])
    assert records(first) == records(second)
    assert first.parents.tolist() == second.parents.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_the_sparse_solver_finds_what_the_dense_one_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(seed)
    cells = np.argwhere(random.random((12, 9)) < 0.3)
    weights = random.integers(1, 100, len(cells))
    dense = bipartite.heaviest_matching(cells[:, 0], cells[:, 1], weights)
    monkeypatch.setattr(bipartite, "_DENSE_CELLS", 0)
    sparse = bipartite.heaviest_matching(cells[:, 0], cells[:, 1], weights)
    assert weights[dense].sum() == weights[sparse].sum()
    for chosen in (dense, sparse):
        for side in cells[chosen].T:
            assert len(set(side.tolist())) == chosen.sum()


def test_as_many_clusters_as_there_may_be() -> None:
    clusters = 100_000
    random = np.random.default_rng(0)
    old = random.integers(0, clusters, 4_000_000)
    moved = random.random(len(old)) < 0.3
    new = np.where(moved, random.integers(0, clusters, len(old)), old)
    found = match(
        Labels(old, permuted(new, clusters, 1)),
        Labels(old, permuted(new, clusters, 1)),
        np.arange(clusters, dtype=np.int32),
        clusters,
        clusters,
        Matching(),
    )
    # Each keeps about 70 % of its 40 rows.
    assert found.transitions.of("survival").sum() > 0.95 * clusters
    assert 0.25 < found.churn < 0.35


# ------------------------------------------------------------------- nothing to match, or no need


def test_a_model_and_itself() -> None:
    labels = Labels(np.array([0, 0, 2]), np.array([0, 0, 2]))
    found = unchanged(labels, labels, np.array([7, 3, 5], np.int32))
    assert ids(found) == [7, 3, 5]
    assert found.churn == 0
    assert records(found) == [
        ("survival", 3, 3, 0, 0, 0, 0, 0),  # also where no row is
        ("survival", 5, 5, 1, 1, 1, 1, 1),
        ("survival", 7, 7, 2, 2, 2, 2, 2),
    ]


def test_the_first_night() -> None:
    nobody = np.zeros(0, np.int32)
    found = unmatched(nobody, nobody.astype(np.int64), np.array([4, 0, 6]), 0)
    assert ids(found) == [0, 1, 2]
    assert records(found) == [
        ("birth", None, 0, 0, 0, 0, 0, 4),
        ("birth", None, 1, 0, 0, 0, 0, 0),
        ("birth", None, 2, 0, 0, 0, 0, 6),
    ]


def test_other_features_all_die_and_ids_go_on() -> None:
    found = unmatched(np.array([3, 8], np.int32), np.array([50, 60]), np.array([4, 6]), 12)
    assert ids(found) == [12, 13]
    assert records(found)[2:] == [
        ("death", 3, None, 0, 50, 0, 0, 0),
        ("death", 8, None, 0, 60, 0, 0, 0),
    ]


def test_ids_end_somewhere() -> None:
    everything = rows_of([[25, 25], [25, 25]])
    ids_J = np.arange(2, dtype=np.int32)
    found = match(everything, everything, ids_J, 2, 2**31 - 2, Matching(survives=0.9))
    assert ids(found) == [2**31 - 2, 2**31 - 1]
    with pytest.raises(PipelineError, match="do not fit the int32"):
        match(everything, everything, ids_J, 2, 2**31 - 1, Matching(survives=0.9))
