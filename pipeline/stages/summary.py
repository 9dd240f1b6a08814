"""summary: figures of the run, as metrics.json and for the closing tables."""

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
from pipeline.artifacts.summaries import Summary
from pipeline.bill.comparison import planned_before
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.lake.parts import parts_folder
from pipeline.model.autoencoder import products_here
from pipeline.registry.cluster_ids import ClusterIds


@stage("summary", version=6, distributed=False)
def summary(
    config: Config,
    context: Context,
    manifest: Manifest,
    decision: NightDecision,
    serving: Serving,
    assignments: Assignments,
    snapshot: Snapshot,
    autoencoder: PretrainedAutoencoder | None,
    centroids: InitialCentroids | None,
    refined: RefinedModel | None,
    comparison: Comparison | None,
    identity: Identity | None,
    verdict: Verdict | None,
) -> Summary:
    """Collect the figures of all stages, and the estimate made before the run."""
    labelled = assignments.labelled_rows / assignments.rows if assignments.rows else 1.0
    model, last = serving.champion.model, refined.updates[-1] if refined else None
    # A refresh takes both from the champion; they have no figures of their own.
    trained = autoencoder if autoencoder and autoencoder.losses else None
    started = centroids if centroids and centroids.objectives else None
    products: str = trained.products if trained else products_here(config.model.precision)
    names = ("survived", "split", "merged", "born", "died")
    result = Summary(
        run_id=context.run_id,
        ds=context.ds,
        action=decision.action,
        why=decision.why,
        refused=serving.refused,
        champion=model.model_id,
        challenger=identity.challenger.model.model_id if identity else None,
        entry=serving.entry,
        model_id=model.model_id,
        shipped=model.kind,
        snapshot=snapshot.number,
        table=snapshot.table,
        rows_in=assignments.rows_in,
        rows_out=assignments.rows,
        rows_dropped=assignments.rows_dropped,
        rows_quarantined=assignments.rows_quarantined,
        rows_labelled=assignments.labelled_rows,
        rows_carried=assignments.carried_rows,
        outliers=assignments.outliers,
        shards=manifest.shard_count,
        features=manifest.width,
        clusters=len(assignments.cluster_rows),
        cluster_ids=assignments.cluster_ids,
        cluster_rows=assignments.cluster_rows,
        mean_confidence=assignments.mean_confidence,
        **{name: getattr(identity, name) if identity else 0 for name in names},
        churn=identity.churn if identity else None,
        max_psi=assignments.max_psi,
        max_psi_feature=assignments.max_psi_feature,
        scores=assignments.scores,
        verdict=verdict,
        comparison=comparison,
        products=trained.products if trained else None,
        pretrain_passes=len(trained.losses) if trained else None,
        pretrain_loss=trained.losses[-1] if trained else None,
        kmeans_objective=started.objective if started else None,
        refine_updates=last.number - refined.teaching_passes if refined and last else None,
        refine_stopped_by=refined.stopped_by if refined else None,
        refine_events=tuple(
            f"update {u.number}: {u.event}" for u in (refined.updates if refined else ()) if u.event
        ),
        kl=last.kl if last else None,
        label_change=last.label_change if last else None,
        choice=started.choice if started else None,
        start=started.merged if started else None,
        firmness=_firmness(context, serving, assignments),
        quarantined=assignments.quarantined,
        stages=tuple(context.times),
        estimate=planned_before(config, context, manifest, products, decision.action, labelled),
        output=context.lake.url,
        assignments=parts_folder(context.run_id, config.lake.format),
        model=f"models/{model.model_id}",
    )
    context.lake.write_json(f"{context.run_path}/metrics.json", result.model_dump(mode="json"))
    return result


def _firmness(context: Context, serving: Serving, assignments: Assignments) -> tuple[float, ...]:
    ids = ClusterIds.of(context.lake, serving.champion.ids)
    if ids.firmness_K is None:
        return ()
    known = dict(zip(ids.cluster_id_K.tolist(), ids.firmness_K.tolist(), strict=True))
    return tuple(known[cluster] for cluster in assignments.cluster_ids)
