"""What trials are judged by, worked out by hand on four points; and a fit in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL, blobs
from numpy.typing import NDArray

from pipeline.clustering.agreement import agreement
from pipeline.clustering.kmeans import nearest_centroid
from pipeline.clustering.quality import contingency_of
from pipeline.config import Config
from pipeline.model.generalisation import generalisation
from pipeline.model.scaling import Moments, Scaler
from pipeline.tuning.fitting import RowsInMemory, fit
from pipeline.tuning.measures import TuningRows, judge_partitions, measure

# Two pairs of neighbours on a line.
POINTS = np.array([[0.0], [1.0], [9.0], [10.0]], np.float32)
PAIRS = np.array([0, 0, 1, 1])
ACROSS = np.array([0, 1, 0, 1])


def four(classes: NDArray[np.int64] | None = None) -> TuningRows:
    """The points with the nearest neighbour of each."""
    near = np.array([[1], [0], [3], [2]])
    return TuningRows(POINTS, (1,), POINTS, near, np.arange(4), classes)


def small() -> Config:
    source = {"path": "in", "features": ["x"]}
    pretrain = {"passes": 20, "min_updates": 0}  # of 150 rows, five updates each
    places = {"source": source, "output": "out", "clusters": 3}
    return Config.model_validate({**SMALL, **places, "pretrain": pretrain})


def table(rows: int = 300) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    found = blobs(rows)
    x = found["x"].combine_chunks().flatten().to_numpy().reshape(rows, -1)
    return x.copy(), found["label"].to_numpy().astype(np.int64)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_two_fits_that_agree() -> None:
    found = judge_partitions(four(PAIRS), [PAIRS, 1 - PAIRS], 2, seed=0)
    assert found.stability == 1  # names do not matter
    # Every edge stays within its cluster, of which half of the ends would by chance.
    assert found.modularity == pytest.approx(1 - 2 * 0.5 * 0.5)
    # The outer points: a = 1, b = (9 + 10) / 2; the inner ones: a = 1, b = (8 + 9) / 2.
    assert found.silhouette == pytest.approx((1 - 1 / 9.5 + 1 - 1 / 8.5) / 2)
    assert found.modularity_error == found.silhouette_error == 0
    assert (found.smallest_share, found.largest_share, found.empty_clusters) == (0.5, 0.5, 0)
    assert found.nmi == pytest.approx(1)


def test_two_fits_that_disagree() -> None:
    found = judge_partitions(four(), [PAIRS, ACROSS], 2, seed=0)
    # No pair is together in both; by chance 2 · 2 / 6 would be, and 2 could.
    assert found.stability == pytest.approx((0 - 4 / 6) / (2 - 4 / 6))
    # No edge within, half of them by chance: −0.5. The mean of it and 0.5, and their difference.
    assert found.modularity == pytest.approx(0)
    assert found.modularity_error == pytest.approx(0.5)
    assert found.nmi is None


def test_sizes_are_those_of_the_worse_fit() -> None:
    found = judge_partitions(four(), [PAIRS, np.array([0, 0, 0, 1])], 3, seed=0)
    assert found.empty_clusters == 1
    assert (found.smallest_share, found.largest_share) == (0, 0.75)


def test_generalisation_by_hand() -> None:
    z = torch.tensor([[0.0], [4.0], [1.0], [3.0]])
    centroids, unseen = torch.tensor([[0.0], [4.0]]), torch.tensor([False, False, True, True])

    def kl(own: float, other: float) -> float:
        q = np.array([1 / (1 + own**2), 1 / (1 + other**2)])
        q /= q.sum()
        p = q**2  # the clusters are of the same frequency: it cancels
        p /= p.sum()
        return float((p * np.log(p / q)).sum())

    expected = kl(0, 4) / kl(1, 3)
    assert generalisation(z, centroids, unseen, 1.0, 1.0) == pytest.approx(expected, rel=1e-5)
    assert generalisation(z, centroids, ~unseen, 1.0, 1.0) == pytest.approx(1 / expected, rel=1e-5)
    assert generalisation(z, centroids, torch.zeros(4, dtype=torch.bool), 1.0, 1.0) is None


def test_every_row_is_learnt_from_once_a_pass_in_another_order() -> None:
    x = torch.arange(10.0).view(10, 1)
    rows = RowsInMemory(x, seed=3)
    passes = [torch.cat(list(rows.batches(n, 4, shuffled=True))) for n in (0, 1)]
    assert all(torch.equal(found.sort(dim=0).values, x) for found in passes)
    assert not torch.equal(*passes)
    again = torch.cat(list(RowsInMemory(x, seed=3).batches(0, 4, shuffled=True)))
    assert torch.equal(passes[0], again)
    assert torch.equal(torch.cat(list(rows.batches(0, 4, shuffled=False))), x)


def test_a_fit_finds_what_is_plain_and_repeats_itself() -> None:
    x, classes = table()
    found, again = (fit(small(), x, [x.shape[1]]) for _ in range(2))
    z = found.embedded(torch.from_numpy(x)).numpy()
    labels = nearest_centroid(z, found.centroids_KD.numpy())
    assert agreement(contingency_of(labels, classes)).acc > 0.95
    assert torch.equal(found.centroids_KD, again.centroids_KD)


def test_a_trial_learns_on_halves_and_is_judged_on_all() -> None:
    x, classes = table()
    rows = TuningRows.of(x, [x.shape[1]], seed=0, classes_N=classes)
    first, second = (rows.order_N[half] for half in rows.halves)
    assert len(first) == len(second) == 150
    assert not set(first) & set(second)
    found = measure(small(), rows)
    assert found.stability > 0.9
    assert found.modularity > 0.6  # of 2/3 for three clusters of one size
    assert found.nmi is not None
    assert found.nmi > 0.9
    assert found.generalisation == pytest.approx(1, abs=0.2)


def test_the_judge_does_not_depend_on_what_a_trial_scales_with() -> None:
    x, _ = table()
    x[:, 0] *= 1000  # as a vector, this component is all that counts; as unit_norm even more so
    scaler = Scaler.fit("standard", Moments.of(x), [1] * x.shape[1])
    rows = TuningRows.of(x, [1] * x.shape[1], scaler, seed=0)
    assert np.allclose(rows.space_NF.std(axis=0), 1, atol=1e-3)
    unit_norm = small().source.model_copy(update={"scaling": "unit_norm"})
    other = replace(rows, near_QM=rows.near_QM.copy())
    measure(small().model_copy(update={"source": unit_norm}), other)
    assert np.array_equal(other.space_NF, rows.space_NF)
    assert np.array_equal(other.near_QM, rows.near_QM)
