"""init_centroids: k-means on the embeddings of the reference sample."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import InitialCentroids, Manifest, PretrainedAutoencoder, Sample
from pipeline.clustering.kmeans import KMeansResult, kmeans
from pipeline.config import Config
from pipeline.distributed.tasks import run_task
from pipeline.engine import Context, stage
from pipeline.lake.models import centroids_bytes, load_autoencoder, load_scaler
from pipeline.lake.samples import sampled_embeddings
from pipeline.storage import Store


def _settings(config: Config) -> Any:
    return {
        "clusters": config.clusters,
        "centroids": config.centroids.model_dump(mode="json"),
        "seed": config.seed,
    }


@stage("init_centroids", version=1, settings=_settings, distributed=True)
def init_centroids(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
) -> InitialCentroids:
    """One task encodes the sample and runs every restart; rows stay off the driver."""
    arguments = (config, context.lake, manifest, sample, autoencoder)
    result = run_task(config.execution, _embed_and_cluster, *arguments)
    path = context.stage_path("init_centroids", "centroids.parquet")
    return InitialCentroids(
        centroids=context.store(path, centroids_bytes(result.centroids_KD)),
        objectives=result.objectives,
        objective=result.objective,
        sample_rows=sum(result.cluster_rows),
        cluster_rows=result.cluster_rows,
    )


def _embed_and_cluster(
    config: Config,
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
) -> KMeansResult:
    encoder = load_autoencoder(lake, autoencoder.weights, config, manifest.width).encoder
    scaler = load_scaler(lake, sample.scaler)
    embeddings = sampled_embeddings(lake, sample, scaler, {"pretrained": encoder})
    return kmeans(
        embeddings["pretrained"],
        config.clusters,
        restarts=config.centroids.restarts,
        iterations=config.centroids.iterations,
        seed=config.seed,
    )
