"""refine: train encoder and centroids together by DEC, and store the model."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
    RefineRecord,
    TaughtModel,
)
from pipeline.bill.costs import CostInputs, training_costs
from pipeline.bill.records import StageCosts
from pipeline.config import Config, content_of
from pipeline.distributed.training import train
from pipeline.engine import Context, stage
from pipeline.input.quarantine import without_bad_shards
from pipeline.input.reading import Reader, pieces_of
from pipeline.input.samples import sampled_features
from pipeline.model.augmentation import augmentation_of
from pipeline.model.clusters import ClusterModel
from pipeline.model.refinement import Refinement
from pipeline.registry.models import (
    centroids_bytes,
    load_autoencoder,
    load_cells,
    load_centroids,
    load_scaler,
    store_model,
    store_model_card,
    weights_bytes,
)
from pipeline.storage import Store


def _build(
    config: Config,
    lake: Store,
    sample: Sample,
    centroids: InitialCentroids,
    device: torch.device | None = None,
) -> Refinement:
    loaded = load_autoencoder(lake, centroids.weights, config).to(device)
    centroids_KD = load_centroids(lake, centroids.centroids)
    model = ClusterModel(loaded.encoder, centroids_KD, config.refine.alpha).to(device)
    cells = None
    if merged := centroids.merged:
        embedded = merged.space == "embeddings"
        cells = load_cells(lake, merged.cells, embedded=embedded).to(device)
    return Refinement(
        model,
        load_scaler(lake, sample.scaler),
        config.refine,
        cells=cells,
        decoder=loaded.decoder,
        augmentation=augmentation_of(config.augment, config.source.image_shape),
        reference=lambda: torch.from_numpy(sampled_features(lake, sample.parts)),
        seed=config.seed,
    )


def _cost(run: CostInputs) -> StageCosts:
    """Training passes, and one measuring pass before each update and after the last."""
    settings, network, clusters = run.config.refine, run.network, run.config.most_clusters
    row_flop = 2 * (3 * network.encoder - network.first)
    parameters = network.encoder_parameters + clusters * run.config.model.embedding
    if settings.target == "frozen" or run.augments or settings.noise:
        row_flop += 2 * network.encoder  # the target comes from the unchanged row
    if settings.reconstruction_weight:
        row_flop += 6 * network.encoder
        parameters += network.decoder_parameters
    merges = run.config.centroids.start == "merged" and run.action == "refit"
    teaching = settings.teaching_passes if merges else 0
    updates = run.refine_passes * run.fit_rows / (settings.update_interval_rows or run.fit_rows)
    return training_costs(
        run,
        settings,
        at_most=run.refine_passes > 0,
        passes=teaching + run.refine_passes,
        teaching_passes=teaching,
        measuring=1 + math.ceil(updates),
        row_flop=row_flop,
        parameters=parameters,
        clusters=clusters,
        copies=4,
        files=4,
    )


@stage(
    "refine",
    version=4,
    settings=content_of(
        *("refine", "augment", "seed"),
        *("source.image_shape", "source.fit_rows", "source.held_out"),
        without=("refine.select",),  # the stage select reads it
    ),
    distributed=True,
    cost=_cost,
)
@without_bad_shards
def refine(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    pretrained: PretrainedAutoencoder,
    centroids: InitialCentroids,
) -> RefinedModel:
    """Refine on many workers, then write the model's files under an id made of their content."""
    lake = context.lake
    build = partial(_build, config, lake, sample, centroids)
    trained = train(
        config,
        context,
        stage="refine",
        job_id=refine.fingerprint(config, (manifest, sample, pretrained, centroids)),
        build=build,
        reader=Reader.of(config, manifest, carry=False),
        pieces=pieces_of(manifest, lake),
        planned_rows=lambda rows: rows * _passes(config, centroids),
    )
    refinement = build()
    refinement.restore(trained.state)
    autoencoder = load_autoencoder(lake, centroids.weights, config)

    def files_of(modules: nn.ModuleDict) -> tuple[bytes, bytes]:
        model: ClusterModel = modules["model"]  # type: ignore[assignment]
        autoencoder.encoder = model.encoder
        if "decoder" in modules:
            autoencoder.decoder = modules["decoder"]
        centroids_KD = model.centroids_KD.detach().float().numpy()
        return weights_bytes(autoencoder), centroids_bytes(centroids_KD)

    taught = None
    if len(refinement.taught):
        weights, centers = files_of(refinement.taught)
        taught = TaughtModel(
            weights=context.store(context.stage_path("refine", "taught.safetensors"), weights),
            centroids=context.store(context.stage_path("refine", "taught.parquet"), centers),
        )
    weights, centers = files_of(refinement.live)
    files = store_model(
        config,
        context,
        "dec",
        weights=weights,
        centroids=centers,
        scaler=lake.read_bytes(sample.scaler.path),
        scaling=sample.scaling,
    )
    updates = tuple(
        RefineRecord(**{name: record[name] for name in RefineRecord.model_fields})
        for record in trained.history
    )
    model = RefinedModel(
        **dict(files) | {"firmness": centroids.merged.firmness if centroids.merged else ()},
        updates=updates,
        stopped_by=trained.history[-1]["finished"],
        rows=sum(updates[-1].cluster_rows),
        workers=tuple(record["workers"] for record in trained.history),
        teaching_passes=refinement.teaching_passes,
        taught=taught,
    )
    store_model_card(config, context, manifest, files, _facts(pretrained, centroids, model))
    return model


def _passes(config: Config, centroids: InitialCentroids) -> int:
    """Maximum number of passes, of teaching and of refinement."""
    teaching = config.refine.teaching_passes if centroids.merged else 0
    return teaching + config.refine.passes


def _facts(
    pretrained: PretrainedAutoencoder, centroids: InitialCentroids, model: RefinedModel
) -> str:
    last = model.updates[-1]
    change = "none measured" if last.label_change is None else f"{last.label_change:.3%}"
    if model.stopped_by == "passes" and last.label_change is not None:
        change += "; labels were still moving"
    events = "".join(f"- Update {u.number}: {u.event}.\n" for u in model.updates if u.event)
    start = "It goes on from the model that served before."
    if pretrained.losses:
        start = (
            f"Reconstruction loss after {len(pretrained.losses)} passes:\n"
            f"  {pretrained.losses[-1]:.5f} per scaled feature."
        )
    if merged := centroids.merged:
        agree = ", ".join(f"{rule} {value:.2f}" for rule, value in merged.agreement.items())
        start += f"""
- Started from {merged.count:,} cells of {merged.space}, merged by {merged.rule};
  {merged.starts} starts agree by {agree}. Least firm cluster: {min(merged.firmness):.2f}.
- Taught that partition for {model.teaching_passes} passes."""
    return f"""
- Learnt from {model.rows:,} rows. {start}
- Refined for {last.number - model.teaching_passes} updates, stopped by {model.stopped_by}; last
  label change: {change}.
{events}- Smallest cluster {min(last.cluster_rows):,} rows, largest {max(last.cluster_rows):,}.
"""
