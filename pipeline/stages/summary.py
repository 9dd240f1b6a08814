"""summary: what the run did, as metrics.json and for the closing table."""

from __future__ import annotations

from pipeline.artifacts.assignments import Assignments, Snapshot
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    ClusteringModel,
    Comparison,
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.summaries import Summary
from pipeline.bill.comparison import planned_before
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.lake.parts import parts_folder


@stage("summary", version=4, distributed=False)
def summary(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
    dec: RefinedModel,
    comparison: Comparison,
    model: ClusteringModel,
    assignments: Assignments,
    snapshot: Snapshot,
) -> Summary:
    """Collect the figures of all stages, beside what they were thought to take."""
    last = dec.updates[-1]
    result = Summary(
        run_id=context.run_id,
        ds=context.ds,
        model_id=model.model_id,
        snapshot=snapshot.number,
        table=snapshot.table,
        rows_in=assignments.rows_in,
        rows_out=assignments.rows,
        rows_dropped=assignments.rows_dropped,
        rows_quarantined=assignments.rows_quarantined,
        quarantined=assignments.quarantined,
        shards=manifest.shard_count,
        features=manifest.width,
        clusters=len(assignments.cluster_rows),
        cluster_rows=assignments.cluster_rows,
        mean_confidence=assignments.mean_confidence,
        products=autoencoder.products,
        pretrain_passes=len(autoencoder.losses),
        pretrain_loss=autoencoder.losses[-1],
        kmeans_objective=centroids.objective,
        refine_updates=last.number,
        refine_stopped_by=dec.stopped_by,
        refine_events=tuple(f"update {u.number}: {u.event}" for u in dec.updates if u.event),
        kl=last.kl,
        label_change=last.label_change,
        scores=assignments.scores,
        comparison=comparison,
        shipped=model.kind,
        stages=tuple(context.times),
        output=context.lake.url,
        assignments=parts_folder(context.run_id, config.lake.format),
        model=f"models/{model.model_id}",
        estimate=planned_before(config, context, manifest, autoencoder.products),
        choice=centroids.choice,
    )
    context.lake.write_json(f"{context.run_path}/metrics.json", result.model_dump(mode="json"))
    return result
