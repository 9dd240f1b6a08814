"""A map of embeddings: their projection onto the plane, and its fidelity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# t-SNE's usual perplexity, lower for samples of few rows.
_PERPLEXITY = 30.0
# Half of scikit-learn's default, enough for 2,000 rows.
_ITERATIONS = 500
# Wider rows are reduced by PCA first, as van der Maaten & Hinton (2008) do.
_WIDTH = 50
# Neighbours of a row that fidelity is measured on.
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Projection:
    """Embeddings in the plane."""

    xy_N2: NDArray[np.float32]  # coordinates, float32, shape (rows, 2), in [-1, 1]
    # Share of each row's ten nearest rows in the embedding that are among its ten nearest on the
    # map, mean over all rows.
    kept_neighbours: float
    # Spearman's rank correlation of the distances between pairs of rows in the embedding and on the
    # map.
    distance_correlation: float


def project(z_ND: NDArray[np.floating], seed: int) -> Projection:
    """t-SNE (van der Maaten & Hinton 2008), initialized with the two principal components.

    Needs at least five rows; the same rows and seed give the same map.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    z_ND = np.asarray(z_ND, np.float32)
    if len(z_ND) < 5:
        raise ValueError(f"z_ND has {len(z_ND)} rows; a map needs at least 5")
    if not np.ptp(z_ND, axis=0).any():  # all rows are the same: one place
        return Projection(np.zeros((len(z_ND), 2), np.float32), 1.0, 0.0)
    start = z_ND
    if z_ND.shape[1] > _WIDTH:
        width = min(_WIDTH, len(z_ND) - 1)
        start = PCA(width, svd_solver="randomized", random_state=seed).fit_transform(z_ND)
    tsne = TSNE(
        init="pca" if start.shape[1] > 1 else "random",
        perplexity=min(_PERPLEXITY, (len(z_ND) - 1) / 3),
        max_iter=_ITERATIONS,
        random_state=seed,
        n_jobs=1,
    )
    # One thread gives the same result on every machine; on busy CPUs, threads that wait for one
    # another in each of 500 iterations take several times as long.
    with threadpool_limits(1):
        xy_N2 = tsne.fit_transform(start)
    center_2 = (xy_N2.max(0) + xy_N2.min(0)) / 2
    span = float(np.abs(xy_N2 - center_2).max()) or 1.0
    xy_N2 = ((xy_N2 - center_2) / span).astype(np.float32)
    return Projection(xy_N2, *_fidelity(z_ND, xy_N2, seed))


def _fidelity(
    z_ND: NDArray[np.float32], xy_N2: NDArray[np.float32], seed: int
) -> tuple[float, float]:
    from scipy.stats import spearmanr
    from sklearn.neighbors import NearestNeighbors

    count = min(_NEIGHBOURS, len(z_ND) - 1)
    near, found = (
        NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)
        for points in (z_ND, xy_N2)
    )
    kept = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(near, found, strict=True)]))
    pairs_P2 = np.random.default_rng(seed).integers(0, len(z_ND), (20_000, 2))
    pairs_P2 = pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]]
    distances = [
        np.linalg.norm(p[pairs_P2[:, 0]] - p[pairs_P2[:, 1]], axis=1) for p in (z_ND, xy_N2)
    ]
    if any(np.ptp(d) == 0 for d in distances):  # all rows are the same: no order to keep
        return kept / count, 0.0
    return kept / count, float(spearmanr(*distances).statistic)
