"""Permanent ids of real models on real samples; all but one test without Ray, as its task works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import blobs, config_of

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Identity, NightDecision, Reference
from pipeline.clustering.drift import bin_counts
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.input.samples import FEATURES, HELD_OUT
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.scaling import Scaler
from pipeline.registry.entries import CLUSTER_SCHEMA, TRANSITION_SCHEMA, append, latest_entry
from pipeline.registry.models import centroids_bytes, scaler_bytes, store_model, weights_bytes
from pipeline.registry.reference import load_bins
from pipeline.stages.fit import identify as stage
from pipeline.stages.pin import pin
from pipeline.storage import Store

WIDTH = 8
CENTERS = np.array([-4.0, 0.0, 4.0])  # of the blobs, in every feature


@pytest.fixture
def config(settings: dict[str, Any]) -> Config:
    return config_of(settings)


@pytest.fixture
def manifest(config: Config, context: Context) -> Manifest:
    return pin.run(config, context)


def sampled(
    context: Context, manifest: Manifest, table: pa.Table, name: str, parts: int = 2
) -> Sample:
    """A sample of these rows, as the stage ``sample`` leaves one."""
    stored, step = [], -(-len(table) // parts)
    rows = table.select(["id"]).append_column(FEATURES, table["x"])
    rows = rows.append_column(HELD_OUT, pa.array(np.zeros(len(table), bool)))
    for part in range(parts):
        path = f"samples/{name}-{part}.parquet"
        context.lake.write_table(path, rows.slice(part * step, step))
        content = context.lake.read_bytes(path)
        stored.append(context.store(path, content))
    return Sample(
        parts=tuple(stored),
        rows=len(table),
        scanned_rows=len(table),
        missing_values=0,
        scaler=context.store(f"samples/{name}-scaler.parquet", scaler_bytes(*unscaled(manifest))),
        scaling="none",
    )


def unscaled(manifest: Manifest, factor: float = 1.0) -> tuple[Scaler, Any]:
    zeros, factors = np.zeros(WIDTH), np.full(WIDTH, factor)
    return Scaler("standard", zeros, zeros, factors), manifest.features


def kmeans_model(
    config: Config, context: Context, manifest: Manifest, at: list[float], factor: float = 1.0
) -> ClusteringModel:
    """k-means without an encoder whose centroids have these values in every feature."""
    centroids_KD = np.repeat(np.array(at)[:, None], WIDTH, axis=1).astype(np.float32)
    return store_model(
        config,
        context,
        "kmeans",
        weights=None,
        centroids=centroids_bytes(centroids_KD * np.float32(factor)),
        scaler=scaler_bytes(*unscaled(manifest, factor)),
        scaling="standard",
    )


FIRST = NightDecision(action="refit", why="first", entry=0, champion=None, usable=False)


def night(
    config: Config,
    context: Context,
    decision: NightDecision,
    manifest: Manifest,
    sample: Sample,
    model: ClusteringModel,
    ds: str = "2026-01-31",
) -> Identity:
    return stage._identify(
        *(config, context.lake, decision, manifest, sample, model), ds=ds, run_id="test"
    )


def champion_of(
    lake: Store,
    found: Identity,
    model: ClusteringModel,
    sample: Sample,
    manifest: Manifest,
    **changes: Any,
) -> NightDecision:
    """Let it serve, and decide for a refit the next night."""
    champion = Champion(
        model=model,
        run_id="test",
        ds="2026-01-31",
        refit_ds="2026-01-31",
        ids=found.challenger.ids,
        reference=Reference(
            sample=sample, features=manifest.features, bins=found.challenger.reference.bins
        ),
        settings="0",
    )
    entry = latest_entry(lake)
    entry = append(
        lake,
        entry.number if entry else 0,
        action="promote",
        commit_id=found.clusters.sha256,
        who="run test",
        reason="refit",
        champion=champion,
        clusters=found.clusters,
        transitions=(found.transitions,),
    )
    decision = NightDecision(
        action="refit", why="again", entry=entry.number, champion=champion, usable=True
    )
    return decision.model_copy(update=changes)


def ids_of(lake: Store, found: Identity) -> list[int]:
    table = lake.read_table(found.challenger.ids.path)
    assert table["position"].to_pylist() == list(range(len(table)))
    return list(table["cluster_id"].to_pylist())


def test_first_night(config: Config, context: Context, manifest: Manifest) -> None:
    table = blobs(600)
    sample = sampled(context, manifest, table, "first")
    model = kmeans_model(config, context, manifest, [4, 0, -4])
    found = night(config, context, FIRST, manifest, sample, model)
    lake = context.lake

    assert ids_of(lake, found) == [0, 1, 2]
    assert (found.born, found.survived, found.died, found.churn) == (3, 0, 0, None)
    label = table["label"].to_numpy()
    x = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    clusters = lake.read_table(found.clusters.path)
    assert clusters.schema == CLUSTER_SCHEMA
    for cluster_id, center in enumerate([4, 0, -4]):
        cluster = clusters.slice(cluster_id, 1).to_pylist()[0]
        blob = int(np.flatnonzero(center == CENTERS)[0])
        assert cluster["size"] == (label == blob).sum()
        assert cluster["centroid"] == [center] * WIDTH
        nearest = np.argsort(np.linalg.norm(x - center, axis=1))[:5]
        assert cluster["exemplars"] == [f'{{"id": {row}}}' for row in nearest]
        assert (cluster["born"], cluster["died"], cluster["parents"]) == ("2026-01-31", None, [])

    transitions = lake.read_table(found.transitions.path)
    assert transitions.schema == TRANSITION_SCHEMA
    assert set(transitions["kind"].to_pylist()) == {"birth"}
    assert lake.read_table(found.challenger.ids.path)["most_distance"].to_pylist() == [np.inf] * 3
    edges_FB, rows_FB = load_bins(lake, found.challenger.reference.bins)
    assert edges_FB.shape == (WIDTH, 9)
    np.testing.assert_array_equal(rows_FB, bin_counts(x, edges_FB))


def test_permuted_model_with_a_scaler_of_its_own(
    config: Config, context: Context, manifest: Manifest
) -> None:
    first = sampled(context, manifest, blobs(600), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    found = night(config, context, FIRST, manifest, first, model)
    decision = champion_of(context.lake, found, model, first, manifest)

    tonight = sampled(context, manifest, blobs(500, seed=1), "second")
    other = kmeans_model(config, context, manifest, [4, -4, 0], factor=0.1)
    again = night(config, context, decision, manifest, tonight, other, "2026-02-01")
    assert ids_of(context.lake, again) == [2, 0, 1]
    assert (again.survived, again.born, again.died, again.churn) == (3, 0, 0, 0.0)
    clusters = context.lake.read_table(again.clusters.path).to_pylist()
    assert [c["born"] for c in clusters] == ["2026-01-31"] * 3
    assert [c["model_id"] for c in clusters] == [other.model_id] * 3
    assert sum(c["size"] for c in clusters) == 500


def test_an_encoder_after_k_means_and_back(
    settings: dict[str, Any], config: Config, context: Context, manifest: Manifest
) -> None:
    """Each model is loaded with the settings that it was fitted with."""
    first = sampled(context, manifest, blobs(600), "first")
    network = Autoencoder(WIDTH, (16,), 3, seed=1)
    x = torch.from_numpy(np.repeat(CENTERS[:, None], WIDTH, axis=1).astype(np.float32))
    with torch.no_grad():
        centroids_KD = network.encoder(x).numpy()
    narrow = config_of(settings | {"model": {"hidden": [16], "embedding": 3}})
    encoding = store_model(
        narrow,
        context,
        "dec",
        weights=weights_bytes(network),
        centroids=centroids_bytes(centroids_KD),
        scaler=scaler_bytes(*unscaled(manifest)),
        scaling="standard",
    )
    found = night(narrow, context, FIRST, manifest, first, encoding)
    decision = champion_of(context.lake, found, encoding, first, manifest)

    plain = kmeans_model(config, context, manifest, [0, 4, -4])
    second = night(config, context, decision, manifest, first, plain)
    assert ids_of(context.lake, second) == [1, 2, 0]
    decision = champion_of(context.lake, second, plain, first, manifest)
    third = night(narrow, context, decision, manifest, first, encoding)
    assert ids_of(context.lake, third) == [0, 1, 2]


def test_the_same_model_is_the_same_bytes(
    config: Config, context: Context, manifest: Manifest
) -> None:
    sample = sampled(context, manifest, blobs(600), "first")
    # No row is near 100.
    model = kmeans_model(config, context, manifest, [-4, 0, 4, 100])
    found = night(config, context, FIRST, manifest, sample, model)
    decision = champion_of(context.lake, found, model, sample, manifest)
    again = night(config, context, decision, manifest, sample, model, "2026-02-01")
    # So that the rows of the next night are the same bytes.
    assert again.challenger.ids == found.challenger.ids
    assert again.clusters == found.clusters
    assert (again.survived, again.churn) == (4, 0.0)


def without_cluster(table: pa.Table, label: int) -> pa.Table:
    return table.filter(pa.array(table["label"].to_numpy() != label))


def transitions_of(lake: Store, found: Identity) -> list[tuple[Any, ...]]:
    rows = lake.read_table(found.transitions.path).to_pylist()
    return [(row["kind"], row["from_id"], row["to_id"]) for row in rows]


def test_a_class_that_vanishes(config: Config, context: Context, manifest: Manifest) -> None:
    first = sampled(context, manifest, blobs(900), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    found = night(config, context, FIRST, manifest, first, model)
    decision = champion_of(context.lake, found, model, first, manifest)
    tonight = sampled(context, manifest, without_cluster(blobs(900, seed=1), 0), "second")
    # The new model puts what it never saw, the rows at -4, with those at 0.
    other = kmeans_model(config, context, manifest, [4, 0])
    again = night(config, context, decision, manifest, tonight, other, "2026-02-01")
    assert ids_of(context.lake, again) == [2, 1]
    assert transitions_of(context.lake, again) == [
        ("survival", 1, 1),
        ("survival", 2, 2),
        ("death", 0, None),
    ]
    gone = context.lake.read_table(again.clusters.path).to_pylist()[0]
    assert (gone["cluster_id"], gone["died"]) == (0, "2026-02-01")


def test_a_class_that_appears(config: Config, context: Context, manifest: Manifest) -> None:
    first = sampled(context, manifest, without_cluster(blobs(900), 0), "first")
    model = kmeans_model(config, context, manifest, [0, 4])
    found = night(config, context, FIRST, manifest, first, model)
    decision = champion_of(context.lake, found, model, first, manifest)
    tonight = sampled(context, manifest, blobs(900, seed=1), "second")
    # The old model puts what it never saw with the rows at 0.
    other = kmeans_model(config, context, manifest, [-4, 0, 4])
    again = night(config, context, decision, manifest, tonight, other, "2026-02-01")
    assert ids_of(context.lake, again) == [2, 0, 1]
    assert transitions_of(context.lake, again) == [
        ("survival", 0, 0),
        ("survival", 1, 1),
        ("birth", None, 2),
    ]


def test_champion_of_other_features(config: Config, context: Context, manifest: Manifest) -> None:
    sample = sampled(context, manifest, blobs(600), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    found = night(config, context, FIRST, manifest, sample, model)
    decision = champion_of(context.lake, found, model, sample, manifest, usable=False)
    again = night(config, context, decision, manifest, sample, model, "2026-02-01")
    assert ids_of(context.lake, again) == [3, 4, 5]
    assert (again.survived, again.born, again.died, again.churn) == (0, 3, 3, None)
    clusters = context.lake.read_table(again.clusters.path)
    assert clusters["cluster_id"].to_pylist() == list(range(6))
    assert clusters["died"].to_pylist() == ["2026-02-01"] * 3 + [None] * 3


def test_ids_go_on_after_those_that_died(
    config: Config, context: Context, manifest: Manifest
) -> None:
    sample = sampled(context, manifest, blobs(600), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    found = night(config, context, FIRST, manifest, sample, model)
    decision = champion_of(context.lake, found, model, sample, manifest, usable=False)
    again = night(config, context, decision, manifest, sample, model, "2026-02-01")
    decision = champion_of(context.lake, again, model, sample, manifest)
    # Two of them go up in one; it is one of those that live.
    coarse = kmeans_model(config, context, manifest, [-2, 4])
    merged = night(config, context, decision, manifest, sample, coarse, "2026-02-02")
    assert (merged.merged, merged.died, merged.born) == (1, 1, 0)
    decision = champion_of(context.lake, merged, coarse, sample, manifest)
    fine = night(config, context, decision, manifest, sample, model, "2026-02-03")
    assert fine.split == fine.born == 1
    born = context.lake.read_table(fine.clusters.path).to_pylist()[-1]
    assert born["cluster_id"] == 6  # and not the one that ended in the merge
    assert born["parents"] == [ids_of(context.lake, merged)[0]]


def test_a_reference_sample_that_is_gone(
    config: Config, context: Context, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    first = sampled(context, manifest, blobs(600), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    found = night(config, context, FIRST, manifest, first, model)
    decision = champion_of(context.lake, found, model, first, manifest)
    context.lake.delete([part.path for part in first.parts])
    tonight = sampled(context, manifest, blobs(500, seed=1), "second")
    other = kmeans_model(config, context, manifest, [4, -4, 0])
    again = night(config, context, decision, manifest, tonight, other)
    assert ids_of(context.lake, again) == [2, 0, 1]
    assert "matched on tonight's sample alone" in caplog.text


def test_outliers_are_farther_than_most_of_the_sample(
    settings: dict[str, Any], context: Context, manifest: Manifest
) -> None:
    config = config_of(settings | {"assign": {"outliers": {"quantile": 0.9}}})
    table = blobs(600)
    sample = sampled(context, manifest, table, "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4, 100])
    found = night(config, context, FIRST, manifest, sample, model)
    most_K = context.lake.read_table(found.challenger.ids.path)["most_distance"].to_numpy()
    label = table["label"].to_numpy()
    x = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    distance_N = np.linalg.norm(x - CENTERS[label][:, None], axis=1)
    for cluster in range(3):
        own = distance_N[label == cluster]
        expected = np.quantile(own, 0.9, method="higher")
        assert most_K[cluster] == pytest.approx(expected, rel=1e-5)
        assert 0.05 < (own > most_K[cluster] + 1e-5).mean() <= 0.1
    assert most_K[3] == np.inf  # nothing is known of its distances


def test_no_key_columns(settings: dict[str, Any], context: Context) -> None:
    """The shard and the place in it stand in for keys, in the exemplars too."""
    settings["source"] = {"path": settings["source"]["path"], "features": ["x"]}
    keyless = config_of(settings)
    manifest = pin.run(keyless, context)
    table = blobs(600)
    sample = sampled(context, manifest, table, "first")
    for part in sample.parts:
        rows = context.lake.read_table(part.path)
        rows = rows.rename_columns({"id": "row_number"})
        shard = pa.repeat(pa.scalar("a.parquet"), len(rows))
        context.lake.write_table(part.path, rows.append_column("shard", shard))
    model = kmeans_model(keyless, context, manifest, [-4, 0, 4])
    found = night(keyless, context, FIRST, manifest, sample, model)
    exemplar = context.lake.read_table(found.clusters.path)["exemplars"][0][0].as_py()
    assert exemplar.startswith('{"shard": "a.parquet", "row_number": ')


# -------------------------------------------------------------------------------------- on Ray


@pytest.mark.usefixtures("ray_address")
def test_the_stage(config: Config, context: Context, manifest: Manifest) -> None:
    sample = sampled(context, manifest, blobs(600), "first")
    model = kmeans_model(config, context, manifest, [-4, 0, 4])
    first = stage.identify.run(config, context, FIRST, manifest, sample, model)
    champion = first.challenger
    assert (champion.run_id, champion.ds, champion.refit_ds) == ("test", "2026-01-31", "2026-01-31")
    assert champion.reference.sample == sample
    assert not context.lake.exists("registry/1.json")  # files, and nothing that names them

    entry = append(
        context.lake,
        0,
        action="promote",
        commit_id="a",
        who="run test",
        reason="first",
        champion=champion,
        clusters=first.clusters,
        transitions=(first.transitions,),
    )
    decision = NightDecision(
        action="refresh", why="a day", entry=entry.number, champion=champion, usable=True
    )
    later = Context(run_id="later", ds="2026-02-01", lake=context.lake)
    other = kmeans_model(config, later, manifest, [4, -4, 0])
    second = stage.identify.run(config, later, decision, manifest, sample, other)
    ids = context.lake.read_table(second.challenger.ids.path)["cluster_id"].to_pylist()
    assert ids == [2, 0, 1]
    assert (second.survived, second.churn) == (3, 0.0)
    # It goes on from what the last refit made.
    assert (second.challenger.ds, second.challenger.refit_ds) == ("2026-02-01", "2026-01-31")
    assert second.challenger.settings == champion.settings
