"""``dec explain`` and ``dec locate`` on a run whose clusters are known."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explained_runs import CENTROIDS, KnownRun, known_run
from typer.testing import CliRunner, Result

from jobs.cli import app
from pipeline.insight.explained_runs import explained_run
from pipeline.operations import locating
from pipeline.operations.locating import evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> KnownRun:
    found = known_run(tmp_path_factory.mktemp("known"))
    with pytest.MonkeyPatch.context() as patch:
        found.describe(patch)
    return found


def dec(run: KnownRun, name: str, *words: str, run_id: str = "known") -> Result:
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, [name, run.config_path, run_id, *words])


def shown(run: KnownRun, name: str, *words: str) -> str:
    result = dec(run, name, *words)
    assert result.exit_code == 0, result.output
    return result.output


def as_json(run: KnownRun, name: str, *words: str) -> Any:
    return json.loads(shown(run, name, *words, "--json"))


def error_of(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert "defect" not in line
    return line


# ---------------------------------------------------------------------------------------- explain


def test_all_clusters(run: KnownRun) -> None:
    text = shown(run, "explain")
    for words in (
        "low amount, low age",
        "high age, high amount",
        "agrees with the model on 100.0%",
    ):
        assert words in text
    found = as_json(run, "explain")
    assert found["fidelity"] == 1.0
    assert sum(c["rows"] for c in found["clusters"]) == 1200
    assert {c["cluster_id"]: c["rules"][0]["rule"] for c in found["clusters"]}[2] == "age > 45"
    assert all(c["top_features"][0]["feature"] in ("amount", "age") for c in found["clusters"])


def test_one_cluster(run: KnownRun) -> None:
    text = shown(run, "explain", "--cluster", "2")
    for words in (
        "cluster 2 high age, high amount",
        "age > 45",
        "central",
        "agrees with the model on 100.0%",
        "240 held-out rows",
    ):
        assert words in text, text
    found = as_json(run, "explain", "--cluster", "2")
    mine = run.group == 2
    ages = np.asarray(run.table["age"])
    (age,) = [row for row in found["features"] if row["feature"] == "age"]
    assert age["mean"] == pytest.approx(ages[mine].mean())
    assert age["difference"] == pytest.approx((ages[mine].mean() - ages[~mine].mean()) / ages.std())
    assert found["features"][0]["feature"] == "age"
    vector = [row["kind"] for row in found["features"] if row["feature"] == "v"]
    assert vector[0] == "vector"
    assert set(vector[1:]) == {"component"}
    assert len([e for e in found["exemplars"] if e["kind"] == "central"]) == 2
    for exemplar in found["exemplars"]:
        assert mine[exemplar["keys"]["id"] - 1000]


def test_one_against_another(run: KnownRun) -> None:
    text = shown(run, "explain", "--cluster", "0", "--versus", "1")
    assert "cluster 0 low amount, low age, against cluster 1 low age, high amount" in text
    assert "amount ≤ " in text
    found = as_json(run, "explain", "--cluster", "0", "--versus", "1")
    first = found["features"][0]
    amount = np.asarray(run.table["amount"])
    one, other = (amount[run.group == g] for g in (0, 1))
    variance = (len(one) * one.var() + len(other) * other.var()) / (len(one) + len(other))
    assert first["feature"] == "amount"
    assert first["difference"] == pytest.approx((one.mean() - other.mean()) / np.sqrt(variance))
    assert all(abs(f["difference"]) < 1 for f in found["features"][1:])
    tree = found["tree"]
    assert tree["fidelity"] == 1.0
    assert tree["held_out_rows"] + tree["fitted_rows"] == len(one) + len(other)
    assert [rule["rule"].split(" ")[0] for rule in tree["rules"]] == ["amount", "amount"]


def test_points_in_time_are_iso_8601(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"amount": "timestamp[us, tz=Europe/Berlin]", "age": "timestamp[s]"}
    monkeypatch.setattr("pipeline.insight.explained_runs.timestamp_columns", lambda _: times)
    amount = np.asarray(run.table["amount"])[run.group == 0]
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

    def seconds(text: str) -> float:
        return (datetime.datetime.fromisoformat(text) - start).total_seconds()

    one = as_json(run, "explain", "--cluster", "0")
    by_name = {(f["feature"], f["component"]): f for f in one["features"]}
    found = by_name["amount", None]
    assert seconds(found["mean"]) == pytest.approx(amount.mean(), abs=1e-3)
    assert seconds(found["p95"]) > seconds(found["p05"])
    assert found["std"] == pytest.approx(amount.std())
    assert by_name["age", None]["min"].startswith("1970-01-01T00:00:2")  # by its own clock: no zone
    assert "+" not in by_name["age", None]["min"]
    assert isinstance(by_name["v", 0]["mean"], float)
    conditions = [c for r in one["rules"] for c in r["conditions"] if c["feature"] == "amount"]
    assert {c["high"] for c in conditions} == {"1970-01-01T00:00:50+00:00"}
    every = as_json(run, "explain")["clusters"]
    traits = {(c["cluster_id"], t["feature"]): t["mean"] for c in every for t in c["top_features"]}
    assert seconds(traits[0, "amount"]) == pytest.approx(amount.mean(), abs=1e-3)
    two = as_json(run, "explain", "--cluster", "0", "--versus", "1")["features"]
    assert seconds(two[0]["mean"]) == pytest.approx(amount.mean(), abs=1e-3)
    (row,) = as_json(run, "locate", "--key", str(key_of(run, 0)))["rows"]
    value = run.table["amount"][key_of(run, 0) - 1000].as_py()
    assert seconds(row["evidence"][0]["value"]) == pytest.approx(value, abs=1e-3)
    assert row["evidence"][0]["weight"] > 10


def test_one_against_another_without_the_sample(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        run.describe(patch)
    run.lake.delete([run.sample.parts[0].path])
    text = shown(run, "explain", "--cluster", "0", "--versus", "1")
    assert "amount" in text
    assert "No rules: run known: sample or model" in text


@pytest.mark.parametrize(
    ("words", "run_id", "code", "said"),
    [
        (("--cluster", "9"), "known", 3, "has no cluster 9; it has 0, 1, 2"),
        (("--cluster", "0", "--versus", "9"), "known", 3, "has no cluster 9"),
        (("--versus", "1"), "known", 2, "give that one with --cluster"),
        (("--cluster", "1", "--versus", "1"), "known", 2, "give two clusters"),
        ((), "unknown", 3, "run unknown is not there"),
        ((), "../../etc", 2, "must be letters"),
    ],
)
def test_what_cannot_be_explained(
    words: tuple[str, ...], run_id: str, code: int, said: str, run: KnownRun
) -> None:
    assert said in error_of(dec(run, "explain", *words, run_id=run_id), code)


def test_a_run_of_an_earlier_version(run: KnownRun) -> None:
    run.lake.write_json("runs/older/run.json", {"run_id": "older", "ds": "2026-01-01"})
    for name, words in (("explain", ()), ("locate", ("--key", "1"))):
        line = error_of(dec(run, name, *words, run_id="older"), 3)
        assert "adds what is missing with --run-id older" in line


# ----------------------------------------------------------------------------------------- locate


def key_of(run: KnownRun, group: int) -> int:
    return int(np.flatnonzero(run.group == group)[0]) + 1000


def test_a_row_is_found_and_explained(run: KnownRun) -> None:
    key = key_of(run, 0)
    (found,) = as_json(run, "locate", "--key", f"id={key}")["rows"]
    assert found["keys"] == {"id": key}
    assert (found["row"]["cluster_id"], found["name"]) == (0, "low amount, low age")
    assert (found["row"]["cluster_id_2"], found["row"]["ds"]) == (1, "2026-01-31")
    assert found["why_no_features"] == ""
    first = found["evidence"][0]
    value = run.table["amount"][key - 1000].as_py()
    assert (first["feature"], first["value"]) == ("amount", value)
    amount = np.asarray(run.table["amount"])
    one, other = (amount[run.group == g] for g in (0, 1))
    spread = np.sqrt((len(one) * one.var() + len(other) * other.var()) / (len(one) + len(other)))
    assert first["away"] == pytest.approx(abs(value - one.mean()) / spread)
    assert first["other_away"] == pytest.approx(abs(value - other.mean()) / spread)
    assert first["weight"] > 10
    # Nearest exemplars: by hand, in the space of this model, which leaves rows as they are.
    rows = np.column_stack(
        [
            amount,
            run.table["age"],
            run.table["v"].combine_chunks().flatten().to_numpy().reshape(-1, 4),
        ]
    )
    away = [e["distance"] for e in found["near"]]
    assert away == sorted(away)
    for exemplar in found["near"]:
        apart = rows[exemplar["keys"]["id"] - 1000] - rows[key - 1000]
        assert exemplar["distance"] == pytest.approx(np.linalg.norm(apart), rel=1e-3)
    assert found["near"][0]["cluster_id"] == 0
    assert found["row"]["distance"] == pytest.approx(
        np.linalg.norm(rows[key - 1000] - CENTROIDS[0]), rel=1e-3
    )


def test_a_row_for_people(run: KnownRun) -> None:
    text = shown(run, "locate", "--key", str(key_of(run, 2)))
    for words in ("2 high age, high amount", "runner-up", "speaks for", "nearest exemplars", "age"):
        assert words in text


def test_why_no_exemplar_is_near(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    original = locating.read_exemplars

    def bare(*words: Any) -> pa.Table:
        table = original(*words)
        place = table.schema.get_field_index("features")
        nothing = pa.nulls(len(table), table.schema.field(place).type)
        return table.set_column(place, "features", nothing)

    key = str(key_of(run, 2))
    (found,) = as_json(run, "locate", "--key", key)["rows"]
    assert found["near"]
    assert found["why_none_near"] == ""
    monkeypatch.setattr(locating, "read_exemplars", bare)
    (found,) = as_json(run, "locate", "--key", key)["rows"]
    assert found["near"] == []
    assert "keys but not their features" in found["why_none_near"]
    assert f"No nearest exemplars: {found['why_none_near']}" in shown(run, "locate", "--key", key)


def test_only_row_groups_that_may_hold_the_key_are_read(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, Any]] = []
    original = pq.ParquetFile.read_row_group

    def watched(file: pq.ParquetFile, group: int, columns: Any = None) -> pa.Table:
        read.append(("group", columns))
        return original(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    as_json(run, "locate", "--key", "1234")
    # Of the input, of twelve row groups sorted by id, one; of the assignments, what may hold it.
    assert sum(columns == ["id"] for _, columns in read) <= 2
    assert len(read) <= 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--key", "id=99"), 3, "has no row with key id=99"),
        (("--key", "name=5"), 3, "is not a value of its column: id is int64"),
        (("--key", "five"), 3, "is not a value of its column: id is int64"),
        (("--key", "1001", "--key", "1002"), 3, "given twice"),
    ],
)
def test_keys_that_find_nothing(
    words: tuple[str, ...], code: int, said: str, run: KnownRun
) -> None:
    assert said in error_of(dec(run, "locate", *words), code)


def test_an_input_that_has_changed(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        run.describe(patch)
    pq.write_table(run.table.slice(0, 300), tmp_path / "in" / "0.parquet")
    (found,) = as_json(run, "locate", "--key", "1001")["rows"]
    assert found["row"]["cluster_id"] == run.group[1]
    assert "changed since" in found["why_no_features"]
    assert found["evidence"] == []
    (tmp_path / "in" / "0.parquet").unlink()
    assert "No evidence, because the raw row could not be read: " in shown(
        run, "locate", "--key", "1001"
    )


def test_rows_without_keys_of_their_own(tmp_path: Path) -> None:
    run = known_run(tmp_path, keys=[])
    with pytest.MonkeyPatch.context() as patch:
        run.describe(patch)
    words = ("--key", "shard=1.parquet", "--key", "row_number=250")
    (found,) = as_json(run, "locate", *words)["rows"]
    assert found["keys"] == {"shard": "1.parquet", "row_number": 250}
    at = 400 + 250
    by_name = {e["feature"]: e["value"] for e in found["evidence"]}
    assert by_name["amount"] == run.table["amount"][at].as_py()
    assert by_name["age"] == run.table["age"][at].as_py()
    assert found["row"]["cluster_id"] == run.group[at]
    several = as_json(run, "locate", "--key", "shard=1.parquet")
    assert (len(several["rows"]), several["more"]) == (20, True)
    line = error_of(dec(run, "locate", "--key", "1.parquet"), 3)
    assert "must be column=value; the key columns are shard, row_number" in line


def test_categories_speak_too(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "_words", lambda _: {"age": {30.0: "thirty", 60.0: "sixty"}})
    about = {"feature": "age", "kind": "category", "component": None, "mean_vector": None}
    profile = [
        about | {"cluster_id": cluster, "value": value, "mean": mean, "std": std, "rows": 100}
        for cluster, value, mean, std in (
            *((0, "thirty", 0.9, 0.3), (1, "thirty", 0.1, 0.3)),
            *((0, "sixty", 0.0, 0.0), (1, "sixty", 0.9, 0.3)),
            *((0, None, 0.1, 0.3), (1, None, 0.0, 0.0)),
        )
    ]
    x = np.array([1.0, 30.0, 0, 0, 0, 0])
    found = {e.feature: e for e in evidence(explained_run(run.lake, "known"), profile, x, 0, 1)}
    assert set(found) == {"age = thirty", "age = sixty"}
    assert found["age = thirty"].value == 1
    assert found["age = thirty"].weight == pytest.approx((0.9 - 0.1) / 0.3)
    assert found["age = sixty"].weight == pytest.approx(0.9 / np.sqrt(0.045))


def test_rows_that_were_forgotten(tmp_path: Path) -> None:
    run = known_run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        run.describe(patch)
    run.lake.write_json("runs/known/metrics.json", {})  # it is complete
    before = as_json(run, "explain", "--cluster", "2")
    gone = before["exemplars"][0]["keys"]["id"]
    (tmp_path / "keys.csv").write_text(f"id\n{gone}\n")
    words = ["forget", run.config_path, "--keys", str(tmp_path / "keys.csv")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    after = as_json(run, "explain", "--cluster", "2")
    assert gone not in [e["keys"]["id"] for e in after["exemplars"]]
    assert after["rules"] == before["rules"]
    assert "has no row" in error_of(dec(run, "locate", "--key", str(gone)), 3)
    kept = after["exemplars"][0]["keys"]["id"]
    (row,) = as_json(run, "locate", "--key", str(kept))["rows"]
    assert gone not in [e["keys"]["id"] for e in row["near"]]
    # The sample lacks a row now, and is still one to tell clusters apart by.
    tree = as_json(run, "explain", "--cluster", "2", "--versus", "1")["tree"]
    rows = int((run.group != 0).sum())
    assert tree["fitted_rows"] + tree["held_out_rows"] == rows - 1
