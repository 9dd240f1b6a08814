"""Assigning slices, without Ray: the actor's class is a plain callable."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import RefinedModel, RefineRecord
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import NumericalError, PipelineError
from pipeline.input.reading import Reader, pieces_of
from pipeline.labelling.assigning import Assigner, AssignJob
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.clusters import ClusterModel
from pipeline.model.scaling import Scaler
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.labels import assignments_of
from pipeline.registry.models import (
    LoadedModel,
    centroids_bytes,
    load_model,
    scaler_bytes,
    weights_bytes,
)
from pipeline.registry.reference import bins_bytes
from pipeline.stages.pin import pin
from pipeline.storage import Store, parquet_bytes, sha256

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


def job_of(
    config: Config, context: Context, manifest: Manifest, model: RefinedModel, clusters: int
) -> AssignJob:
    """Of a model whose ids are positions; where drift is measured, the bins are those of zeros."""
    ids = parquet_bytes(ClusterIds.positions(clusters).table())
    edges = np.zeros((manifest.width, 9))
    bins = bins_bytes(edges, np.ones((manifest.width, 10), np.int64))
    return AssignJob(
        *(config, manifest, model),
        *(context.store("ids.parquet", ids), context.store("bins.parquet", bins)),
        *(context.lake, "parts", "test", "2026-01-31"),
        threads=2,
    )


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
    return job_of(config, context, manifest, model, len(CENTROIDS))


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


@pytest.mark.parametrize("damage", ["empty", "half", "footer only", "foreign", "fewer rows"])
def test_what_is_not_the_part_is_replaced(job: AssignJob, damage: str) -> None:
    pieces = pieces_of(job.manifest, job.lake).slice(0, 1)
    (first,) = Assigner(job)(pieces).to_pylist()
    content, path = job.lake.read_bytes(first["path"]), job.lake.locate(first["path"])
    table = pq.read_table(path)
    match damage:
        case "empty":
            Path(path).write_bytes(b"")
        case "half":
            Path(path).write_bytes(content[: len(content) // 2])
        case "footer only":
            Path(path).write_bytes(content[len(content) // 2 :])
        case "foreign":
            pq.write_table(table.replace_schema_metadata(None), path)
        case "fewer rows":  # of this very part, if one believes its footer
            pq.write_table(table.slice(1), path)
    (again,) = Assigner(job)(pieces).to_pylist()
    assert again == first
    assert job.lake.read_bytes(first["path"]) == content


@pytest.fixture
def wide_job(tmp_path: Path) -> AssignJob:
    """A slice of several blocks, and a network whose products are worth sharing out."""
    rows, width = 9_000, 96
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    x = pa.FixedSizeListArray.from_arrays(random.normal(size=rows * width).astype("f4"), width)
    table = pa.table({"id": np.arange(rows), "x": x})
    pq.write_table(table, tmp_path / "in/0.parquet", row_group_size=4_100)
    config = Config.model_validate(
        {
            "source": {"path": str(tmp_path / "in"), "features": ["x"], "keys": ["id"]},
            "output": str(tmp_path / "lake"),
            "clusters": 5,
            "model": {"hidden": [300, 200], "embedding": 7},  # in bfloat16 where it is fast
        }
    )
    context = Context("test", "2026-01-31", Store(config.output))
    manifest = pin.run(config, context)
    torch.manual_seed(0)
    weights = weights_bytes(Autoencoder(width, [300, 200], 7))
    scaler = Scaler("none", np.zeros(width), np.zeros(width), np.ones(width))
    centroids = random.normal(size=(5, 7)).astype(np.float32)
    model = RefinedModel(
        model_id="m-test",
        weights=context.store("models/m/w.safetensors", weights),
        centroids=context.store("models/m/c.parquet", centroids_bytes(centroids)),
        scaler=context.store("models/m/s.parquet", scaler_bytes(scaler, manifest.features)),
        scaling="none",
        updates=(UPDATE,),
        stopped_by="passes",
        rows=rows,
    )
    return job_of(config, context, manifest, model, 5)


def _assigned(job: AssignJob, folder: str, threads: int) -> str:
    """Digest of the part of the job's only slice, written into a folder of its own."""
    assigner = Assigner(replace(job, folder=folder, threads=threads))
    (found,) = assigner(pieces_of(job.manifest, job.lake)).to_pylist()
    return sha256(job.lake.read_bytes(found["path"]))


def test_a_part_is_the_same_bytes_whoever_writes_it(
    wide_job: AssignJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {_assigned(wide_job, "alone", 1), _assigned(wide_job, "two-threads", 2)}
    with ThreadPoolExecutor(3) as others:  # other actors, at the same time
        folders = [f"together-{number}" for number in range(3)]
        digests |= set(others.map(_assigned, [wide_job] * 3, folders, [1, 2, 3]))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with ProcessPoolExecutor(1, get_context("spawn")) as another:  # a task that Ray tries again
        digests.add(another.submit(_assigned, wide_job, "process", 2).result())
    assert len(digests) == 1


def test_two_actors_on_one_slice_end_in_one_file(wide_job: AssignJob) -> None:
    alone = _assigned(wide_job, "alone", 1)
    assigners = [Assigner(replace(wide_job, folder="both", threads=n)) for n in (1, 2)]
    pieces = pieces_of(wide_job.manifest, wide_job.lake)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda assigner: assigner(pieces).to_pylist(), assigners))
    assert found[0] == found[1]
    (file,) = wide_job.lake.list("both")
    assert sha256(wide_job.lake.read_bytes(f"both/{file.name}")) == alone


def test_a_slice_that_is_read_in_part_is_noticed(
    job: AssignJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = job.config.source.model_copy(update={"nulls": "mean"})
    job = replace(job, config=job.config.model_copy(update={"source": source}))
    monkeypatch.setattr(Reader, "blocks", lambda *_: iter(()))
    with pytest.raises(PipelineError, match=r"0 rows were read of a slice of 2 .* in 0\.parquet"):
        Assigner(job)(pieces_of(job.manifest, job.lake).slice(0, 1))
    assert job.lake.list(job.folder) == []


def test_a_model_comes_back_as_it_was(job: AssignJob) -> None:
    loaded = load_model(job.lake, job.model, job.config)
    torch.testing.assert_close(loaded.clusters.centroids_KD, torch.from_numpy(CENTROIDS))
    expected = Autoencoder(2, [4], 2).encoder(torch.ones(1, 2))
    torch.testing.assert_close(loaded.clusters.encoder(torch.ones(1, 2)), expected)
