"""What refinement measures, and what it reports at each update.

Shape letters: N rows of a worker, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# A cluster that ends with less than this share of rows / K is reported: it has all but died out.
# Sizes of natural groups are skewed, but by Zipf's law the smallest of K still has 1 / H_K of an
# even share: 34 % for K = 10, 13 % for 1,000, 8 % for 100,000.
_LEAST_EVEN_SHARE = 0.01


@dataclass(frozen=True)
class RefineUpdate:
    """The model as it stood at an update of the target distribution, or after a pass of teaching.

    Attributes:
        number: Updates before this one; 0 is the first partition, or the first pass of teaching.
        taught: Share of the rows, over a pass of teaching, that were nearest to the centroid of
            their group when they were learnt from; None in refinement.
        label_change: Share of rows whose cluster changed since the update before; None at 0.
        kl: Mean KL(P‖Q) per row, in nats, over the rows learnt from since then; None at 0.
        loss: Mean per row of what was minimised: KL, and the weighted error of the decoder.
        learning_rate: Learning rate at this update.
        cluster_rows: Rows of the training set in each cluster, shape (n_clusters,); in teaching,
            as they were when they were learnt from.
        event: Collapses since the update before and their repair, and in the last record clusters
            left with next to no rows, in words; None: nothing happened.
        finished: Reason for the end of refinement, "tol", "passes" or "collapse"; None: no end yet.
    """

    number: int
    taught: float | None
    label_change: float | None
    kl: float | None
    loss: float | None
    learning_rate: float
    cluster_rows: tuple[int, ...]
    event: str | None
    finished: str | None


@dataclass(frozen=True)
class Measured:
    """Result of one pass without learning, over all workers."""

    frequency_K: Tensor  # f_j = Σ_i q_ij, float64, in rows
    cluster_rows_K: Tensor  # rows whose nearest centroid is j, float64
    changed: int  # rows whose cluster differs from the frozen model's
    # Cluster of each of this worker's rows, in reading order; None where too many to keep.
    labels_N: Tensor | None

    @property
    def rows(self) -> int:
        """Rows of all workers."""
        return int(self.cluster_rows_K.sum())

    @property
    def dead(self) -> list[int]:
        """Clusters without a row, or without any weight in the target."""
        return ((self.cluster_rows_K < 1) | (self.frequency_K <= 0)).nonzero().flatten().tolist()

    @property
    def largest_share(self) -> float:
        """Share of the rows in the largest cluster."""
        return float(self.cluster_rows_K.max() / self.rows)


def tiny_clusters(cluster_rows_K: Tensor) -> str | None:
    """Clusters that are left with next to no rows, in words; None: there are none."""
    clusters, rows = len(cluster_rows_K), int(cluster_rows_K.sum())
    tiny = (cluster_rows_K < _LEAST_EVEN_SHARE * rows / clusters).nonzero().flatten().tolist()
    if not tiny:
        return None
    named = ", ".join(f"{j}: {int(cluster_rows_K[j]):,}" for j in tiny[:5])
    more = ", ..." if len(tiny) > 5 else ""
    return (
        f"{len(tiny)} of {clusters} clusters have less than {_LEAST_EVEN_SHARE:.0%} of an even "
        f"share of {rows:,} rows ({named}{more})"
    )
