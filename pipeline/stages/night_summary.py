"""night_summary: what the night did, as metrics.json and for the closing table."""

from __future__ import annotations

from pipeline.artifacts.assignments import Assignments, Snapshot
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import (
    Comparison,
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.nights import Identity, NightDecision, Serving, Verdict
from pipeline.artifacts.summaries import NightSummary
from pipeline.bill.comparison import planned_before
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.model.autoencoder import products_here


@stage("night_summary", version=2, distributed=False)
def night_summary(
    config: Config,
    context: Context,
    manifest: Manifest,
    decision: NightDecision,
    serving: Serving,
    assignments: Assignments,
    snapshot: Snapshot,
    comparison: Comparison | None = None,
    identity: Identity | None = None,
    verdict: Verdict | None = None,
    autoencoder: PretrainedAutoencoder | None = None,
    centroids: InitialCentroids | None = None,
    dec: RefinedModel | None = None,
) -> NightSummary:
    """Collect the figures of all stages, beside what such a night was thought to take."""
    rows = assignments.labelled_rows + assignments.carried_rows
    labelled = assignments.labelled_rows / rows if rows else 1.0
    # What only was taken over from the champion says nothing of this machine.
    products: str = products_here(config.model.precision)
    if autoencoder is not None and autoencoder.losses:
        products = autoencoder.products
    clusters = {
        name: getattr(identity, name) if identity else 0
        for name in ("survived", "split", "merged", "born", "died")
    }
    result = NightSummary(
        run_id=context.run_id,
        ds=context.ds,
        action=decision.action,
        why=decision.why,
        refused=serving.refused,
        champion=serving.champion.model.model_id,
        challenger=identity.challenger.model.model_id if identity else None,
        entry=serving.entry,
        snapshot=snapshot.number,
        table=snapshot.table,
        rows_in=assignments.rows_in,
        rows_out=assignments.rows,
        rows_dropped=assignments.rows_dropped,
        rows_labelled=assignments.labelled_rows,
        rows_carried=assignments.carried_rows,
        rows_quarantined=assignments.rows_quarantined,
        outliers=assignments.outliers,
        shards=manifest.shard_count,
        features=manifest.width,
        cluster_ids=assignments.cluster_ids,
        cluster_rows=assignments.cluster_rows,
        mean_confidence=assignments.mean_confidence,
        **clusters,
        churn=identity.churn if identity else None,
        max_psi=assignments.max_psi,
        max_psi_feature=assignments.max_psi_feature,
        scores=assignments.scores,
        verdict=verdict,
        comparison=comparison,
        quarantined=assignments.quarantined,
        stages=tuple(context.times),
        output=context.lake.url,
        refine_updates=dec.updates[-1].number if dec else None,
        estimate=planned_before(config, context, manifest, products, decision.action, labelled),
        choice=centroids.choice if centroids else None,
    )
    context.lake.write_json(f"{context.run_path}/metrics.json", result.model_dump(mode="json"))
    return result
