"""The end of a run: everything that the closing table shows."""

from __future__ import annotations

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.models import ClusterChoice, Comparison, ModelKind, Scores
from pipeline.artifacts.nights import Action, Verdict
from pipeline.artifacts.records import Artifact, Record
from pipeline.bill.records import Estimate


class StageTime(Record):
    """What a stage took when it ran."""

    stage: str
    seconds: float


class Summary(Artifact):
    """The end of a run, also ``metrics.json``: everything the closing table shows.

    ``estimate`` is what it was thought to take, before the work; None in runs of older versions.
    ``choice`` is how ``clusters: auto`` came to its number.
    """

    run_id: str
    ds: str
    model_id: str
    snapshot: int
    table: str | None = None
    rows_in: int
    rows_out: int
    rows_dropped: int
    shards: int
    features: int
    clusters: int
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    products: str
    pretrain_passes: int
    pretrain_loss: float
    kmeans_objective: float
    refine_updates: int
    refine_stopped_by: str
    refine_events: tuple[str, ...]
    kl: float | None
    label_change: float | None
    scores: Scores | None
    comparison: Comparison
    shipped: ModelKind
    stages: tuple[StageTime, ...]
    output: str
    assignments: str
    model: str
    rows_quarantined: int = 0
    quarantined: tuple[QuarantinedShard, ...] = ()
    estimate: Estimate | None = None
    choice: ClusterChoice | None = None


class NightSummary(Artifact):
    """The end of a night, also ``metrics.json``.

    Attributes:
        action: What the night did; see ``NightDecision``.
        why: The reason.
        refused: The gate refused the challenger.
        champion: Model that labelled the rows.
        challenger: Model that was fitted; None on a night that fitted none.
        entry: The registry's entry that serves.
        rows_labelled: Rows that were read and labelled.
        rows_carried: Rows whose results of an earlier night were carried over.
        cluster_ids: Permanent ids.
        cluster_rows: Rows of each, in that order.
        survived: See ``Identity``, like the four below; 0 on a night that fitted nothing.
        churn: Share of the reference sample whose id changes by the challenger.
        max_psi: Of the feature that moved most against the reference sample, from tonight's rows.
        max_psi_feature: Its name.
        verdict: The gate's.
        comparison: With plain k-means, where a model was fitted.
        refine_updates: Of the challenger's target; None where nothing was refined.
        estimate: See ``Summary``, like the next.
        choice: Of the challenger.
    """

    run_id: str
    ds: str
    action: Action
    why: str
    refused: bool
    champion: str
    challenger: str | None
    entry: int
    snapshot: int
    table: str | None
    rows_in: int
    rows_out: int
    rows_dropped: int
    rows_labelled: int
    rows_carried: int
    rows_quarantined: int
    outliers: int
    shards: int
    features: int
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
    quarantined: tuple[QuarantinedShard, ...]
    stages: tuple[StageTime, ...]
    output: str
    refine_updates: int | None = None
    estimate: Estimate | None = None
    choice: ClusterChoice | None = None
