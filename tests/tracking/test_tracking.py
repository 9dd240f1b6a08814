"""MLflow, TensorBoard and OpenLineage, each asked by its own means what it was told."""

from __future__ import annotations

import json
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import Dec
from jsonschema import Draft202012Validator

from jobs.tracking import final_figures, final_tags
from jobs.tracking.openlineage import dataset_name
from pipeline.artifacts.summaries import StageTime, Summary
from pipeline.errors import ConfigError, NumericalError

DS = "2026-01-31"

# What the OpenLineage specification asks of every event and facet, as far as ours have it.
FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {
            "_producer": {"pattern": "^urn:dec-pipeline:"},
            "_schemaURL": {"pattern": "^https://openlineage.io/spec/facets/"},
        },
    },
}
DATASETS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["namespace", "name"],
        "properties": {
            "namespace": {"type": "string"},
            "name": {"type": "string"},
            **dict.fromkeys(("facets", "inputFacets", "outputFacets"), FACETS),
        },
    },
}
EVENT = {
    "type": "object",
    "required": ["run", "job", "eventTime", "eventType", "producer", "schemaURL"],
    "properties": {
        "eventType": {"enum": ["START", "COMPLETE", "ABORT", "FAIL"]},
        "eventTime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT[\d:.]+\+00:00$"},
        "producer": {"pattern": "^urn:dec-pipeline:"},
        "schemaURL": {"pattern": "^https://openlineage.io/spec/.*RunEvent$"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string"}, "facets": FACETS},
        },
        "job": {
            "type": "object",
            "required": ["namespace", "name"],
            "properties": {"facets": FACETS},
        },
        "inputs": DATASETS,
        "outputs": DATASETS,
    },
}


@pytest.fixture
def track(tmp_path: Path) -> dict[str, Any]:
    return {
        "mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "tensorboard": str(tmp_path / "boards"),
        "openlineage": {"to": str(tmp_path / "lineage.jsonl"), "job": "clusters"},
    }


@pytest.mark.slow
def test_a_run_that_fails_and_goes_on_is_one_run_everywhere(
    settings: dict[str, Any], track: dict[str, Any], ray_address: str, tmp_path: Path, dec: Dec
) -> None:
    words = ("run", "--run-id", "night", "--ds", DS)
    env = {"RAY_ADDRESS": ray_address}
    wrong = settings | {"pretrain": {"passes": 2, "learning_rate": 1e30}, "track": track}
    result = dec(*words, settings=wrong, env=env)
    assert result.code == NumericalError.exit_code, result.err
    assert len(result.err.splitlines()) == 1
    of_mlflow(track, "FAILED")
    result = dec(*words, settings=settings | {"track": track}, env=env)
    assert result.code == 0, result.err
    assert result.err == ""
    metrics = json.loads((tmp_path / "lake/runs/night/metrics.json").read_text())

    run = of_mlflow(track, "FINISHED")
    assert run.data.tags["run_id"] == "night"
    assert run.data.tags["ds"] == DS
    assert run.data.tags["model_id"] == metrics["model_id"]
    assert run.data.tags["snapshot"] == "1"
    assert run.data.tags["error_kind"] == ""
    assert run.data.params["clusters"] == "3"
    assert run.data.params["execution.workers"] == "1"
    history = steps_of_mlflow(track, run, "pretrain/loss")
    assert sorted(history) == [1, 2]
    assert history[2] == pytest.approx(metrics["pretrain_loss"])
    assert run.data.metrics["refine/kl"] == pytest.approx(metrics["kl"])
    assert run.data.metrics["run/rows"] == 600
    for candidate in metrics["comparison"]["candidates"]:
        told = run.data.metrics[f"{candidate['kind']}/separation"]
        assert told == pytest.approx(candidate["separation"])

    scalars = of_tensorboard(track)
    assert dict(scalars["pretrain/loss"]) == pytest.approx(history)
    updates = [step for step, _ in scalars["refine/label_change"]]
    before = updates[0] - 1  # passes that taught, and the first partition
    assert updates == [before + n for n in range(1, metrics["refine_updates"] + 1)]
    assert scalars["dec/ari"][0][1] == pytest.approx(run.data.metrics["dec/ari"])

    check_lineage(Path(track["openlineage"]["to"]), settings, metrics)

    # A complete run is shown again, and nobody is told of it.
    before = Path(track["openlineage"]["to"]).read_text()
    assert dec(*words, settings=settings | {"track": track}, env=env).code == 0
    assert Path(track["openlineage"]["to"]).read_text() == before


def check_lineage(path: Path, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Two attempts, the first of which failed."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        Draft202012Validator(EVENT).validate(event)
        assert event["job"]["name"] == "clusters"
        assert event["run"]["facets"]["nominalTime"]["nominalStartTime"] == f"{DS}T00:00:00Z"
    assert [event["eventType"] for event in events] == ["START", "FAIL", "START", "COMPLETE"]
    runs = [uuid.UUID(event["run"]["runId"]) for event in events]
    assert runs[0] == runs[1] != runs[2] == runs[3]
    message = events[1]["run"]["facets"]["errorMessage"]["message"]
    assert message.startswith("NumericalError in pretrain: ")

    (read,), (written,) = events[3]["inputs"], events[3]["outputs"]
    assert (read["namespace"], read["name"]) == ("file", settings["source"]["path"])
    types = {field["name"]: field["type"] for field in read["facets"]["schema"]["fields"]}
    assert types == {"x": "float32[8]", "id": "int64", "label": "int16"}
    assert read["inputFacets"]["inputStatistics"]["rowCount"] == 600
    assert (written["namespace"], written["name"]) == ("file", settings["output"])
    names = [field["name"] for field in written["facets"]["schema"]["fields"]]
    assert names[:3] == ["id", "cluster_id", "confidence"]
    statistics = written["outputFacets"]["outputStatistics"]
    files = list(Path(settings["output"], metrics["assignments"]).iterdir())
    assert statistics["rowCount"] == 600
    assert statistics["fileCount"] == len(files)
    assert statistics["size"] == sum(file.stat().st_size for file in files)
    assert written["facets"]["version"]["datasetVersion"] == "1"


def of_mlflow(track: dict[str, Any], status: str) -> Any:
    """The one run that MLflow has."""
    (run,) = mlflow_client(track).search_runs(["1"])
    assert run.info.status == status
    return run


def steps_of_mlflow(track: dict[str, Any], run: Any, metric: str) -> dict[int, float]:
    """Each step's value, told once."""
    history = mlflow_client(track).get_metric_history(run.info.run_id, metric)
    values = {point.step: point.value for point in history}
    assert len(values) == len(history)
    return values


def mlflow_client(track: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient(track["mlflow"]["uri"])


def of_tensorboard(track: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Scalars by tag: step and value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(f"{track['tensorboard']}/night").Reload()
    return {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
    }


@pytest.mark.slow
def test_servers_that_are_away_are_one_note_each(settings: dict[str, Any], dec: Dec) -> None:
    nowhere = "http://127.0.0.1:1"
    track = {"mlflow": {"uri": nowhere}, "openlineage": {"to": nowhere}}
    result = dec("stage", "pin", settings=settings | {"track": track})
    assert result.code == 0
    notes = sorted(line.split(":")[:2] for line in result.err.splitlines())
    assert notes == [["note", " track.mlflow"], ["note", " track.openlineage"]]
    assert result.err.count("the run goes on without it") == 2


def test_a_package_that_is_missing_is_named_at_once(
    settings: dict[str, Any], tmp_path: Path, dec_process: Dec
) -> None:
    # A package without a client stands in front of the real one.
    (tmp_path / "first" / "openlineage").mkdir(parents=True)
    (tmp_path / "first" / "openlineage" / "__init__.py").touch()
    track = {"openlineage": {"to": "lineage.jsonl"}}
    path = f"{tmp_path / 'first'}:{Path(__file__).parents[2]}"
    result = dec_process("run", settings=settings | {"track": track}, env={"PYTHONPATH": path})
    assert result.code == ConfigError.exit_code
    (line,) = result.err.splitlines()
    assert line.endswith("run: pip install 'dec-pipeline[openlineage]'")
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("s3://bucket/nights/", ("s3://bucket", "nights")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("s3://bucket/nights/ds=*/part-*.parquet", ("s3://bucket", "nights")),
        ("/data/table", ("file", "/data/table")),
        ("/data/*.parquet", ("file", "/data")),
    ],
)
def test_datasets_are_named_by_the_rules_of_lineage(location: str, name: tuple[str, str]) -> None:
    assert dataset_name(location) == name


def test_a_night_without_a_fit_has_figures_of_its_own() -> None:
    night = Summary(
        run_id="r",
        ds=DS,
        action="assign",
        why="",
        refused=False,
        entry=1,
        champion="m-1",
        challenger=None,
        model_id="m-1",
        shipped="dec",
        snapshot=2,
        table=None,
        rows_in=10,
        rows_out=10,
        rows_dropped=0,
        rows_labelled=4,
        rows_carried=6,
        rows_quarantined=0,
        outliers=0,
        shards=2,
        features=3,
        clusters=1,
        cluster_ids=(5,),
        cluster_rows=(10,),
        mean_confidence=0.5,
        survived=0,
        split=0,
        merged=0,
        born=0,
        died=0,
        churn=None,
        max_psi=0.1,
        max_psi_feature="x[0]",
        scores=None,
        verdict=None,
        comparison=None,
        products=None,
        pretrain_passes=None,
        pretrain_loss=None,
        kmeans_objective=None,
        refine_updates=None,
        refine_stopped_by=None,
        refine_events=(),
        kl=None,
        label_change=None,
        choice=None,
        start=None,
        firmness=(),
        quarantined=(),
        estimate=None,
        output="o",
        assignments="a",
        model="m",
        stages=(StageTime(stage="pin", seconds=1.5),),
    )
    assert final_figures(night) == {
        "run/rows": 10,
        "run/mean_confidence": 0.5,
        "run/seconds": 1.5,
        "run/rows_labelled": 4,
        "run/rows_carried": 6,
        "run/max_psi": 0.1,
        "run/refused": 0,
    }
    assert final_tags(night)["action"] == "assign"
