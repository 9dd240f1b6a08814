"""Typed columns through every stage, on a real Ray: penguins, and nights with unknown values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.mixed import by_prototypes, classes_of, light, penguins, scores_of
from conftest import SMALL, config_of, published, write_shards

from jobs.commands.inspection import make_plan
from pipeline.artifacts.explanations import Explanation
from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.config import Config
from pipeline.engine import Context, Execution
from pipeline.input.columns import category_codes
from pipeline.input.samples import sampled_features
from pipeline.model.channels import TypedScaler
from pipeline.registry.labels import assignments_of
from pipeline.registry.models import load_model, load_scaler, load_vocabulary
from pipeline.run import run
from pipeline.runs import Marker
from pipeline.stages.fit.sample import sample
from pipeline.stages.pin import pin
from pipeline.storage import Store
from pipeline.tuning.measures import measure
from pipeline.tuning.trials import TrialFolder, Tuning, rows_of

pytestmark = pytest.mark.usefixtures("ray_address")


def context_of(folder: Path, ds: str, *, nights: bool = False) -> Context:
    return Context(f"run-{ds}", ds, Store(str(folder / "lake")), by_schedule=nights)


@pytest.mark.slow
def test_penguins_of_four_kinds_of_columns(tmp_path: Path) -> None:
    table = light(penguins())
    rows = table.rows.append_column("id", pa.array(np.arange(len(table.rows))))
    write_shards(tmp_path / "penguins", rows, shards=3)
    config = config_of(
        {
            "source": {
                "path": str(tmp_path / "penguins"),
                "features": light(table).features,
                "keys": ["id"],
            },
            "output": str(tmp_path / "lake"),
            "clusters": 3,
            "evaluate": {"label": "label"},
            # Merged cells part penguins by island and sex, and lie further apart than species do.
            "model": {"hidden": [500, 500, 2000], "precision": "float32"},
            "centroids": {"start": "kmeans", "restarts": 5},
            "refine": {"select": "dec", "size_balance": 1.0},
            "embedding": {"metric": "none"},
            "execution": {"workers": 1},
        }
    )
    context = context_of(tmp_path, "2026-01-01")
    summary = run(Execution(config, context))
    assert summary.rows_out == 344
    assert summary.scores is not None
    prototypes = scores_of(table, by_prototypes(table, 0))
    assert len(classes_of(table)) == 344
    print(f"DEC {summary.scores}, k-prototypes {prototypes}")
    assert summary.scores.nmi > prototypes["nmi"] > 0.6
    # A constant prediction has 1: the columns were learnt, by whichever loss.
    assert summary.pretrain_loss < 0.5

    # A plan is for these rows too, and measures what they cost here.
    measured = make_plan(config, measure=True).measured
    assert measured is not None
    assert measured.rows_per_second.keys() >= {"read", "pretrain", "refine", "assign"}

    # Profiles speak in the values of the columns.
    assigned = published(tmp_path / "lake", "2026-01-01").select(["id", "cluster_id"])
    islands = assigned.join(rows.select(["id", "island"]), "id").to_pylist()
    profile = pq.read_table(tmp_path / "lake/cluster_profile/ds=2026-01-01/profile.parquet")
    told = [row for row in profile.to_pylist() if row["feature"] == "island"]
    assert {row["kind"] for row in told} == {"category"}
    assert {row["value"] for row in told} == {"Biscoe", "Dream", "Torgersen"}
    for row in told:
        mine = [r["island"] for r in islands if r["cluster_id"] == row["cluster_id"]]
        assert row["rows"] == len(mine)
        assert row["mean"] == pytest.approx(mine.count(row["value"]) / len(mine))
    explanation = left_by(context.lake, "2026-01-01", "explain", Explanation)
    kinds = {c.name: (c.kind, c.clustered) for c in explanation.columns}
    assert kinds["island"] == kinds["sex"] == ("category", True)
    assert explanation.left_out == ()

    # What was stored is all that it takes to label the same rows again.
    manifest = Execution(config, context).complete(pin)
    drawn = Execution(config, context).complete(sample, manifest)
    assert load_vocabulary(context.lake, drawn.scaler)["island"].keys() == set(
        category_codes(pa.array(["Biscoe", "Dream", "Torgersen"]))
    )
    model = next((tmp_path / "lake/models").iterdir()).name
    assert model == summary.model_id
    assert "`island` (category)" in (tmp_path / f"lake/models/{model}/model_card.md").read_text()
    assert not {path.suffix for path in (tmp_path / "lake/models").rglob("*.*")} & {".pt", ".pkl"}

    # `dec tune` fits them too, each column by its type.
    tuned = rows_of(
        Tuning(config, TrialFolder(context.lake, "t"), manifest, drawn, threads=1, gpus=0)
    )
    assert isinstance(tuned.typed, TypedScaler)
    assert tuned.space_NF.shape[1] == tuned.typed.width > manifest.width
    assert measure(config, tuned).nmi > 0.6


def colors(rows: int, words: list[str], *, seed: int, day: str) -> pa.Table:
    """Three groups that colour, a number and the hour of the day tell apart."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 3, rows)
    hour = group * 8 * 3600 + random.integers(0, 3600, rows)
    age = group * 4 + random.normal(size=rows)
    return pa.table(
        {
            "id": np.arange(rows) + seed * rows,
            "color": pa.array(np.array(words)[group], mask=random.random(rows) < 0.05),
            "age": pa.array(age, mask=random.random(rows) < 0.1),
            "when": pa.array(np.datetime64(day, "s") + hour, pa.timestamp("s")),
            "group": group,
        }
    )


FEATURES: list[Any] = ["color", {"column": "age"}, "when"]


def night_config(folder: Path, day: str, **schedule: Any) -> Config:
    return config_of(
        {
            "source": {"path": str(folder / day), "features": FEATURES, "keys": ["id"]},
            "output": str(folder / "lake"),
            "clusters": 3,
            "evaluate": {"label": "group"},
            **SMALL,
            "pretrain": {"passes": 30, "min_updates": 0},
            "schedule": schedule,
        }
    )


@pytest.mark.slow
def test_nights_with_values_that_the_champion_never_saw(tmp_path: Path) -> None:
    """In one test, because each goes on from the one before."""
    write_shards(tmp_path / "2026-01-05", colors(300, list("abc"), seed=1, day="2026-01-05"))
    config = night_config(tmp_path, "2026-01-05")
    context = context_of(tmp_path, "2026-01-05", nights=True)
    first = run(Execution(config, context))
    assert first.action == "refit"
    assert first.scores is not None
    assert first.scores.acc > 0.9

    # A new word for one group, half a year later: labelled by the others of its columns.
    later = colors(300, ["a", "b", "unknown"], seed=2, day="2026-07-07")
    write_shards(tmp_path / "2026-01-06", later)
    config = night_config(tmp_path, "2026-01-06")
    second = run(Execution(config, context_of(tmp_path, "2026-01-06", nights=True)))
    assert (second.action, second.champion) == ("assign", first.champion)
    assert second.scores is not None
    assert second.scores.acc > 0.8
    assert second.max_psi_feature != "when"  # the date moves every night
    rows = published(tmp_path / "lake", "2026-01-06")
    assert rows.num_rows == 300

    # A refit has words of its own; both models label both samples, and the clusters keep their ids.
    config = night_config(tmp_path, "2026-01-06", refit={"every_days": 1})
    third = run(Execution(config, context_of(tmp_path, "2026-01-07", nights=True)))
    assert third.action == "refit"
    assert third.churn is not None
    assert third.churn < 0.3

    # A few passes more keep the champion's words, whatever tonight's sample has.
    schedule = {"refit": {"every_days": None, "on_drift": False}}
    schedule["refresh"] = {"every_days": 1, "passes": 1}
    config = night_config(tmp_path, "2026-01-06", **schedule)
    fourth = run(Execution(config, context_of(tmp_path, "2026-01-08", nights=True)))
    assert (fourth.action, fourth.rows_out) == ("refresh", 300)
    lake = Store(str(tmp_path / "lake"))
    files = [left_by(lake, ds, "sample", Sample).scaler for ds in ("2026-01-05", "2026-01-07")]
    words = [set(load_vocabulary(lake, file)["color"].values()) for file in files]
    assert words == [{"a", "b", "c"}, {"a", "b", "unknown"}]


def left_by(lake: Store, ds: str, stage: str, kind: type[Any]) -> Any:
    """The artifact of a stage."""
    marker = Marker.model_validate(lake.read_json(f"runs/run-{ds}/stages/{stage}/done.json"))
    return kind.model_validate(marker.artifact)


def test_a_model_says_the_same_as_when_it_was_fitted(tmp_path: Path) -> None:
    write_shards(tmp_path / "2026-01-05", colors(200, list("abc"), seed=3, day="2026-01-05"))
    config = night_config(tmp_path, "2026-01-05")
    config = config.model_copy(
        update={"refine": config.refine.model_copy(update={"select": "auto"})}
    )
    context = context_of(tmp_path, "2026-01-05")
    execution = Execution(config, context)
    run(execution)
    manifest = Execution(config, context).complete(pin)
    drawn = Execution(config, context).complete(sample, manifest)
    model = left_by(context.lake, "2026-01-05", "select", ClusteringModel)
    loaded = load_model(context.lake, model, config)
    raw = torch.from_numpy(sampled_features(context.lake, drawn.parts))
    labels = assignments_of(loaded, raw)["cluster_id"]
    by_key = published(tmp_path / "lake").sort_by("id")["cluster_id"].to_numpy()
    assert sorted(labels) == sorted(by_key)
    scaler = load_scaler(context.lake, drawn.scaler)
    assert isinstance(scaler, TypedScaler)
    assert scaler.width == len(scaler.channels) > manifest.width
