"""Every stage on a real Ray, one after another, on a small real table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import blobs, config_of, published, write_shards

from pipeline.artifacts.nights import NightDecision
from pipeline.config import Config
from pipeline.engine import Context, Execution
from pipeline.errors import InputError
from pipeline.input.samples import sampled_features
from pipeline.lake.snapshots import assignment_files
from pipeline.registry.models import load_model
from pipeline.run import run, stages_of
from pipeline.stages.assign import assign
from pipeline.stages.fit.evaluate import evaluate
from pipeline.stages.fit.gate import gate
from pipeline.stages.fit.identify import identify
from pipeline.stages.fit.init_centroids import init_centroids
from pipeline.stages.fit.pretrain import pretrain
from pipeline.stages.fit.promote import promote
from pipeline.stages.fit.refine import refine
from pipeline.stages.fit.sample import sample
from pipeline.stages.fit.select import select
from pipeline.stages.pin import pin
from pipeline.stages.publish import publish

pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.fixture
def config(settings: dict[str, Any]) -> Config:
    return config_of(settings)


@pytest.mark.slow
def test_stages_one_by_one(settings: dict[str, Any], context: Context, tmp_path: Path) -> None:
    settings["execution"] = {"workers": 2}  # Ray Train starts them; the other tests train in place
    config = config_of(settings)
    night = Execution(config, context)
    lake = tmp_path / "lake"

    manifest = night.complete(pin)
    assert (manifest.rows, manifest.shard_count, manifest.width) == (600, 4, 8)
    assert json.loads((lake / "runs/test/manifest.json").read_text())["rows"] == 600

    reference = night.complete(sample, manifest)
    assert reference.rows == reference.scanned_rows == 600  # fewer than centroids.sample_rows
    drawn = sampled_features(context.lake, reference.parts)
    table = blobs(600)
    x = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, 8).copy()
    np.testing.assert_array_equal(drawn, x)
    scaler = context.lake.read_table(reference.scaler.path)
    np.testing.assert_allclose(scaler["mean"].to_numpy(), x.mean(axis=0), atol=1e-5)
    # One factor for a vector column: of the variance around each component's own mean.
    assert np.ptp(scaler["factor"].to_numpy()) == 0
    np.testing.assert_allclose(scaler["factor"][0].as_py(), 1 / np.sqrt(x.var(axis=0).mean()), 1e-5)

    autoencoder = night.complete(pretrain, manifest, reference)
    assert autoencoder.rows == 600  # no row dropped, though batches do not divide it
    assert len(autoencoder.losses) == 2
    assert autoencoder.losses[1] < autoencoder.losses[0]

    centroids = night.complete(init_centroids, manifest, reference, autoencoder)
    assert sum(centroids.cluster_rows) == 600
    assert len(centroids.objectives) == 2
    assert centroids.objective == min(centroids.objectives)

    model = night.complete(refine, manifest, reference, autoencoder, centroids)
    assert model.rows == 600
    assert [update.number for update in model.updates] == list(range(len(model.updates)))
    assert model.updates[0].label_change is None
    assert all(sum(update.cluster_rows) == 600 for update in model.updates)
    names = sorted(path.name for path in (lake / "models" / model.model_id).iterdir())
    assert names == [
        "centroids.parquet",
        "config.yaml",
        "model_card.md",
        "scaler.parquet",
        "weights.safetensors",
    ]

    fitted = (manifest, reference, autoencoder, centroids, model)
    comparison = night.complete(evaluate, *fitted)
    assert comparison.rows == 600
    shipped = night.complete(select, *fitted, comparison)
    assert (shipped.kind, shipped.model_id) == ("dec", model.model_id)

    first = NightDecision(action="refit", why="", entry=0, champion=None, usable=False)
    identity = night.complete(identify, first, manifest, reference, shipped)
    verdict = night.complete(gate, first, manifest, reference, comparison, shipped, identity)
    assert (verdict.passed, verdict.rules) == (True, ())  # dec run applies none
    serving = night.complete(promote, first, identity, verdict)
    assert (serving.entry, serving.champion.model.model_id) == (1, shipped.model_id)

    assigned = night.complete(assign, manifest, serving.champion)
    assert assigned.rows == assigned.rows_in == 600
    assert assigned.cluster_rows == model.updates[-1].cluster_rows
    assert assigned.scores is not None
    assert assigned.scores.rows == 600
    assert not (lake / "snapshots").exists()  # staged, not visible

    snapshot = night.complete(publish, serving, assigned)
    assert snapshot.number == 1
    rows = published(lake, "2026-01-31")
    assert sorted(rows["id"].to_pylist()) == list(range(600))

    # What was written is what the model on disk says, computed here from the raw rows.
    loaded = load_model(context.lake, shipped, config)
    import torch

    with torch.no_grad():
        q = loaded.clusters(loaded.scaler(torch.from_numpy(x))).double().numpy()
    by_id = rows.sort_by("id")
    np.testing.assert_array_equal(by_id["cluster_id"].to_numpy(), q.argmax(axis=1))
    np.testing.assert_allclose(by_id["confidence"].to_numpy(), q.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(by_id["confidence_2"].to_numpy(), np.sort(q)[:, -2], atol=1e-5)
    np.testing.assert_array_equal(by_id["cluster_id_2"].to_numpy(), q.argsort(axis=1)[:, -2])


def test_running_again_does_no_work_twice(config: Config, context: Context, tmp_path: Path) -> None:
    first = run(Execution(config, context))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file()}
    again = run(Execution(config, Context("test", "2026-01-31", context.lake)))
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*") if p.is_file()} == files


def test_a_changed_setting_redoes_only_what_depends_on_it(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    run(Execution(config_of(settings), context))
    markers = tmp_path / "lake/runs/test/stages"
    named = assignment_files(context.lake)
    (listing,) = markers.glob("assign/files-*.json")
    content = listing.read_bytes()
    before = {path.parent.name: path.stat().st_mtime_ns for path in markers.glob("*/done.json")}
    settings["refine"] = {**settings["refine"], "learning_rate": 2e-3}
    run(Execution(config_of(settings), Context("test", "2026-01-31", context.lake)))
    after = {path.parent.name: path.stat().st_mtime_ns for path in markers.glob("*/done.json")}
    redone = {name for name in after if after[name] != before[name]}
    kept = {"pin", "sample", "pretrain", "init_centroids"}
    assert redone == {stage.name for stage in stages_of("refit")} - kept
    # What the first snapshot names is what it was.
    assert listing.read_bytes() == content
    assert all(Path(path).exists() for path in named)
    assert not set(assignment_files(context.lake)) & set(named)


def test_a_collapse_is_told_and_the_last_sound_state_is_published(
    settings: dict[str, Any], context: Context
) -> None:
    settings["refine"] = {**settings["refine"], "learning_rate": 1e30}
    settings["execution"] |= {"workers": 1}
    summary = run(Execution(config_of(settings), context))
    assert summary.refine_stopped_by == "collapse"
    taught, event = summary.refine_events
    assert taught.endswith("in teaching: back to the first partition, learning rate x 0.1")
    assert "is not finite" in event or "are not finite" in event
    assert event.endswith("back to update 5, which is the result")
    assert min(summary.cluster_rows) > 0
    # The state that was kept is the first partition, and the comparison says as much.
    assert summary.comparison is not None
    scores = {candidate.kind: candidate.separation for candidate in summary.comparison.candidates}
    assert scores["dec"] == pytest.approx(scores["merged"])


@pytest.mark.slow
def test_parts_that_are_there_are_kept_and_damaged_ones_replaced(
    settings: dict[str, Any], tmp_path: Path, context: Context
) -> None:
    write_shards(tmp_path / "wide", blobs(6000, width=64), shards=4, compression="none")
    settings["source"]["path"] = str(tmp_path / "wide")
    settings["execution"] |= {"target_slice_mib": 1}  # two slices
    first = run(Execution(config_of(settings), context))
    parts = sorted((tmp_path / "lake/runs/test/assignments").iterdir())
    assert len(parts) == 2
    content = parts[0].read_bytes()
    kept = parts[1].stat().st_mtime_ns
    parts[0].write_bytes(content[:-50])  # as a broken copy would leave it
    (tmp_path / "lake/runs/test/stages/assign/done.json").unlink()
    again = run(Execution(config_of(settings), Context("test", "2026-01-31", context.lake)))
    assert parts[0].read_bytes() == content
    assert parts[1].stat().st_mtime_ns == kept
    assert again.cluster_rows == first.cluster_rows


def test_a_shard_that_changed_under_the_run_is_named(
    config: Config, context: Context, table_folder: Path
) -> None:
    night = Execution(config, context)
    manifest = night.complete(pin)
    pq.write_table(blobs(150, seed=9), table_folder / "shard-1.parquet")
    with pytest.raises(InputError, match=r"shard-1.parquet changed since this run pinned it"):
        night.complete(sample, manifest)


@pytest.mark.parametrize("cache_mib", [0, 64])
def test_streamed_and_cached_passes_see_every_row_once(
    table_folder: Path, settings: dict[str, Any], context: Context, cache_mib: int
) -> None:
    from pipeline.input.feed import WorkerRows
    from pipeline.input.reading import Reader, pieces_of
    from pipeline.input.slices import training_share

    config = config_of(settings)
    manifest = Execution(config, context).complete(pin)
    pieces = training_share(pieces_of(manifest, context.lake), 0, 1, fit_rows=None, seed=0)

    def rows_of(shuffled: bool, pass_number: int, held_out: float = 0.0) -> np.ndarray:
        rows = WorkerRows(
            Reader.of(config, manifest, carry=False),
            pieces,
            total_rows=600,
            cache_bytes=cache_mib * 2**20,
            parallel_reads=2,
            seed=0,
            held_out_share=held_out,
            task_bytes=4096,  # several reading tasks,
            window_bytes=6000,  # and several windows, which end amid them
        )
        batches = list(rows.batches(pass_number, 64, shuffled=shuffled))
        assert all(len(batch) <= 64 for batch in batches)
        return np.concatenate([batch.numpy() for batch in batches])

    expected = blobs(600)["x"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    first, again, other = rows_of(True, 0), rows_of(True, 0), rows_of(True, 1)
    np.testing.assert_array_equal(first, again)  # same seed, same pass: same batches
    assert not np.array_equal(first, other)
    for seen in (first, other, rows_of(False, 0)):
        np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(expected, axis=0))
    learnt = {row.tobytes() for row in rows_of(True, 0, held_out=0.2)}
    assert learnt == {row.tobytes() for row in rows_of(False, 1, held_out=0.2)}
    everything = {row.tobytes() for row in expected}
    assert learnt < everything
    assert 0.1 < 1 - len(learnt) / len(everything) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("nulls", ["mean", "drop"])
def test_missing_values_are_replaced_or_dropped_by_rule(
    settings: dict[str, Any], context: Context, table_folder: Path, tmp_path: Path, nulls: str
) -> None:
    table = blobs(150, seed=3)
    x = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, 8).copy()
    x[5, 2], x[9, 0] = np.nan, np.inf
    vectors = pa.FixedSizeListArray.from_arrays(x.ravel(), 8)
    bad = pa.table(
        {
            "id": np.arange(5000, 5150),
            "x": pa.array([*vectors.to_pylist()[:149], None], vectors.type),
            "label": table["label"],
        }
    )
    pq.write_table(bad, table_folder / "shard-9.parquet")
    settings["source"]["nulls"] = nulls
    summary = run(Execution(config_of(settings), context))
    ids = sorted(published(tmp_path / "lake")["id"].to_pylist())
    everything = [*range(600), *range(5000, 5150)]
    gone = {5005, 5009, 5149} if nulls == "drop" else set()
    assert ids == [i for i in everything if i not in gone]
    assert (summary.rows_in, summary.rows_dropped) == (750, len(gone))
