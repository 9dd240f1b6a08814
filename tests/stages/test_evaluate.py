"""DEC against its baselines, and what is shipped, on a real Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, published, write_shards
from sklearn.metrics import adjusted_rand_score

from pipeline.artifacts.models import Candidate, Comparison
from pipeline.artifacts.summaries import Summary
from pipeline.engine import Context, Execution
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.entries import latest_entry
from pipeline.run import run
from pipeline.stages.fit.evaluate import margin_of

pytestmark = pytest.mark.usefixtures("ray_address")


def candidates(comparison: Comparison) -> dict[str, Candidate]:
    return {candidate.kind: candidate for candidate in comparison.candidates}


def redone(lake: Path, before: dict[str, int]) -> set[str]:
    return {name for name, when in stage_times(lake).items() if when != before[name]}


def stage_times(lake: Path) -> dict[str, int]:
    markers = (lake / "runs/test/stages").glob("*/done.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in markers}


def measured(kind: str, separation: float, empty: int = 0) -> Candidate:
    return Candidate(
        kind=kind,
        separation=separation,
        spaces=(),
        balance=1,
        empty_clusters=empty,
        stability=None,
        scores=None,
    )


@pytest.mark.parametrize(
    ("first", "second", "margin"),
    [
        (measured("dec", 3.92), measured("kmeans", 3.8), 0.12),
        (measured("kmeans", 0.801), measured("dec", 0.804), 0),  # the simpler of equals
        (measured("kmeans", 0.7), measured("dec", 0.8, empty=1), 0),  # no empty clusters
    ],
)
def test_the_margin_is_never_negative(first: Candidate, second: Candidate, margin: float) -> None:
    assert margin_of([first, second]) == margin


@pytest.fixture
def hidden_from_the_autoencoder(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Six groups that k-means sees, and an encoder too narrow for them, hardly trained."""
    random = np.random.default_rng(5)
    label = random.integers(0, 6, 1200)
    x = (6 * np.eye(6)[label] + random.normal(size=(1200, 6))).astype(np.float32)
    table = pa.table(
        {
            "id": np.arange(1200),
            "x": pa.FixedSizeListArray.from_arrays(x.ravel(), 6),
            "label": label,
        }
    )
    return {
        **settings,
        "source": {
            **settings["source"],
            "path": str(write_shards(tmp_path / "hidden", table)),
        },
        "clusters": 6,
        "model": {"hidden": [4], "embedding": 2, "precision": "float32"},
        "pretrain": {"passes": 1, "min_updates": 0, "learning_rate": 1e-6},
        "centroids": {"sample_rows": 1200, "restarts": 30, "iterations": 25},  # no local optimum
        "refine": {"passes": 0, "select": "dec"},
    }


def test_every_candidate_is_measured_in_every_space(
    settings: dict[str, Any], context: Context
) -> None:
    settings["centroids"] = {"sample_rows": 1000, "restarts": 10, "iterations": 10}
    comparison = run(Execution(config_of(settings), context)).comparison
    assert {c.kind for c in comparison.candidates} == {"kmeans", "autoencoder", "merged", "dec"}
    separations = [round(c.separation, 2) for c in comparison.candidates]
    assert separations == sorted(separations, reverse=True)
    assert comparison.winner == comparison.candidates[0].kind
    for candidate in comparison.candidates:
        assert [space.space for space in candidate.spaces] == [
            *("features", "pretrained"),
            *("taught", "refined"),
        ]
        assert all(-1 <= space.silhouette <= 1 for space in candidate.spaces)
        assert all(0 <= space.objective_ratio <= 1 for space in candidate.spaces)
        assert 0 < candidate.separation < 15
        assert candidate.scores is not None
        assert candidate.scores.rows == 600
    kmeans = candidates(comparison)["kmeans"]
    # Three well separated groups: k-means finds them, whichever half it sees.
    assert kmeans.scores is not None
    assert kmeans.scores.acc > 0.99
    # No edge crosses: ln of chance over half an edge of 6,000, and 1.5 · H of three even groups.
    assert kmeans.separation == pytest.approx(np.log(2 / 3 * 12_000) + 1.5 * np.log(3), abs=0.1)
    assert kmeans.stability == pytest.approx(1, abs=0.01)
    assert kmeans.balance > 0.99
    assert kmeans.empty_clusters == 0
    assert comparison.rows == 600
    assert comparison.restarts == 10
    assert comparison.held_out_rows == 0  # too small a table to spare any
    assert comparison.generalisation is None


@pytest.mark.slow
def test_generalisation_is_measured_on_rows_that_training_did_not_see(
    settings: dict[str, Any], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.input.slices._LEAST_ROWS_TO_HOLD_OUT", 0)
    settings["source"] = {**settings["source"], "held_out": 0.3}
    comparison = run(Execution(config_of(settings), context)).comparison
    assert 120 < comparison.held_out_rows < 240
    assert comparison.generalisation == pytest.approx(1, abs=0.3)  # rows of the same three groups


@pytest.mark.slow
def test_labels_decide_nothing(settings: dict[str, Any], context: Context) -> None:
    with_labels = run(Execution(config_of(settings), context)).comparison
    del settings["evaluate"]
    other = Context("other", context.ds, context.lake)
    without = run(Execution(config_of(settings), other)).comparison
    assert all(candidate.scores is None for candidate in without.candidates)
    unlabelled = [c.model_copy(update={"scores": None}) for c in with_labels.candidates]
    assert without.candidates == tuple(unlabelled)


@pytest.mark.slow
def test_auto_ships_kmeans_where_it_wins(
    hidden_from_the_autoencoder: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    settings = hidden_from_the_autoencoder
    lake = tmp_path / "lake"

    def summary() -> Summary:
        again = Context("test", context.ds, context.lake)
        return run(Execution(config_of(settings), again))

    dec = summary()
    assert dec.comparison.winner == "kmeans"  # and still:
    assert dec.shipped == "dec"
    truth = pq.read_table(tmp_path / "hidden").sort_by("id")["label"].to_numpy()

    def agreement() -> float:
        rows = published(lake, context.ds).sort_by("id")
        return adjusted_rand_score(truth, rows["cluster_id"].to_numpy())

    assert agreement() < 0.7
    before = stage_times(lake)
    settings["refine"] = {**settings["refine"], "select": "auto"}
    auto = summary()
    # Another choice among the same candidates: nothing is fitted again.
    assert redone(lake, before) == {
        *("decide", "select", "identify", "gate", "promote"),
        *("assign", "publish", "explain", "describe", "summary", "report"),
    }
    assert auto.shipped == "kmeans"
    assert auto.model_id != dec.model_id
    assert agreement() > 0.95
    assert auto.scores is not None
    assert auto.scores.ari > 0.95
    names = sorted(path.name for path in (lake / "models" / auto.model_id).iterdir())
    assert names == ["centroids.parquet", "config.yaml", "model_card.md", "scaler.parquet"]
    card = (lake / "models" / auto.model_id / "model_card.md").read_text()
    assert "k-means on scaled features, into 6 clusters" in card

    rows = published(lake, context.ds).sort_by("id")
    assert set(rows["model_id"].to_pylist()) == {auto.model_id}
    # By hand from the files: scaled rows, distances to the centroids, Student-t confidences.
    scaler = pq.read_table(lake / "models" / auto.model_id / "scaler.parquet")
    x = pq.read_table(tmp_path / "hidden").sort_by("id")["x"].combine_chunks()
    scaled = x.flatten().to_numpy().reshape(-1, 6) - scaler["offset"].to_numpy()
    scaled = scaled * scaler["factor"].to_numpy()
    file = pq.read_table(lake / "models" / auto.model_id / "centroids.parquet")
    centers = file["centroid"].combine_chunks().flatten().to_numpy().reshape(6, 6)
    squared = np.square(scaled[:, None] - centers).sum(axis=2)
    entry = latest_entry(context.lake)
    assert entry is not None
    ids = ClusterIds.of(context.lake, entry.champion.ids).cluster_id_K
    np.testing.assert_array_equal(rows["cluster_id"].to_numpy(), ids[squared.argmin(axis=1)])
    q = 1 / (1 + squared)
    q /= q.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rows["confidence"].to_numpy(), q.max(axis=1), atol=1e-5)
