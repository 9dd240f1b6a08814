"""The end of a run: everything that the closing tables show."""

from __future__ import annotations

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.models import ClusterChoice, Comparison, ModelKind, Scores
from pipeline.artifacts.nights import Action, Verdict
from pipeline.artifacts.records import Artifact, Record
from pipeline.bill.records import Estimate


class StageTime(Record):
    """Duration of a stage when it ran."""

    stage: str
    seconds: float


class Summary(Artifact):
    """The end of a run, also ``metrics.json``.

    Attributes:
        action: What the run did; see ``NightDecision``.
        champion: Model that labelled the rows.
        challenger: Model that was fitted; None where none was.
        entry: Number of the registry's entry that the champion has.
        model_id: The champion again, as in the column of the assignments.
        shipped: Kind of that model.
        table: Iceberg or Delta table that has the rows too.
        rows_dropped: Rows left out because of missing values.
        rows_quarantined: Rows in bad shards.
        rows_labelled: Rows that were read and labelled.
        rows_carried: Rows whose labels of an earlier run were published again.
        outliers: Rows in no cluster.
        features: Values in a row.
        cluster_rows: Rows of each, in that order.
        survived: See ``Identity``, like the next four; 0 where nothing was fitted.
        churn: Share of the previous champion's reference sample whose id changes.
        max_psi: PSI of the feature that drifted most from the champion's reference sample.
        products: Precision of matrix products in pretraining; None without it, like the next.
        pretrain_passes: Passes of pretraining.
        pretrain_loss: Mean squared error of the last of them.
        kmeans_objective: Objective of the initial centroids; None where they are the champion's.
        refine_updates: Updates of the target; None where nothing was refined, like the next three.
        refine_stopped_by: See ``RefinedModel``.
        refine_events: Collapses, and what was done about each.
        kl: KL divergence at the last update.
        label_change: Share of rows that changed cluster at the last update.
        choice: How ``clusters: auto`` came to its number.
        stages: Seconds of each stage.
        estimate: The estimate made for the run; None where that was impossible.
        assignments: Folder of the part files, below it.
        model: Folder of the champion's model, below it.
    """

    run_id: str
    ds: str
    action: Action
    why: str
    refused: bool
    champion: str
    challenger: str | None
    entry: int
    model_id: str
    shipped: ModelKind
    snapshot: int
    table: str | None
    rows_in: int
    rows_out: int
    rows_dropped: int
    rows_quarantined: int
    rows_labelled: int
    rows_carried: int
    outliers: int
    shards: int
    features: int
    clusters: int
    cluster_ids: tuple[int, ...]
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    survived: int
    split: int
    merged: int
    born: int
    died: int
    churn: float | None
    max_psi: float | None
    max_psi_feature: str
    scores: Scores | None
    verdict: Verdict | None
    comparison: Comparison | None
    products: str | None
    pretrain_passes: int | None
    pretrain_loss: float | None
    kmeans_objective: float | None
    refine_updates: int | None
    refine_stopped_by: str | None
    refine_events: tuple[str, ...]
    kl: float | None
    label_change: float | None
    choice: ClusterChoice | None
    quarantined: tuple[QuarantinedShard, ...]
    stages: tuple[StageTime, ...]
    estimate: Estimate | None
    output: str
    assignments: str
    model: str
