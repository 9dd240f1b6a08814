"""Scores from a contingency table against scikit-learn's on the rows themselves."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pipeline.clustering.agreement import adjusted_rand, agreement


def expand(contingency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One label a row, cluster and class, as the table counts them."""
    cluster, known = np.indices(contingency.shape).reshape(2, -1)
    counts = contingency.ravel()
    return np.repeat(cluster, counts), np.repeat(known, counts)


def test_by_hand() -> None:
    # Best one-to-one matching: cluster 0 ↔ class 1 and cluster 1 ↔ class 0, so (4 + 3) of 10.
    found = agreement(np.array([[2, 4], [3, 1]]))
    assert found.rows == 10
    assert found.acc == pytest.approx(0.7)
    # Pairs together in both: 1 + 6 + 3 + 0 = 10; in clusters: 15 + 6 = 21; in classes 10 + 10 = 20;
    # of 45. Expected 21·20/45 = 28/3, at most 20.5: ARI = (10 − 28/3)/(20.5 − 28/3) = 4/67.
    assert found.ari == pytest.approx(4 / 67)


def test_matching_is_one_to_one() -> None:
    # Both clusters are mostly class 0; only one of them may have it: 5 + 1, not 5 + 4.
    assert agreement(np.array([[5, 0], [4, 1]])).acc == pytest.approx(0.6)


@pytest.mark.parametrize("shape", [(2, 2), (5, 3), (3, 5), (1, 4), (4, 1), (10, 10)])
@pytest.mark.parametrize("most", [2, 40])
def test_equals_sklearn_on_expanded_labels(shape: tuple[int, int], most: int) -> None:
    contingency = np.random.default_rng(most).integers(0, most, size=shape)
    contingency[0, 0] += 1  # never without rows
    clusters, classes = expand(contingency)
    found = agreement(contingency)
    assert found.ari == pytest.approx(adjusted_rand_score(classes, clusters), abs=1e-9)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(classes, clusters), abs=1e-9)


@pytest.mark.parametrize(
    "contingency",
    [
        [[0, 7], [3, 0]],  # the names of the clusters do not matter
        [[5]],
        [[1]],
        [[0, 0, 0], [0, 4, 0], [2, 0, 0]],  # nor do empty clusters and classes
    ],
)
def test_perfect_agreement(contingency: list[list[int]]) -> None:
    found = agreement(np.array(contingency))
    assert (found.acc, found.ari) == (1, 1)
    assert found.nmi == pytest.approx(1)


def test_no_labelled_rows() -> None:
    found = agreement(np.zeros((3, 3), dtype=np.int64))
    assert (found.acc, found.nmi, found.ari, found.rows) == (0, 0, 0, 0)


def test_billions_of_rows_do_not_overflow() -> None:
    # Scores depend on shares almost alone; pairs of 4e9 rows are 8e18, near int64's end.
    small = np.array([[20, 3], [1, 16]]) * 1_000_000
    big = agreement(small * 1_000)
    assert big.rows == 40_000_000_000
    assert big.ari == pytest.approx(agreement(small).ari, abs=1e-6)
    assert big.nmi == pytest.approx(agreement(small).nmi, abs=1e-9)


def test_the_index_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 4, 200), random.integers(0, 3, 200)
    second[:100] = first[:100] % 3
    counts = np.zeros((4, 3))
    np.add.at(counts, (first, second), 1)
    assert adjusted_rand(counts) == pytest.approx(adjusted_rand_score(first, second))
    assert adjusted_rand(np.diag([3.0, 2.0])) == 1
    assert adjusted_rand(np.array([[5.0]])) == 1
