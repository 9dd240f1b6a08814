"""The bins of a reference sample, as a file; see ``pipeline.clustering.drift``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.nights import Reference
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.drift import psi
from pipeline.registry.models import feature_names
from pipeline.schema import matrix_of, vectors
from pipeline.storage import Store, parquet_bytes


def bins_bytes(edges_FB: NDArray[np.float64], rows_FB: NDArray[np.int64]) -> bytes:
    """Bins as a Parquet file with one row per feature.

    ``edges_FB`` are inner edges, shape (features, bins - 1); ``rows_FB``, rows in each bin.
    """
    return parquet_bytes(pa.table({"edges": vectors(edges_FB), "rows": vectors(rows_FB)}))


def most_drifted(
    lake: Store, reference: Reference, actual_FB: NDArray[np.int64]
) -> tuple[float, str]:
    """PSI and name of the feature that drifted most; ``actual_FB``: rows in each bin."""
    _, expected_FB = load_bins(lake, reference.bins)
    psi_F = psi(expected_FB, actual_FB)
    most = int(psi_F.argmax())
    return float(psi_F[most]), feature_names(reference.features)[most]


def load_bins(lake: Store, file: StoredFile) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Edges and rows, as given to ``bins_bytes``."""
    table = lake.read_table(file.path)
    return matrix_of(table["edges"]), matrix_of(table["rows"])
