"""The whole fit, in memory."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.config import Config
from pipeline.tuning.fitting import fit


def test_fifty_points_of_bytes_are_fifty_clusters() -> None:
    # From k-means, DEC ended with pairs of these points in one cluster, and others cut in two.
    random = np.random.default_rng(3)
    centers, truth = random.integers(0, 256, (50, 16)), np.arange(5000) % 50
    x = np.clip(centers[truth] + random.normal(0, 12, (5000, 16)), 0, 255).astype(np.uint8)
    config = Config.model_validate(
        {
            "source": {"path": "in", "features": ["x"]},
            "output": "out",
            "clusters": 50,
            "pretrain": {"passes": 10},
            "centroids": {"restarts": 3},
            "refine": {"passes": 3},
        }
    )
    found = fit(config, x, [16])
    z = found.embedded(torch.from_numpy(x)).numpy()
    labels = nearest_centroid(z, found.centroids_KD.numpy())
    assert adjusted_rand_score(truth, labels) > 0.99
    plain = kmeans(x.astype(np.float32), 50, restarts=20, iterations=50, seed=0)
    rows = nearest_centroid(x.astype(np.float32), plain.centroids_KD)
    assert adjusted_rand_score(truth, rows) < 0.95
