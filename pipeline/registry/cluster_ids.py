"""Permanent ids of a champion's clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.records import StoredFile
from pipeline.storage import Store

OUTLIER = -1  # the cluster_id of rows in no cluster


@dataclass(frozen=True)
class ClusterIds:
    """See ``pipeline.artifacts.nights.Champion.ids``."""

    # int32, by position in the model's file of centroids, shape (n_clusters,).
    cluster_id_K: NDArray[np.int32]
    # float32, in the embedding, the same shape; rows that are farther from their centroid are
    # outliers (rule "distance"); infinite: there are none.
    most_distance_K: NDArray[np.float32]
    # float32, the same shape, see ``MergedCells``; None: not known.
    firmness_K: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, lake: Store, file: StoredFile) -> ClusterIds:
        """The ids in a file."""
        table = lake.read_table(file.path).sort_by("position")
        return cls(
            table["cluster_id"].to_numpy().astype(np.int32),
            table["most_distance"].to_numpy().astype(np.float32),
            table["firmness"].to_numpy() if "firmness" in table.column_names else None,
        )

    @classmethod
    def positions(cls, clusters: int) -> ClusterIds:
        """Ids that equal the positions, without outliers."""
        return cls(np.arange(clusters, dtype=np.int32), np.full(clusters, np.inf, np.float32))

    def table(self) -> pa.Table:
        """The ids as they are stored."""
        position = np.arange(len(self.cluster_id_K), dtype=np.int32)
        ids = {"cluster_id": self.cluster_id_K, "most_distance": self.most_distance_K}
        firmness = {} if self.firmness_K is None else {"firmness": self.firmness_K}
        return pa.table({"position": position} | ids | firmness)

    def rename(self, found: dict[str, Any]) -> dict[str, Any]:
        """Assignments by position (see ``assignments_of``) as assignments by permanent id.

        For outliers, cluster_id is -1 and is_outlier, bool, is true; their other values stay those
        of the nearest clusters.
        """
        far_B = found["distance"] > self.most_distance_K[found["cluster_id"]]
        id_B = self.cluster_id_K[found["cluster_id"]]
        return found | {
            "cluster_id": np.where(far_B, np.int32(OUTLIER), id_B),
            "cluster_id_2": self.cluster_id_K[found["cluster_id_2"]],
            "is_outlier": far_B,
        }
