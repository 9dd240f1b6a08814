"""``dec plan`` before a run: its table and its JSON, prices, and measured rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from challengers import WIDTH, Lake
from conftest import blobs, config_of, write_shards
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.commands.bill import notes_on_measuring
from pipeline.artifacts.records import fingerprint_of
from pipeline.bill.measuring import Measured
from pipeline.config import Config
from pipeline.engine import Context, Execution
from pipeline.lake.snapshots import Partition, publish
from pipeline.run import stages_of
from pipeline.stages.pin import pin
from pipeline.storage import Store, parquet_bytes

NAMES = ["run", *(stage.name for stage in stages_of("refit"))]


@pytest.fixture
def plan(tmp_path: Path, settings: dict[str, Any]) -> Any:
    """``dec plan`` in this process."""

    def show(*words: str) -> Result:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["plan", *words, str(path)])

    return show


def test_the_bill_of_a_cluster(plan: Any, settings: dict[str, Any]) -> None:
    settings["prices"] = {"cpu_core_hour": 1.0, "currency": "EUR"}
    words = ("--nodes", "4", "--cpus-per-node", "8", "--gpus-per-node", "1")
    result = plan("--json", *words)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["last_run"] is shown["measured"] is shown["typical"] is None
    bill = shown["estimate"]
    assert [stage["stage"] for stage in bill["stages"]] == NAMES
    cluster = bill["cluster"]
    assert (cluster["nodes"], cluster["cpus_per_node"], cluster["workers"]) == (4, 8, 1)
    assert bill["rates"] == "defaults, not measured here"
    assert bill["seconds"] == pytest.approx(sum(stage["seconds"] for stage in bill["stages"]))
    assert bill["money"]["total"] == pytest.approx(bill["seconds"] / 3600 * 32)
    for name in ("core_hours", "gpu_hours", "gets", "puts", "read_bytes", "memory_mib", "rows"):
        assert all(stage[name] >= 0 for stage in bill["stages"])
    text = plan(*words).stdout
    assert "4 × 8 CPUs and 1 GPUs, all paid for" in text
    assert "EUR" in text
    assert max(len(line.rstrip()) for line in text[text.index(" stage ") :].splitlines()) <= 88
    assert not Path(settings["output"]).exists()


def test_a_cluster_without_room(plan: Any, settings: dict[str, Any]) -> None:
    settings["execution"] = {"workers": 8, "cpus_per_worker": 4}
    result = plan("--nodes", "2", "--cpus-per-node", "16")
    assert result.exit_code == 2  # half a CPU is left for Ray Data
    assert "execution.workers=8 needs 32.5 CPUs" in result.stderr
    assert plan("--nodes", "3", "--cpus-per-node", "16").exit_code == 0


def test_prices_change_no_result(settings: dict[str, Any]) -> None:
    priced = Config.model_validate({**settings, "prices": {"gpu_hour": 2.0}})
    assert priced.result_settings() == Config.model_validate(settings).result_settings()


def test_measured_here(plan: Any, settings: dict[str, Any]) -> None:
    result = plan("--measure", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    measured, bill = shown["measured"], shown["estimate"]
    assert measured["rows"] == 600
    assert measured["left_out"] == {}
    stages = {"sample", "pretrain", "init_centroids", "refine", "evaluate", "assign"}
    assert set(measured["factors"]) == stages
    assert all(factor["work"] > 0 for factor in measured["factors"].values())
    assert all(rate > 0 for rate in measured["rows_per_second"].values())
    assert bill["rates"] == "measured here on 600 rows, defaults for the rest"
    assert bill["factors"] == measured["factors"]
    assert not Path(settings["output"]).exists()


def test_what_is_said_of_a_measurement() -> None:
    found = Measured(
        rows=500,
        threads=2,
        load=7.5,
        seconds=20.0,
        rows_per_second={"read": 50_000.0, "assign": 1234.5},
        factors={},
        left_out={"refine": "500 rows do not fill every cluster"},
    )
    assert notes_on_measuring(found) == [
        "measured read 50,000, assign 1,234 rows/s, on 2 threads",
        "note     other processes kept this machine busy (load 7.5 on 2 cores): the rates are what "
        "they left",
        "note     refine: not measured, 500 rows do not fill every cluster",
    ]


def test_the_bill_of_a_night(plan: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    settings["schedule"] = {"refit": {"every_days": 7}}
    first = json.loads(plan("--json", "--ds", "2026-01-31").stdout)
    night = {"ds": "2026-01-31", "action": "refit", "why": "there is no champion", "labelled": 1.0}
    assert first["night"] == night
    assert {"pretrain", "identify", "gate"} <= {s["stage"] for s in first["estimate"]["stages"]}
    # Once there is a champion, nobody need ask for a schedule.
    del settings["schedule"]
    folder = write_shards(tmp_path / "nights", blobs(600, width=WIDTH))
    settings["source"]["path"] = str(folder)
    settings["model"] = {"hidden": [2 * WIDTH], "embedding": WIDTH, "precision": "float32"}
    config = config_of(settings)
    context = Context("first", "2026-01-31", Store(settings["output"]), by_schedule=True)
    manifest = Execution(config, context).complete(pin)
    lake = Lake(config, context, manifest.features)
    fitted = {"settings": fingerprint_of(config.fit_settings())}
    champion = lake.champion(weights=lake.weights()).model_copy(update=fitted)
    lake.promoted(lake.identity(champion))
    # The first night promoted it, and ended before it published.
    assert json.loads(plan("--json").stdout)["night"]["ds"] == "2026-02-01"
    served = Partition(run_id="first", model_id=champion.model.model_id, rows=600, files="f")
    publish(context.lake, "2026-01-31", served, "first")
    (folder / "late.parquet").write_bytes(parquet_bytes(blobs(200, width=WIDTH)))
    second = json.loads(plan("--json").stdout)
    night = second["night"]
    assert (night["ds"], night["action"], night["labelled"]) == ("2026-02-01", "assign", 0.25)
    shown = {stage["stage"]: stage for stage in second["estimate"]["stages"]}
    assert not {"pretrain", "refine", "gate"} & set(shown)
    assert shown["assign"]["rows"] == 200
    assert (second["worker_mib"], second["typical"]) == (0, None)
    text = plan().stdout
    assert "about 25.0% of the rows are labelled" in text
    assert "to learn from" not in text
    # A week later it is fitted anew.
    late = json.loads(plan("--json", "--ds", "2026-02-07").stdout)
    assert late["night"]["action"] == "refit"
