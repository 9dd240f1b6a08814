"""Runs that go on under their id: after a kill, without their input, with foreign files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Dec, blobs, config_of, published
from dec_command import in_this_process
from faults.nights import Night

from jobs.arguments import default_run_id
from pipeline.engine import Context, Execution
from pipeline.errors import TransientError
from pipeline.input.pinning import list_shards
from pipeline.lake.snapshots import assignment_files
from pipeline.run import run
from pipeline.storage import Store

DS = "2026-01-31"


def test_a_run_that_goes_on_reads_its_own_folder_only(
    dec: Dec, settings: dict[str, Any], table_folder: Path, tmp_path: Path
) -> None:
    words = ("stage", "pin", "--run-id", "r")
    assert dec(*words, settings=settings).code == 0
    manifest = (tmp_path / "lake/runs/r/manifest.json").read_bytes()
    # Neither the input nor what other nights left is asked again.
    shutil.rmtree(table_folder)
    shutil.rmtree(tmp_path / "lake/footers")
    again = dec(*words, settings=settings)
    assert again.code == 0, again.err
    assert (tmp_path / "lake/runs/r/manifest.json").read_bytes() == manifest
    assert not (tmp_path / "lake/footers").exists()


def test_killed_amid_a_training_and_run_again(
    settings: dict[str, Any], ray_address: str, tmp_path: Path
) -> None:
    settings["pretrain"] = {"passes": 250, "min_updates": 0, "batch_rows": 32}  # some seconds
    settings["execution"] = {"workers": 1, "checkpoint_seconds": 1}
    night = Night(tmp_path / "night", settings, ray_address)
    night.start()
    night.wait_for(night.marker("pretrain").with_name("checkpoint.safetensors").exists)
    night.kill()
    sampled = night.marker("sample").stat().st_mtime_ns
    assert night.snapshots() == []
    result = in_this_process(night.folder, "run", "config.yaml", "--run-id", night.run_id)
    assert result.code == 0, result.err
    assert night.marker("sample").stat().st_mtime_ns == sampled  # what was complete is kept
    assert "resumes after pass" in night.logs()  # and of the training, what was saved
    assert night.rows()["id"].to_pylist() == list(range(600))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_address")
def test_late_shards_and_files_that_nothing_lists(
    settings: dict[str, Any], table_folder: Path
) -> None:
    config = config_of(settings)
    lake = Store(config.output)

    def ids() -> list[int]:
        found: list[int] = published(lake.url, DS)["id"].to_pylist()
        return sorted(found)

    def name() -> str:
        return default_run_id(config, DS, list_shards(config))

    # A part of other settings, somebody's notes, and what a killed writer left.
    folder = "runs/one/assignments"
    stale = pa.table({"id": range(600), "cluster_id": pa.array([0] * 600, pa.int32())})
    lake.write_table(f"{folder}/part-0123456789abcdef0123.parquet", stale)
    lake.write_bytes(f"{folder}/notes.txt", b"?")
    lake.write_bytes(f"{folder}/.{'0' * 32}.tmp", b"PAR1")
    junk = {file.name for file in lake.list(folder)}

    before = name()
    first = run(Execution(config, Context("one", DS, lake)))
    assert ids() == list(range(600))
    assert not junk & {path.rpartition("/")[2] for path in assignment_files(lake)}

    # A part is lost between assign and publish: nothing is published, and the next try heals it.
    lost = Path(assignment_files(lake)[0])
    content = lost.read_bytes()
    lost.unlink()
    lake.delete(["runs/one/stages/publish/done.json", "runs/one/stages/publish/attempt.json"])
    with pytest.raises(TransientError, match=f"1 of 1 part files are gone .*{lost.name}"):
        run(Execution(config, Context("one", DS, lake)))
    assert [file.name for file in lake.list("snapshots")] == ["1.json"]
    healed = run(Execution(config, Context("one", DS, lake)))
    assert (healed.rows_out, healed.cluster_rows) == (600, first.cluster_rows)
    assert lost.read_bytes() == content

    late = blobs(90, seed=5)
    late = late.set_column(0, "id", pa.array(range(5000, 5090)))
    pq.write_table(late, table_folder / "shard-late.parquet")
    # The same run id is what it was; the same command is another run.
    assert run(Execution(config, Context("one", DS, lake))) == healed
    assert ids() == list(range(600))
    assert name() != before
    second = run(Execution(config, Context(name(), DS, lake)))
    assert (second.rows_out, second.snapshot) == (690, 3)
    assert ids() == [*range(600), *range(5000, 5090)]
    assert first.rows_out == 600
