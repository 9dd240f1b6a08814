"""summary: what the run did, as metrics.json and for the closing table."""

from __future__ import annotations

import logging
from typing import Any

import ray

from pipeline.artifacts import (
    Assignments,
    ClusteringModel,
    Comparison,
    Estimate,
    InitialCentroids,
    Manifest,
    PretrainedAutoencoder,
    RefinedModel,
    Sample,
    Snapshot,
    Summary,
)
from pipeline.bill.comparison import last_calibration, planned
from pipeline.bill.rates import Cluster, InputFacts
from pipeline.config import Config
from pipeline.distributed.resources import cluster_nodes
from pipeline.engine import Context, stage
from pipeline.lake.parts import parts_folder

log = logging.getLogger(__name__)


def _settings(_: Config) -> Any:
    return {}


@stage("summary", version=4, settings=_settings, distributed=False)
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
        estimate=_estimate(config, context, manifest, autoencoder.products),
        choice=centroids.choice,
    )
    context.lake.write_json(f"{context.run_path}/metrics.json", result.model_dump(mode="json"))
    return result


def _estimate(
    config: Config, context: Context, manifest: Manifest, products: str
) -> Estimate | None:
    try:
        last = last_calibration(context.lake, before=context.run_id)
        return planned(config, _cluster(config), InputFacts.of(manifest), products, last)
    except Exception:  # the run is published: that it has no bill is no reason to fail
        log.warning("no estimate", exc_info=True)
        return None


def _cluster(config: Config) -> Cluster:
    """The one that runs; what the settings ask for where all work was done before."""
    nodes = [node for node in cluster_nodes() if node.cpus] if ray.is_initialized() else []
    if not nodes:
        return Cluster.of(config.execution)
    return Cluster.of(
        config.execution,
        nodes=len(nodes),
        cpus_per_node=sum(node.cpus for node in nodes) / len(nodes),
        gpus_per_node=sum(node.gpus for node in nodes) / len(nodes),
    )
