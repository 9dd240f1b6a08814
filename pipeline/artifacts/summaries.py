"""The end of a run: everything that the closing tables show."""

from __future__ import annotations

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.models import ClusterChoice, Comparison, MergedCells, ModelKind, Scores
from pipeline.artifacts.nights import Action, Verdict
from pipeline.artifacts.records import Artifact, Record
from pipeline.bill.records import Estimate


class StageTime(Record):
    """Duration of a stage when it ran."""

    stage: str
    seconds: float


class Summary(Artifact):
    """The end of a run, also ``metrics.json``."""

    run_id: str
    ds: str
    action: Action  # what the run did; see ``NightDecision``
    why: str
    refused: bool
    champion: str  # model that labelled the rows
    challenger: str | None  # model that was fitted; None where none was
    entry: int  # number of the registry's entry that the champion has
    model_id: str  # the champion again, as in the column of the assignments
    shipped: ModelKind  # kind of that model
    snapshot: int
    table: str | None  # Iceberg or Delta table that has the rows too
    rows_in: int
    rows_out: int
    rows_dropped: int  # rows left out because of missing values
    rows_quarantined: int  # rows in bad shards
    rows_labelled: int  # rows that were read and labelled
    rows_carried: int  # rows whose labels of an earlier run were published again
    outliers: int  # rows in no cluster
    shards: int
    features: int  # values in a row
    clusters: int
    cluster_ids: tuple[int, ...]
    cluster_rows: tuple[int, ...]  # rows of each, in that order
    mean_confidence: float
    survived: int  # see ``Identity``, like the next four; 0 where nothing was fitted
    split: int
    merged: int
    born: int
    died: int
    churn: float | None  # share of the previous champion's reference sample whose id changes
    # PSI of the feature that drifted most from the champion's reference sample.
    max_psi: float | None
    max_psi_feature: str
    scores: Scores | None
    verdict: Verdict | None
    comparison: Comparison | None
    # Precision of matrix products in pretraining; None without it, like the next.
    products: str | None
    pretrain_passes: int | None  # passes of pretraining
    pretrain_loss: float | None  # mean squared error of the last of them
    # Objective of the initial centroids; None where they are the champion's.
    kmeans_objective: float | None
    # Updates of the target; None where nothing was refined, like the next three.
    refine_updates: int | None
    refine_stopped_by: str | None  # see ``RefinedModel``
    refine_events: tuple[str, ...]  # collapses, and what was done about each
    kl: float | None  # KL divergence at the last update
    label_change: float | None  # share of rows that changed cluster at the last update
    choice: ClusterChoice | None  # how ``clusters: auto`` came to its number
    start: MergedCells | None  # merged cells that refinement started from, where it did
    # How far the starts agreed on each cluster, in the order of cluster_ids; empty: they came
    # otherwise.
    firmness: tuple[float, ...]
    quarantined: tuple[QuarantinedShard, ...]
    stages: tuple[StageTime, ...]  # seconds of each stage
    estimate: Estimate | None  # the estimate made for the run; None where that was impossible
    output: str
    assignments: str  # folder of the part files, below it
    model: str  # folder of the champion's model, below it
