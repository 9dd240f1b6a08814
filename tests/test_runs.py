"""Reading what a run has left: records that are there, missing, damaged, or of another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import PretrainedAutoencoder
from pipeline.artifacts.records import StoredFile
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.operations.locating import parts_of_run
from pipeline.runs import Marker, RunFolder
from pipeline.storage import Store


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(Store(str(tmp_path / "lake")), "r1")
    folder.lake.write_json("runs/r1/run.json", {"run_id": "r1", "ds": "d", "version": "9"})
    return folder


def mark(run: RunFolder, stage: str, artifact: dict[str, object]) -> None:
    marker = Marker(
        stage=stage, fingerprint="f", seconds=1, finished_at="now", artifact=artifact
    ).model_dump(mode="json")
    run.lake.write_json(run.stage_path(stage, "done.json"), marker)


def test_who_made_it(run: RunFolder) -> None:
    assert (run.path, run.ds, run.version) == ("runs/r1", "d", "9")
    nobody = RunFolder(run.lake, "r2")
    assert (nobody.ds, nobody.version) == (None, "")
    with pytest.raises(InputError, match=r"run r2 is not there; give one from .*lake/runs"):
        nobody.require()


def test_an_artifact(run: RunFolder) -> None:
    file = StoredFile(path="models/m/weights.safetensors", sha256="s", bytes=1)
    made = PretrainedAutoencoder(weights=file, losses=(0.5,), rows=2)
    mark(run, "pretrain", made.model_dump(mode="json"))
    assert run.artifact("pretrain", PretrainedAutoencoder) == made
    assert run.found("pretrain", PretrainedAutoencoder) == made
    assert run.found("pin", Manifest) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]"])
def test_a_damaged_marker_is_none(run: RunFolder, content: bytes) -> None:
    run.lake.write_bytes(run.stage_path("pin", "done.json"), content)
    assert run.marker("pin") is None
    with pytest.raises(InputError, match=r"stage pin of run r1 .*done.json cannot be read by this"):
        run.artifact("pin", Manifest)


def test_an_artifact_of_another_version_is_none(run: RunFolder) -> None:
    mark(run, "pin", {"what": "another version wrote"})
    assert run.marker("pin") is not None
    assert run.found("pin", Manifest) is None


def test_what_is_missing_is_named_with_the_command_that_makes_it(run: RunFolder) -> None:
    with pytest.raises(InputError) as error:
        parts_of_run(run.lake, "r1")
    for words in ("stage assign of run r1 is not complete", "`dec run`", "--run-id r1"):
        assert words in str(error.value)
    assert "explained" not in str(error.value)
    with pytest.raises(InputError, match="stage pin of run r1 is not complete"):
        run.artifact("pin", Manifest)
    with pytest.raises(InputError, match=r"metrics.json is not there; give a run that is complete"):
        run.read_summary()


def test_settings(run: RunFolder) -> None:
    with pytest.raises(FileNotFoundError):
        run.read_config()
    run.lake.write_bytes("runs/r1/config.yaml", b"{")
    with pytest.raises(ValueError, match="flow"):
        run.read_config()
    source = {"path": "in", "features": ["x"]}
    config = Config.model_validate({"source": source, "output": "out", "clusters": 2})
    run.lake.write_bytes("runs/r1/config.yaml", config.to_yaml().encode())
    assert run.read_config() == config
