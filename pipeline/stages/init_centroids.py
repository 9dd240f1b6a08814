"""init_centroids: k-means on the embeddings of the reference sample."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipeline.artifacts import InitialCentroids, Manifest, PretrainedAutoencoder, Sample
from pipeline.clustering.kmeans import KMeansResult, kmeans
from pipeline.config import Config
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.resources import Resources, share_out
from pipeline.engine import Context, stage
from pipeline.lake.models import centroids_bytes, load_autoencoder, load_scaler
from pipeline.lake.samples import sampled_features
from pipeline.storage import Store

_ENCODE_ROWS = 4096


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
    resources = share_out(config.execution)
    task = ray.remote(num_cpus=resources.cpus_per_worker)(_embed_and_cluster)
    arguments = (config, context.lake, manifest, sample, autoencoder, resources)
    try:
        result: KMeansResult = ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise pipeline_error(error) from error
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
    resources: Resources,
) -> KMeansResult:
    torch.set_num_threads(resources.threads)
    faiss.omp_set_num_threads(resources.threads)
    encoder = load_autoencoder(lake, autoencoder.weights, config, manifest.width).encoder
    scaler = load_scaler(lake, sample.scaler)
    rows = torch.from_numpy(sampled_features(lake, sample.parts))
    with torch.inference_mode():
        batches = torch.split(rows, _ENCODE_ROWS)
        z = torch.cat([encoder(scaler(batch)) for batch in batches])
    embeddings: NDArray[np.float32] = z.numpy()
    settings = config.centroids
    return kmeans(
        embeddings,
        config.clusters,
        restarts=settings.restarts,
        iterations=settings.iterations,
        seed=config.seed,
    )
