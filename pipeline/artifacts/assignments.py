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
    """The written, not yet published, assignments of every row."""

    files: StoredFile  # JSON file that lists the part files
    file_count: int
    rows_in: int  # rows of the input, as far as footers could be read
    rows_dropped: int  # rows left out by ``source.nulls: drop``
    rows: int  # rows written; rows_in = rows + rows_dropped + rows_quarantined
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    scores: Scores | None  # agreement with the label column, where there is one
    # Rows of shards that were found bad after their footers had been read.
    rows_quarantined: int = 0
    quarantined: tuple[QuarantinedShard, ...] = ()
    cluster_ids: tuple[int, ...] = ()  # permanent ids, parallel to ``cluster_rows``
    outliers: int = 0  # rows of cluster id -1, which are in none of ``cluster_rows``
    carried_files: int = 0  # part files of earlier nights that are published again as they are
    carried_rows: int = 0  # rows in them, which nothing was read for
    labelled_rows: int = 0  # rows that this run labelled; rows = carried_rows + labelled_rows
    # Drift of the feature that drifts most from the champion's reference sample, see
    # ``pipeline.clustering.drift.psi``; None where no row is.
    max_psi: float | None = None
    max_psi_feature: str = ""  # which feature that is


class Snapshot(Artifact):
    """A publish: ``snapshots/<number>.json`` now names this run's files for its ds."""

    number: int
    path: str
    table: str | None = None  # Iceberg or Delta table that has the files too
