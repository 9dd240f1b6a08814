"""``dec tune`` as a user runs it: in parallel on a real Ray, killed, resumed, its config used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL, Dec
from typer.testing import CliRunner

import pipeline
from jobs.cli import app
from pipeline.config import load_config
from pipeline.operations.forgetting import forget
from pipeline.operations.forgotten_keys import read_keys
from pipeline.storage import Store

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    **SMALL,
    "source": {"path": "digits/{ds}", "example": "digits", "features": ["x"], "keys": ["id"]},
    "output": "lake",
    "clusters": 10,
    "evaluate": {"label": "label"},
    # Two at a time on the four CPUs of the tests' Ray.
    "execution": {"workers": 1, "cpus_per_worker": 2},
}
Done = subprocess.CompletedProcess[str]
PLAIN = {**SETTINGS, "source": {**SETTINGS["source"], "path": "digits"}}
DS = ("--ds", "2026-01-31")
ASKED = ("--clusters", "5:12", "--rows", "400", "--run-id", "t", *DS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, in which one tuning after the other goes on."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def environment(ray_address: str) -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": ray_address, "COLUMNS": "120"}


@pytest.fixture(scope="module")
def killed(folder: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """The trials of a tuning that was killed when the first of them were done."""
    words = ["tune", "config.yaml", *ASKED, "--trials", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ended = time.monotonic() + 300
    while not (done := trials_in(folder)) and process.poll() is None and time.monotonic() < ended:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert done
    return done


def trials_in(folder: Path) -> dict[str, bytes]:
    paths = (folder / "lake/tuning/t/trials").glob("[!.]*.json")
    return {path.name: path.read_bytes() for path in paths}


def tune(folder: Path, environment: dict[str, str], *words: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "tune", "config.yaml", *ASKED, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def resumed(killed: dict[str, bytes], folder: Path, environment: dict[str, str]) -> Done:
    return tune(folder, environment, "--trials", "4")


def test_resumed_it_does_what_is_left(
    killed: dict[str, bytes], resumed: Done, folder: Path
) -> None:
    assert resumed.returncode == 0, resumed.stderr
    now = trials_in(folder)
    assert killed.items() <= now.items()  # not one of them was done again
    assert len(killed) < len(now) <= 4  # a suggestion may come twice, and is done once
    lines = resumed.stderr.splitlines()
    assert lines[0].startswith("tune: 4 trials on 400 rows, 5 to 12 clusters")
    assert any(line.startswith("tune: trial 4 of 4: ") for line in lines)
    assert all(line.startswith("tune: ") for line in lines)


def test_what_a_person_sees(resumed: Done, folder: Path) -> None:
    assert "best trial for each number of clusters" in resumed.stdout
    chosen = json.loads((folder / "lake/tuning/t/recommendation.json").read_text())["settings"]
    (marked,) = (line for line in resumed.stdout.splitlines() if line.rstrip().endswith("←"))
    assert marked.split()[0] == str(chosen["clusters"])
    assert max(map(len, resumed.stdout.split("trials that no other")[0].splitlines())) <= 80
    assert str(folder / "lake/tuning/t/recommended.yaml") in resumed.stdout


def test_what_it_leaves(resumed: Done, folder: Path) -> None:
    left = folder / "lake/tuning/t"
    table = pq.read_table(left / "trials.parquet")
    assert len(table) == len(trials_in(folder))
    assert table["recommended"].to_pylist().count(True) == 1
    assert all(5 <= k <= 12 for k in table["clusters"].to_pylist())
    assert all(0 < nmi < 1 for nmi in table["nmi"].to_pylist())
    picture = ET.parse(left / "curve.svg").getroot()
    assert picture.tag.endswith("svg")
    assert not [
        word for word in ("href", "script", "<image") if word in ET.tostring(picture, "unicode")
    ]
    assert not list((folder / "lake/tuning").rglob("*.pkl"))


def test_its_sample_is_known_to_forget_and_to_gc(resumed: Done, folder: Path) -> None:
    lake = Store(str(folder / "lake"))
    (part, *_) = sorted((folder / "lake/runs/t/stages/sample/reference").glob("*.parquet"))
    (folder / "keys.csv").write_text(f"id\n{pq.read_table(part)['id'][0].as_py()}\n")
    keys = read_keys(str(folder / "keys.csv"), ["id"])
    (count,) = forget(lake, keys, who="somebody", dry_run=True).counts
    assert (count.kind, count.rows) == ("reference sample", 1)
    assert lake.read_json("runs/t/run.json") == {
        "run_id": "t",
        "ds": "t",
        "version": pipeline.__version__,
    }


def test_the_recommended_config_is_the_old_one_but_for_what_was_searched(
    resumed: Done, folder: Path
) -> None:
    path = folder / "lake/tuning/t/recommended.yaml"
    found, before = load_config(str(path)), load_config(str(folder / "config.yaml"))
    chosen = json.loads((folder / "lake/tuning/t/recommendation.json").read_text())["settings"]
    assert (found.clusters, found.model.embedding) == (chosen["clusters"], chosen["embedding"])
    assert found.source.scaling == chosen["scaling"]
    assert found.refine.passes == chosen["refine_passes"]
    assert (found.pretrain, found.centroids) == (before.pretrain, before.centroids)
    assert found.source.features == before.source.features
    assert found.source.path == before.source.path == "digits/{ds}"  # of every date
    assert "# Best score " in path.read_text()


def test_asked_again_it_answers_at_once(
    resumed: Done, folder: Path, environment: dict[str, str]
) -> None:
    nowhere = {**environment, "RAY_ADDRESS": "127.0.0.1:1"}
    again = tune(folder, nowhere, "--trials", "4", "--json")
    assert again.returncode == 0, again.stderr  # without any Ray
    assert again.stderr == ""
    found = json.loads(again.stdout)
    assert found == json.loads((folder / "lake/tuning/t/recommendation.json").read_text())
    assert found["trials"] == len(trials_in(folder))


def test_the_recommended_config_runs(
    resumed: Done, folder: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", "lake/tuning/t/recommended.yaml", "--json", *DS],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows_out"] == 1797


def test_the_same_id_for_another_question(
    resumed: Done, folder: Path, environment: dict[str, str]
) -> None:
    other = tune(folder, environment, "--set", "pretrain.passes=3")
    assert other.returncode == 2
    assert "use another --run-id" in other.stderr.lower()


def test_the_id_of_a_run(resumed: Done, folder: Path, environment: dict[str, str]) -> None:
    run = folder / "lake/runs/a-night/run.json"
    run.parent.mkdir()
    run.write_text(json.dumps({"run_id": "a-night", "ds": "2026-01-31", "version": "0.1.0"}))
    other = tune(folder, environment, "--run-id", "a-night")
    assert other.returncode == 2
    assert "--run-id a-night is a run, not a tuning" in other.stderr
    assert [path.name for path in run.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--clusters", "1:0"], 2, "must be MIN:MAX"),
        (["--clusters", "5:21", "--rows", "400"], 2, "400 rows allow at most 20"),
        (["--run-id", "a/b"], 2, "--run-id"),
        (
            ["--set", "source.path=nowhere", "--set", "source.example=null"],
            3,
            "source.path=nowhere",
        ),
    ],
)
def test_what_cannot_be_tuned(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(PLAIN))
    result = CliRunner().invoke(app, ["tune", "config.yaml", *words])
    assert result.exit_code == code
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "lake").exists()


def test_a_table_with_too_few_rows(dec: Dec, ray_address: str) -> None:
    settings = {**PLAIN, "output": "lake"}
    words = ("tune", "--clusters", "5:100", "--rows", "5000")
    result = dec(*words, settings=settings, env={"RAY_ADDRESS": ray_address})
    assert result.code == 2
    assert "1,797 rows allow at most 89" in result.err
