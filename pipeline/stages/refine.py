"""refine: DEC trains encoder and centroids together, and the result becomes a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pipeline.artifacts import (
    InitialCentroids,
    Manifest,
    PretrainedAutoencoder,
    RefinedModel,
    RefineRecord,
    Sample,
    fingerprint_of,
)
from pipeline.config import Config
from pipeline.distributed.training import train
from pipeline.engine import Context, stage
from pipeline.lake.models import (
    centroids_bytes,
    load_autoencoder,
    load_centroids,
    load_scaler,
    weights_bytes,
)
from pipeline.lake.reading import Reader, pieces_of
from pipeline.lake.samples import sampled_features
from pipeline.model.augmentation import augmentation_of
from pipeline.model.refinement import ClusterModel, Refinement
from pipeline.storage import Store, sha256


def _settings(config: Config) -> Any:
    return {
        # What is shipped is decided later.
        "refine": config.refine.model_dump(mode="json", exclude={"select"}),
        "augment": config.augment.model_dump(mode="json"),
        "image_shape": config.source.image_shape,
        "fit_rows": config.source.fit_rows,
        "held_out": config.source.held_out,
        "seed": config.seed,
    }


def _build(
    config: Config,
    lake: Store,
    width: int,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
) -> Refinement:
    loaded = load_autoencoder(lake, autoencoder.weights, config, width)
    centroids_KD = load_centroids(lake, centroids.centroids)
    model = ClusterModel(loaded.encoder, centroids_KD, config.refine.alpha)
    return Refinement(
        model,
        load_scaler(lake, sample.scaler),
        config.refine,
        decoder=loaded.decoder,
        augmentation=augmentation_of(config.augment, config.source.image_shape),
        reference=lambda: torch.from_numpy(sampled_features(lake, sample.parts)),
        seed=config.seed,
    )


@stage("refine", version=2, settings=_settings, distributed=True)
def refine(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    pretrained: PretrainedAutoencoder,
    centroids: InitialCentroids,
) -> RefinedModel:
    """Refine on many workers, then write the model's files under an id of their content."""
    lake = context.lake
    build = partial(_build, config, lake, manifest.width, sample, pretrained, centroids)
    trained = train(
        config,
        context,
        folder=context.stage_path("refine"),
        job_id=refine.fingerprint(config, (manifest, sample, pretrained, centroids)),
        build=build,
        reader=Reader.of(config, manifest, carry=False),
        pieces=pieces_of(manifest, lake),
        planned_rows=lambda rows: rows * config.refine.passes,
    )
    refinement = build()
    refinement.restore(trained.state)
    autoencoder = load_autoencoder(lake, pretrained.weights, config, manifest.width)
    autoencoder.encoder = refinement.model.encoder
    if "decoder" in refinement.live:
        autoencoder.decoder = refinement.live["decoder"]
    weights = weights_bytes(autoencoder)
    centers = centroids_bytes(refinement.model.centroids_KD.detach().to(torch.float32).numpy())
    scaler = lake.read_bytes(sample.scaler.path)
    model_id = (
        "m-"
        + fingerprint_of([sha256(weights), sha256(centers), sha256(scaler), config.refine.alpha])[
            :12
        ]
    )
    updates = tuple(
        RefineRecord(**{name: record[name] for name in RefineRecord.model_fields})
        for record in trained.history
    )
    model = RefinedModel(
        model_id=model_id,
        weights=context.store(f"models/{model_id}/weights.safetensors", weights),
        centroids=context.store(f"models/{model_id}/centroids.parquet", centers),
        scaler=context.store(f"models/{model_id}/scaler.parquet", scaler),
        scaling=sample.scaling,
        updates=updates,
        stopped_by=trained.history[-1]["finished"],
        rows=sum(updates[-1].cluster_rows),
    )
    lake.write_bytes(f"models/{model_id}/config.yaml", config.to_yaml().encode())
    lake.write_bytes(
        f"models/{model_id}/model_card.md", _card(config, context, manifest, pretrained, model)
    )
    return model


def _card(
    config: Config,
    context: Context,
    manifest: Manifest,
    pretrained: PretrainedAutoencoder,
    model: RefinedModel,
) -> bytes:
    columns = ", ".join(
        f"`{c.name}` (vector of {c.width})" if c.vector else f"`{c.name}`"
        for c in manifest.features
    )
    layers = "-".join(map(str, (manifest.width, *config.model.hidden, config.model.embedding)))
    last = model.updates[-1]
    change = "none measured" if last.label_change is None else f"{last.label_change:.3%}"
    events = "".join(f"- Update {u.number}: {u.event}.\n" for u in model.updates if u.event)
    return f"""# Model {model.model_id}

Deep Embedded Clustering (Xie, Girshick & Farhadi 2016) into {config.clusters} clusters.

- Fitted by run `{context.run_id}` for ds `{context.ds}` on {model.rows:,} rows.
- Features, in this order: {columns}. Scaling: {model.scaling}.
- Encoder {layers}; reconstruction loss after {len(pretrained.losses)} passes:
  {pretrained.losses[-1]:.5f} per scaled feature.
- Refined for {last.number} updates, stopped by {model.stopped_by}; last label change: {change}.
{events}- Smallest cluster {min(last.cluster_rows):,} rows, largest {max(last.cluster_rows):,}.

Files: `weights.safetensors` (encoder and decoder), `centroids.parquet` (cluster_id, centroid),
`scaler.parquet` (one row a feature: scaled = (x - offset) * factor), `config.yaml`.
""".encode()
