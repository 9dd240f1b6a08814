"""Assigning slices, without Ray: the actor's class is a plain callable."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.artifacts import RefinedModel, RefineRecord
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import NumericalError
from pipeline.lake.assigning import Assigner, AssignJob, assignments_of
from pipeline.lake.models import (
    LoadedModel,
    centroids_bytes,
    load_model,
    scaler_bytes,
    weights_bytes,
)
from pipeline.lake.reading import pieces_of
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.refinement import ClusterModel
from pipeline.model.scaling import Scaler
from pipeline.stages.pin import pin
from pipeline.storage import Store

UPDATE = RefineRecord(
    number=0,
    label_change=None,
    kl=None,
    loss=None,
    learning_rate=1e-4,
    cluster_rows=(2, 0, 0),
    event=None,
)
CENTROIDS = np.array([[0.0, 0.0], [3.0, 4.0], [-6.0, 8.0]], np.float32)


def model_of(centroids: np.ndarray, alpha: float = 1.0) -> LoadedModel:
    """A model whose encoder leaves rows as they are."""
    width = centroids.shape[1]
    identity = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False))
    torch.nn.init.eye_(identity[0].weight)
    scaler = Scaler("none", np.zeros(width), np.zeros(width), np.ones(width))
    return LoadedModel(scaler, ClusterModel(identity, torch.from_numpy(centroids), alpha))


def test_nearest_two_by_hand() -> None:
    found = assignments_of(model_of(CENTROIDS), torch.tensor([[0.0, 0.0]]))
    # Squared distances 0, 25 and 100, so 1/(1 + d²) = 1, 1/26 and 1/101.
    total = 1 + 1 / 26 + 1 / 101
    assert (found["cluster_id"][0], found["cluster_id_2"][0]) == (0, 1)
    np.testing.assert_allclose(found["confidence"][0], 1 / total, rtol=1e-6)
    np.testing.assert_allclose(found["confidence_2"][0], 1 / 26 / total, rtol=1e-6)
    assert found["distance"][0] == 0


@pytest.mark.parametrize("alpha", [1.0, 5.0, 1000.0])
def test_nearest_two_in_chunks_against_float64(
    monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    random = np.random.default_rng(0)
    z, centroids = random.normal(size=(300, 4)), random.normal(size=(7, 4))
    squared = np.square(z[:, None] - centroids[None]).sum(axis=2)
    kernel = (1 + squared / alpha) ** (-(alpha + 1) / 2)
    q = kernel / kernel.sum(axis=1, keepdims=True)
    # Five chunks of 64 rows or less.
    monkeypatch.setattr("pipeline.model.dec._SIMILARITIES", {"cpu": 7 * 64})
    monkeypatch.setattr("pipeline.model.devices._ENCODED_ROWS", {"cpu": 50})
    model = model_of(centroids.astype(np.float32), alpha)
    found = assignments_of(model, torch.from_numpy(z.astype(np.float32)))
    np.testing.assert_array_equal(found["cluster_id"], q.argmax(axis=1))
    np.testing.assert_array_equal(found["cluster_id_2"], q.argsort(axis=1)[:, -2])
    np.testing.assert_allclose(found["confidence"], q.max(axis=1), atol=2e-5)
    np.testing.assert_allclose(found["confidence_2"], np.sort(q, axis=1)[:, -2], atol=2e-5)
    np.testing.assert_allclose(found["distance"], np.sqrt(squared.min(axis=1)), rtol=1e-5)


def test_embeddings_that_are_not_finite() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        assignments_of(model_of(CENTROIDS), torch.tensor([[3e38, 3e38]]))


@pytest.fixture
def job(tmp_path: Path) -> AssignJob:
    """Two shards of one row group each; in the second, every row misses a feature."""
    for number, x in enumerate(([[0.0, 0.0], [6.0, 8.0]], [[None, 1.0], [1.0, float("nan")]])):
        table = {"id": [2 * number, 2 * number + 1], "x": x, "label": ["a", "b"]}
        types = [("id", pa.int64()), ("x", pa.list_(pa.float32(), 2)), ("label", pa.string())]
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table(table, schema=pa.schema(types)), folder / f"{number}.parquet")
    settings: dict[str, Any] = {
        "source": {"path": str(tmp_path / "in"), "features": ["x"], "keys": ["id"]},
        "output": str(tmp_path / "lake"),
        "clusters": 3,
        "model": {"hidden": [4], "embedding": 2, "precision": "float32"},
        "evaluate": {"label": "label"},
    }
    settings["source"]["nulls"] = "drop"
    config = Config.model_validate(settings)
    lake = Store(config.output)
    context = Context("test", "2026-01-31", lake)
    manifest = pin.run(config, context)
    scaler = Scaler("none", np.zeros(2), np.zeros(2), np.ones(2))
    model = RefinedModel(
        model_id="m-test",
        weights=context.store("models/m/w.safetensors", weights_bytes(Autoencoder(2, [4], 2))),
        centroids=context.store("models/m/c.parquet", centroids_bytes(CENTROIDS)),
        scaler=context.store("models/m/s.parquet", scaler_bytes(scaler, manifest.features)),
        scaling="none",
        updates=(UPDATE,),
        stopped_by="passes",
        rows=2,
    )
    return AssignJob(config, manifest, model, lake, "parts", "test", "2026-01-31", threads=2)


def test_a_slice_and_one_whose_rows_are_all_dropped(job: AssignJob) -> None:
    pieces = pieces_of(job.manifest, job.lake)
    assigner = Assigner(job)
    for shard, rows in ((0, 2), (1, 0)):
        (result,) = assigner(pieces.slice(shard, 1)).to_pylist()
        statistics = json.loads(result["statistics"])
        assert (statistics["rows_in"], statistics["rows"]) == (2, rows)
        assert sum(count for _, _, count in statistics["contingency"]) == rows
        assert job.lake.read_table(result["path"]).num_rows == rows


def test_the_same_slice_again_ends_in_the_same_bytes(job: AssignJob) -> None:
    pieces = pieces_of(job.manifest, job.lake).slice(0, 1)
    (first,) = Assigner(job)(pieces).to_pylist()
    content = job.lake.read_bytes(first["path"])
    job.lake.write_bytes(first["path"], content[:-10])
    (again,) = Assigner(job)(pieces).to_pylist()
    assert again == first
    assert job.lake.read_bytes(first["path"]) == content


def test_calls_at_a_time_write_what_one_call_after_another_writes(job: AssignJob) -> None:
    pieces = pieces_of(job.manifest, job.lake)
    slices = [pieces.slice(shard, 1) for shard in (0, 1)]
    alone = [Assigner(replace(job, folder="alone"))(some).to_pylist()[0] for some in slices]
    assigner = Assigner(replace(job, folder="together"))
    with ThreadPoolExecutor(4) as calls:  # some of them on the same slice
        together = [call.to_pylist()[0] for call in calls.map(assigner, slices * 4)]
    for found, expected in zip(together, alone * 4, strict=True):
        assert found["statistics"] == expected["statistics"]
        assert job.lake.read_bytes(found["path"]) == job.lake.read_bytes(expected["path"])


def test_a_model_comes_back_as_it_was(job: AssignJob) -> None:
    loaded = load_model(job.lake, job.model, job.config, 2)
    torch.testing.assert_close(loaded.clusters.centroids_KD, torch.from_numpy(CENTROIDS))
    expected = Autoencoder(2, [4], 2).encoder(torch.ones(1, 2))
    torch.testing.assert_close(loaded.clusters.encoder(torch.ones(1, 2)), expected)
