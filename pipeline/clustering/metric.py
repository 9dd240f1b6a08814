"""The table's metric for an embedding: distances between embeddings as between the rows themselves.

An autoencoder may stretch the axes of its embedding at will, and its loss does not notice. k-means,
Student's t and neighbours do. The pullback of the decoder's metric (Arvanitidis, Hansen & Hauberg
2018, "Latent space oddity") has distances as the table has them; here with one linear map for the
whole embedding, so that it can be folded into the network and costs nothing afterwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK_ROWS = 4096
# Least stretch of an axis, as a share of the greatest: what the table hardly depends on would
# otherwise be flattened until its inverse overflows.
_LEAST_STRETCH = 1e-3


def table_metric(z_ND: NDArray[np.float32], x_NF: NDArray[np.float32]) -> NDArray[np.float64]:
    """The symmetric matrix M = (B Bᵀ)^½, shape (D, D): ‖z M − z' M‖ is the distance in the table.

    B, of shape (D, F), is the least-squares map from centred embeddings to centred rows, x ≈ z B.

    Args:
        z_ND: Embeddings of some rows, shape (rows, embedding).
        x_NF: The same rows, scaled, shape (rows, features).
    """
    z_mean_D, x_mean_F = z_ND.mean(axis=0, dtype=np.float64), x_NF.mean(axis=0, dtype=np.float64)
    within_DD = np.zeros((z_ND.shape[1],) * 2)
    across_DF = np.zeros((z_ND.shape[1], x_NF.shape[1]))
    for start in range(0, len(z_ND), _CHUNK_ROWS):
        some = slice(start, start + _CHUNK_ROWS)
        z_BD, x_BF = z_ND[some] - z_mean_D, x_NF[some] - x_mean_F
        within_DD += z_BD.T @ z_BD
        across_DF += z_BD.T @ x_BF
    b_DF = np.linalg.lstsq(within_DD, across_DF, rcond=None)[0]
    squared_D, axes_DD = np.linalg.eigh(b_DF @ b_DF.T)
    stretch_D = np.sqrt(np.maximum(squared_D, 0))
    if not stretch_D.max(initial=0) > 0:  # embeddings say nothing about rows
        return np.eye(len(stretch_D))
    stretch_D = np.maximum(stretch_D, _LEAST_STRETCH * stretch_D.max())
    metric_DD: NDArray[np.float64] = (axes_DD * stretch_D) @ axes_DD.T
    return metric_DD
