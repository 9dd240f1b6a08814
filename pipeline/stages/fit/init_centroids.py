"""init_centroids: scale the embedding and cluster the reference sample in it; find K where auto."""

from __future__ import annotations

import logging

import torch
from torch import nn

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    ClusterChoice,
    InitialCentroids,
    MergedCells,
    MergeStep,
    PretrainedAutoencoder,
)
from pipeline.artifacts.records import StoredFile
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.first_clusters import FirstClusters, find_first_clusters
from pipeline.clustering.merging import ITERATIONS, NEIGHBOURS, TREES, rows_and_cells
from pipeline.clustering.starts import ITERATIONS as CELL_ITERATIONS
from pipeline.clustering.starts import WORK, cells_and_rows
from pipeline.config import AutoClusters, Config, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.input.samples import sampled_embeddings
from pipeline.registry.models import (
    cells_bytes,
    centroids_bytes,
    load_autoencoder,
    load_scaler,
    weights_bytes,
)
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Seconds of a core to split a cluster and count crossing edges: with 10,000 rows, 60 cells.
_CUT_SECONDS = 0.001


def _cost(run: CostInputs) -> StageCosts:
    """k-means on the embedded sample, merged cells, and where it is auto the number of clusters."""
    clusters, width, rows = run.config.clusters, run.config.model.embedding, run.sample_rows
    core_s = run.encode_s(rows) + run.kmeans_s(rows, width)
    cells, merged_rows = cells_and_rows(rows, run.config.most_clusters)
    if run.config.centroids.start == "merged" and cells:
        spaces = [width, run.manifest.width]
        for dimensions in spaces[: 1 + (merged_rows**2 * run.manifest.width <= WORK)]:
            core_s += run.kmeans_s(
                merged_rows, dimensions, cells, work=WORK, iterations=CELL_ITERATIONS
            )
            core_s += run.distance_s(merged_rows, merged_rows, dimensions)
    if isinstance(clusters, AutoClusters):
        rows, cells = rows_and_cells(rows, clusters.most)
        start_s = run.kmeans_s(rows, width, cells, restarts=1, iterations=ITERATIONS)
        core_s += TREES * (start_s + 2 * cells * _CUT_SECONDS)
        core_s += run.distance_s(rows, rows, width + NEIGHBOURS)
    return task_costs(run, core_s)


@stage(
    "init_centroids",
    version=2,
    settings=content_of("clusters", "embedding", "centroids", "seed"),
    distributed=True,
    cost=_cost,
)
def init_centroids(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
) -> InitialCentroids:
    """Encode the sample, scale the embedding and cluster it, in one task.

    Where ``clusters`` is auto, the task first chooses the number from the same embeddings; later
    stages take it from the centroids.
    """
    arguments = (config, context.lake, manifest, sample, autoencoder)
    first, weights = run_task(config.execution, SAMPLE_IN_MEMORY, _embed_and_cluster, *arguments)

    def stored(name: str, content: bytes) -> StoredFile:
        return context.store(context.stage_path("init_centroids", name), content)

    choice = merged = None
    if first.choice is not None:
        steps = tuple(MergeStep(**vars(step)) for step in first.choice.path)
        choice = ClusterChoice(**{**vars(first.choice), "path": steps})
        log.info("clusters: auto is %d, %s", choice.clusters, choice.why)
    if first.merged is not None:
        cells = cells_bytes(first.merged.cluster_C, first.merged.cells_CD)
        merged = MergedCells(
            cells=stored("cells.parquet", cells),
            count=len(first.merged.cells_CD),
            space=first.merged.space,
            starts=first.merged.starts,
            rule=first.merged.rule,
            agreement=dict(first.merged.agreement),
            firmness=tuple(first.merged.firmness_K.tolist()),
        )
    return InitialCentroids(
        weights=stored("autoencoder.safetensors", weights),
        centroids=stored("centroids.parquet", centroids_bytes(first.centroids_KD)),
        kmeans=stored("kmeans.parquet", centroids_bytes(first.kmeans.centroids_KD)),
        objectives=first.kmeans.objectives,
        objective=first.kmeans.objective,
        sample_rows=first.rows,
        cluster_rows=first.kmeans.cluster_rows,
        merged=merged,
        choice=choice,
    )


def _embed_and_cluster(
    config: Config,
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
) -> tuple[FirstClusters, bytes]:
    loaded = load_autoencoder(lake, autoencoder.weights, config)
    scaler = load_scaler(lake, sample.scaler)
    encoders = {"pretrained": loaded.encoder, "features": nn.Sequential()}
    spaces = sampled_embeddings(lake, sample, scaler, encoders)
    first = find_first_clusters(config, spaces["pretrained"], spaces["features"])
    loaded.transform_embedding(torch.from_numpy(first.transform_DD))
    return first, weights_bytes(loaded)
