"""What is shipped, without Ray: the stage only copies files."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import config_of

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import (
    Candidate,
    ClusteringModel,
    Comparison,
    InitialCentroids,
    ModelKind,
    PretrainedAutoencoder,
    RefinedModel,
    TaughtModel,
)
from pipeline.engine import Context
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.scaling import Scaler
from pipeline.registry.models import centroids_bytes, load_model, scaler_bytes, weights_bytes
from pipeline.stages.fit.select import select
from pipeline.stages.pin import pin


def shipped(
    settings: dict[str, Any], context: Context, choice: str, winner: ModelKind
) -> ClusteringModel:
    """The model that ``select`` leaves; stored centroids are 0 for kmeans, 1, 2 for dec, and 3."""
    settings["refine"] = {"select": choice}
    config = config_of(settings)
    manifest = pin.run(config, context)
    narrow, wide = np.ones((3, 4), np.float32), np.zeros((3, 8), np.float32)
    scaler = context.store("s.parquet", scaler_bytes(unscaled(), manifest.features))
    pretrained = Autoencoder(8, (32, 16), 4, seed=1)
    refined, taught = (Autoencoder(8, (32, 16), 4, seed=seed) for seed in (2, 3))
    dec = RefinedModel.model_construct(
        model_id="m-dec",
        kind="dec",
        weights=context.store("refined.safetensors", weights_bytes(refined)),
        centroids=context.store("dec.parquet", centroids_bytes(2 * narrow)),
        scaler=scaler,
        scaling="none",
        taught=TaughtModel(
            weights=context.store("taught.safetensors", weights_bytes(taught)),
            centroids=context.store("taught.parquet", centroids_bytes(3 * narrow)),
        ),
    )
    candidates = tuple(
        Candidate(
            kind=kind,
            spaces=(),
            separation=0.5,
            balance=1.0,
            empty_clusters=0,
            stability=None,
            scores=None,
        )
        for kind in get_args(ModelKind)
    )
    return select.run(
        config,
        context,
        manifest,
        Sample.model_construct(scaler=scaler, scaling="none"),
        PretrainedAutoencoder.model_construct(),
        InitialCentroids.model_construct(
            weights=context.store("pretrained.safetensors", weights_bytes(pretrained)),
            kmeans=context.store("first.parquet", centroids_bytes(narrow)),
        ),
        dec,
        Comparison(
            candidates=candidates,
            winner=winner,
            margin=0.1,
            rows=600,
            held_out_rows=0,
            generalisation=None,
            centroids=context.store("kmeans.parquet", centroids_bytes(wide)),
            restarts=2,
        ),
    )


def unscaled() -> Scaler:
    return Scaler("none", np.zeros(8), np.zeros(8), np.ones(8))


@pytest.mark.parametrize(
    ("choice", "winner", "kind"),
    [
        ("dec", "kmeans", "dec"),
        ("auto", "dec", "dec"),
        ("auto", "autoencoder", "autoencoder"),
        ("auto", "kmeans", "kmeans"),
        ("auto", "merged", "merged"),
    ],
)
def test_what_is_shipped(
    settings: dict[str, Any], context: Context, choice: str, winner: ModelKind, kind: ModelKind
) -> None:
    model = shipped(settings, context, choice, winner)
    assert model.kind == kind
    loaded = load_model(context.lake, model, config_of(settings))
    centroid = {"kmeans": 0, "autoencoder": 1, "dec": 2, "merged": 3}[kind]
    assert (loaded.clusters.centroids_KD == centroid).all()
    rows = torch.arange(16.0).reshape(2, 8)
    expected = {
        "kmeans": rows,
        "autoencoder": Autoencoder(8, (32, 16), 4, seed=1).encoder(rows),
        "dec": Autoencoder(8, (32, 16), 4, seed=2).encoder(rows),
        "merged": Autoencoder(8, (32, 16), 4, seed=3).encoder(rows),
    }[kind]
    torch.testing.assert_close(loaded.clusters.encoder(loaded.scaler(rows)), expected)


def test_a_model_is_named_by_its_content(settings: dict[str, Any], context: Context) -> None:
    first = shipped(settings, context, "auto", "kmeans")
    assert first.model_id.startswith("m-")
    assert shipped(settings, context, "auto", "kmeans").model_id == first.model_id
    assert shipped(settings, context, "auto", "autoencoder").model_id != first.model_id
