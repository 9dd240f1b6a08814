"""The quickstart, as its config stands: the digits, clustered for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import published
from dec_command import Finished, in_its_own_process, in_this_process

from pipeline.lake.snapshots import assignment_files
from pipeline.schema import assignment_schema
from pipeline.storage import Store

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.yaml")
# k-means on the raw pixels, best of 20 starts.
KMEANS_ACC = 0.79


def run_digits(folder: Path, *words: str, run: Any = in_this_process, **named: Any) -> Finished:
    """Run the quickstart's config with its table and lake in this folder."""
    places = [f"source.path={folder}/digits", f"output={folder}/lake"]
    sets = [word for place in places for word in ("--set", place)]
    finished: Finished = run(folder, "run", *words, QUICKSTART, *sets, **named)
    return finished


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The quickstart's folder, and what it printed; on a Ray of its own, as on a new laptop."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run_digits(folder, "--json", "--run-id", "seed-0", run=in_its_own_process)


@pytest.fixture
def folder(finished: tuple[Path, Finished]) -> Path:
    return finished[0]


def test_the_quickstart_clusters_all_digits(finished: tuple[Path, Finished]) -> None:
    _, result = finished
    assert result.code == 0, result.err
    assert result.err == ""  # not a terminal: no progress, and nothing of Ray's
    summary = result.json
    assert summary["rows_in"] == summary["rows_out"] == 1797
    assert (summary["run_id"], summary["snapshot"]) == ("seed-0", 1)
    assert summary["scores"]["acc"] > KMEANS_ACC


@pytest.mark.slow
def test_the_default_config_beats_kmeans_for_other_seeds(ray_address: str, tmp_path: Path) -> None:
    scores = []
    for seed in (1, 2):
        words = ("--json", "--run-id", f"seed-{seed}", "--set", f"seed={seed}")
        result = run_digits(tmp_path, *words)
        assert result.code == 0, result.err
        scores.append(result.json["scores"]["acc"])
        assert result.json["snapshot"] == seed
    assert sum(scores) / len(scores) > KMEANS_ACC
    # The newest run of this ds, alone.
    assert set(published(tmp_path / "lake")["run_id"].to_pylist()) == {"seed-2"}


def test_every_key_is_there_once_with_a_valid_cluster(folder: Path) -> None:
    rows = published(folder / "lake")
    assert sorted(rows["id"].to_pylist()) == list(range(1797))
    assert set(rows["cluster_id"].to_pylist()) == set(range(10))
    for name in ("confidence", "confidence_2"):
        values = rows[name].to_numpy()
        assert (values > 0).all()
        assert (values <= 1).all()
    assert (rows["confidence"].to_numpy() >= rows["confidence_2"].to_numpy()).all()
    assert (rows["cluster_id"].to_numpy() != rows["cluster_id_2"].to_numpy()).all()
    assert (rows["distance"].to_numpy() >= 0).all()
    assert set(rows["run_id"].to_pylist()) == {"seed-0"}


def test_the_published_schema(folder: Path) -> None:
    (path,) = assignment_files(Store(str(folder / "lake")))
    schema = pq.read_schema(path).remove_metadata()
    assert schema == assignment_schema(schema, ["id"])
    clusters = pq.read_table(path)["cluster_id"].to_numpy()
    assert (clusters[:-1] <= clusters[1:]).all()  # sorted, so that engines can skip row groups


def test_duckdb_and_polars_read_what_was_published(folder: Path) -> None:
    files = assignment_files(Store(str(folder / "lake")))
    by_duckdb = duckdb.sql(
        f"select cluster_id, count(*) from read_parquet({files}) group by all order by all"
    ).fetchall()
    table = pl.read_parquet(files)
    by_polars = table.group_by("cluster_id").len().sort("cluster_id").rows()
    assert by_duckdb == by_polars
    assert sum(rows for _, rows in by_polars) == 1797


def test_the_same_run_id_again_does_no_work_twice(folder: Path) -> None:
    def files() -> dict[Path, int]:
        found = (path for path in (folder / "lake").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in found if "logs" not in path.parts}

    before = files()
    # With a cluster that does not exist: a complete run must not even look for it.
    nowhere = {"RAY_ADDRESS": "127.0.0.1:1"}
    words = ("--json", "--run-id", "seed-0")
    result = run_digits(folder, *words, run=in_its_own_process, env=nowhere)
    assert result.code == 0, result.err
    assert result.json["run_id"] == "seed-0"
    assert files() == before


def test_a_published_run_id_is_not_reused_for_other_settings(folder: Path) -> None:
    result = run_digits(folder, "--run-id", "seed-0", "--set", "refine.alpha=2")
    assert result.code == 2
    assert "run seed-0 is published with other settings (refine.alpha)" in result.err


def test_a_published_run_may_be_explained_otherwise(folder: Path, ray_address: str) -> None:
    path = folder / "lake/runs/seed-0/config.yaml"
    before = path.read_text()
    older = {name: part for name, part in yaml.safe_load(before).items() if name != "explain"}
    path.write_text(yaml.safe_dump(older))  # as a version left it that explained nothing
    try:
        words = ("--json", "--run-id", "seed-0")
        again = run_digits(folder, *words, "--set", "explain.tree_depth=3")
        other = run_digits(folder, *words, "--set", "explain.columns=[label]")
    finally:
        path.write_text(before)
    assert again.code == 0, again.err
    described = json.loads((folder / "lake/runs/seed-0/stages/describe/done.json").read_text())
    rules = pq.read_table(folder / "lake" / described["artifact"]["rules"]["path"])
    assert 1 < len(rules) <= 2**3, again.err
    assert other.code == 2
    assert "published with other settings (explain.columns)" in other.err


def test_the_closing_table(folder: Path) -> None:
    result = run_digits(folder, "--run-id", "seed-0")
    assert result.code == 0
    for words in (
        "1,797 in, 1,797 out",
        "ACC 0.",
        "label change",
        "pretrain",
        "Shipped",
        "snapshots/",
    ):
        assert words in result.out


def test_no_pickle_and_no_foreign_words_in_what_a_run_leaves(folder: Path) -> None:
    suffixes = {path.suffix for path in (folder / "lake").rglob("*") if path.is_file()}
    assert suffixes - {""} == {
        *(".json", ".yaml", ".parquet", ".safetensors", ".md", ".log"),
        ".html",
    }
