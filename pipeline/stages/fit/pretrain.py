"""pretrain: train the autoencoder to reconstruct the rows."""

from __future__ import annotations

from functools import partial

import torch

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import PretrainedAutoencoder
from pipeline.artifacts.records import StoredFile
from pipeline.bill.costs import CostInputs, training_costs
from pipeline.bill.records import StageCosts
from pipeline.config import Config, content_of
from pipeline.distributed.training import train
from pipeline.engine import Context, stage
from pipeline.input.quarantine import without_bad_shards
from pipeline.input.reading import Reader, pieces_of
from pipeline.model.augmentation import augmentation_of
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.pretraining import Pretraining
from pipeline.registry.models import load_scaler, weights_bytes
from pipeline.storage import Store


def _build(
    config: Config, lake: Store, scaler_file: StoredFile, device: torch.device | None = None
) -> Pretraining:
    model, scaler = config.model, load_scaler(lake, scaler_file)
    autoencoder = Autoencoder(
        scaler.width,
        model.widths,
        model.embedding,
        config.seed,
        precision=model.precision,
        categories=scaler.categories,
    )
    return Pretraining(
        autoencoder.to(device),
        scaler,
        config.pretrain,
        config.seed,
        augmentation=augmentation_of(config.augment, config.source.image_shape),
    )


def _cost(run: CostInputs) -> StageCosts:
    network, settings = run.network, run.config.pretrain
    # Forward and both gradients, of encoder and decoder; no gradient flows to the rows.
    row_flop = 2 * (6 * network.encoder - network.first)
    parameters = network.encoder_parameters + network.decoder_parameters
    given = {"row_flop": row_flop, "parameters": parameters, "copies": 3, "files": 1}
    return training_costs(run, settings, passes=settings.passes, **given)


@stage(
    "pretrain",
    version=3,
    settings=content_of(
        *("model", "augment", "pretrain", "seed"),
        *("source.image_shape", "source.fit_rows", "source.held_out"),
    ),
    distributed=True,
    cost=_cost,
)
@without_bad_shards
def pretrain(
    config: Config, context: Context, manifest: Manifest, sample: Sample
) -> PretrainedAutoencoder:
    """Train on many workers, on rows scaled by the sample's statistics."""
    trained = train(
        config,
        context,
        stage="pretrain",
        job_id=pretrain.fingerprint(config, (manifest, sample)),
        build=partial(_build, config, context.lake, sample.scaler),
        reader=Reader.of(config, manifest, carry=False),
        pieces=pieces_of(manifest, context.lake),
        planned_rows=lambda rows: rows * config.pretrain.passes,
    )
    training = _build(config, context.lake, sample.scaler)
    training.restore(trained.state)
    path = context.stage_path("pretrain", "autoencoder.safetensors")
    return PretrainedAutoencoder(
        weights=context.store(path, weights_bytes(training.autoencoder)),
        losses=tuple(record["loss"] for record in trained.history),
        rows=trained.history[-1]["rows"],
        products=trained.history[-1].get("products", "float32"),
        workers=tuple(record["workers"] for record in trained.history),
    )
