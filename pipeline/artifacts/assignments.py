"""Artifacts of labelling and publishing."""

from __future__ import annotations

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.models import Scores
from pipeline.artifacts.records import Artifact, LakePath, Record, StoredFile


class PartFile(Record):
    """One file of the assignments table."""

    path: LakePath
    rows: int
    bytes: int


class Assignments(Artifact):
    """The written, not yet published, assignments of every row.

    Attributes:
        files: JSON file that lists the part files.
        rows_in: Rows of the input, as far as footers could be read.
        rows_dropped: Rows left out by ``source.nulls: drop``.
        rows: Rows written; rows_in = rows + rows_dropped + rows_quarantined.
        scores: Agreement with the label column, where there is one.
        rows_quarantined: Rows of shards that were found bad after their footers had been read.
        cluster_ids: Permanent ids, parallel to ``cluster_rows``.
        outliers: Rows of cluster id -1, which are in none of ``cluster_rows``.
        carried_files: Part files of earlier nights that are published again as they are.
        carried_rows: Rows in them, which nothing was read for.
        labelled_rows: Rows that this run labelled; rows = carried_rows + labelled_rows.
        max_psi: Drift of the feature that drifts most from the champion's reference sample, see
            ``pipeline.clustering.drift.psi``; None where no row is.
        max_psi_feature: Which feature that is.
    """

    files: StoredFile
    file_count: int
    rows_in: int
    rows_dropped: int
    rows: int
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    scores: Scores | None
    rows_quarantined: int = 0
    quarantined: tuple[QuarantinedShard, ...] = ()
    cluster_ids: tuple[int, ...] = ()
    outliers: int = 0
    carried_files: int = 0
    carried_rows: int = 0
    labelled_rows: int = 0
    max_psi: float | None = None
    max_psi_feature: str = ""


class Snapshot(Artifact):
    """A publish: ``snapshots/<number>.json`` now names this run's files for its ds.

    Attributes:
        table: Iceberg or Delta table that has the files too.
    """

    number: int
    path: str
    table: str | None = None
