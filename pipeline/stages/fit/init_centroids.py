"""init_centroids: k-means on the embeddings of the reference sample; chooses K where it is auto."""

from __future__ import annotations

import logging

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    ClusterChoice,
    InitialCentroids,
    MergeStep,
    PretrainedAutoencoder,
)
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.kmeans import KMeansResult, kmeans
from pipeline.clustering.merging import (
    ITERATIONS,
    NEIGHBOURS,
    TREES,
    Found,
    find_clusters,
    rows_and_cells,
)
from pipeline.config import AutoClusters, Config, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.input.samples import sampled_embeddings
from pipeline.registry.models import centroids_bytes, load_autoencoder, load_scaler
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Seconds of a core to split a cluster and count crossing edges: with 10,000 rows, 60 cells.
_CUT_SECONDS = 0.001


def _cost(run: CostInputs) -> StageCosts:
    """k-means on the embedded sample; where ``clusters`` is auto, with its maximum."""
    clusters, width, rows = run.config.clusters, run.config.model.embedding, run.sample_rows
    core_s = run.encode_s(rows) + run.kmeans_s(rows, width)
    if isinstance(clusters, AutoClusters):
        rows, cells = rows_and_cells(rows, clusters.most)
        start_s = run.kmeans_s(rows, width, cells, restarts=1, iterations=ITERATIONS)
        core_s += TREES * (start_s + 2 * cells * _CUT_SECONDS)
        core_s += run.distance_s(rows, rows, width + NEIGHBOURS)
    return task_costs(run, core_s)


@stage(
    "init_centroids",
    version=1,
    settings=content_of("clusters", "centroids", "seed"),
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
    """Encode the sample and run every restart of k-means, in one task.

    Where ``clusters`` is auto, the task first chooses the number from the same embeddings; later
    stages take it from the centroids.
    """
    arguments = (config, context.lake, manifest, sample, autoencoder)
    result, found = run_task(config.execution, SAMPLE_IN_MEMORY, _embed_and_cluster, *arguments)
    choice = None
    if found is not None:
        steps = tuple(MergeStep(**vars(step)) for step in found.path)
        choice = ClusterChoice(**{**vars(found), "path": steps})
        log.info("clusters: auto is %d, %s", choice.clusters, choice.why)
    path = context.stage_path("init_centroids", "centroids.parquet")
    return InitialCentroids(
        centroids=context.store(path, centroids_bytes(result.centroids_KD)),
        objectives=result.objectives,
        objective=result.objective,
        sample_rows=sum(result.cluster_rows),
        cluster_rows=result.cluster_rows,
        choice=choice,
    )


def _embed_and_cluster(
    config: Config,
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
) -> tuple[KMeansResult, Found | None]:
    encoder = load_autoencoder(lake, autoencoder.weights, config, manifest.width).encoder
    scaler = load_scaler(lake, sample.scaler)
    points_ND = sampled_embeddings(lake, sample, scaler, {"pretrained": encoder})["pretrained"]
    clusters, found = config.most_clusters, None
    if isinstance(config.clusters, AutoClusters):
        found = find_clusters(points_ND, config.clusters.most, config.seed)
        clusters = found.clusters
    result = kmeans(
        points_ND,
        clusters,
        restarts=config.centroids.restarts,
        iterations=config.centroids.iterations,
        seed=config.seed,
    )
    return result, found
