"""The table's metric for an embedding."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from pipeline.clustering.metric import table_metric


@pytest.mark.parametrize("rows", [200, 9000])
def test_distances_are_those_of_the_rows_where_the_decoder_is_linear(rows: int) -> None:
    random = np.random.default_rng(0)
    # Axes are stretched by factors up to 60, as an autoencoder may.
    z = (random.normal(size=(rows, 4)) * [60, 10, 3, 1]).astype(np.float32)
    x = (z @ random.normal(size=(4, 12)) + 5).astype(np.float32)
    metric = table_metric(z, x)
    np.testing.assert_allclose(metric, metric.T, atol=1e-9)
    np.testing.assert_allclose(pdist(z[:50] @ metric), pdist(x[:50]), rtol=1e-4)


def test_axes_that_say_nothing_about_the_rows_stay_invertible() -> None:
    random = np.random.default_rng(1)
    z = random.normal(size=(500, 3)).astype(np.float32)
    metric = table_metric(z, np.repeat(z[:, :1], 5, axis=1))
    stretch = np.linalg.eigvalsh(metric)
    assert stretch.min() == pytest.approx(1e-3 * stretch.max(), rel=1e-3)


def test_an_embedding_of_one_point_is_left_alone() -> None:
    x = np.random.default_rng(2).normal(size=(100, 6)).astype(np.float32)
    np.testing.assert_array_equal(table_metric(np.ones((100, 2), np.float32), x), np.eye(2))
