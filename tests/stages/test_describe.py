"""Rules and names of a run whose clusters are known; the stage's task runs in this process."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from chat_endpoint import Server, saying
from explained_runs import KnownRun, champion_of, known_run
from nights_by_hand import cluster

from pipeline.artifacts.nights import Champion
from pipeline.config import Config
from pipeline.errors import CommitConflict, LeaseHeld, NodesLost, OutOfMemory
from pipeline.insight.rules import labelled_sample
from pipeline.registry.clusters import store_table
from pipeline.registry.entries import CLUSTER_SCHEMA, append, entry_numbers, latest_entry
from pipeline.schema import DESCRIBED_SCHEMA, RULE_SCHEMA
from pipeline.stages import describe as describing


@pytest.fixture
def run(tmp_path: Path) -> KnownRun:
    return known_run(tmp_path)


def clusters_of(run: KnownRun, found: Any) -> dict[int, dict[str, Any]]:
    table = run.lake.read_table(found.clusters.path)
    assert table.schema.remove_metadata() == DESCRIBED_SCHEMA
    return {row["cluster_id"]: row for row in table.to_pylist()}


def test_rules_in_the_users_columns(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run.describe(monkeypatch)
    table = run.lake.read_table(found.rules.path)
    assert table.schema.remove_metadata() == RULE_SCHEMA
    rules = {row["cluster_id"]: row for row in table.to_pylist()}
    assert sorted(rules) == [0, 1, 2]
    # The middle of a gap from 13 to 97 and of one from 32 to 58, in few digits.
    assert rules[2]["rule"] == "age > 45"
    assert rules[0]["rule"].startswith("age ≤ 45 and amount ≤ ")
    assert rules[1]["rule"].startswith("age ≤ 45 and amount > ")
    amount = rules[1]["conditions"][1]
    assert (amount["feature"], amount["high"], amount["missing"]) == ("amount", None, False)
    assert 13 < amount["low"] < 97
    # What they say is true of the table itself.
    rows = run.rows.sort_by("id")
    mine = np.asarray(run.table["age"]) > 45
    assert ((rows["cluster_id"].to_numpy() == 2) == mine).all()
    assert (found.fidelity, found.held_out_rows, found.fitted_rows) == (1.0, 240, 960)
    assert found.baseline == pytest.approx(1 / 3, abs=0.1)
    clusters = clusters_of(run, found)
    assert {(row["precision"], row["recall"]) for row in clusters.values()} == {(1.0, 1.0)}
    assert sum(row["held_out"] for row in clusters.values()) == 240


def test_of_a_large_sample_an_even_choice_is_looked_at(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = {"parts": run.sample.parts * 3, "rows": run.sample.rows * 3}
    sample = run.sample.model_copy(update=several)
    given = (run.lake, run.model, run.manifest.features, sample, run.champion.ids)
    x, label = labelled_sample(*given)
    monkeypatch.setattr("pipeline.insight.rules._MOST_ROWS", len(x) // 7 + 1)
    some, of_some = labelled_sample(*given)
    every = 7
    assert run.sample.rows % every  # so that the choice goes on from part to part
    assert np.array_equal(some, x[::every])
    assert np.array_equal(of_some, label[::every])
    both, of_both = labelled_sample(*given, clusters=(0, 2))
    assert np.array_equal(both, x[label != 1])  # all that there are
    assert np.array_equal(of_both, label[label != 1])


def test_names_by_features(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run.describe(monkeypatch)
    clusters = clusters_of(run, found)
    assert {i: row["name"] for i, row in clusters.items()} == {
        0: "low amount, low age",
        1: "low age, high amount",
        2: "high age, high amount",
    }
    assert {row["named_by"] for row in clusters.values()} == {"features"}
    assert (found.named, found.entry) == (3, 2)
    assert entry_numbers(run.lake) == [1, 2]


def test_nobody_names_and_no_tree(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run.describe(monkeypatch, namer=None, tree_depth=None)
    assert (found.rules, found.fidelity, found.named) == (None, None, 0)
    assert found.no_rules_reason == "explain.tree_depth is null"
    assert {row["name"] for row in clusters_of(run, found).values()} == {None}


def test_the_same_again(run: KnownRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.describe(monkeypatch) == run.describe(monkeypatch)


# ---------------------------------------------------------------------------------------- nights


def night(run: KnownRun, *names: str | None) -> tuple[Champion, KnownRun]:
    """Its model serves, with ids 7, 8 and 9 that have these names."""
    rows = [cluster(7 + i, name=name) for i, name in enumerate(names)]
    champion = champion_of(run.context, run.manifest, run.model, run.sample, (7, 8, 9))
    append(
        run.lake,
        1,
        action="promote",
        commit_id="c",
        who="run known",
        reason="by hand",
        champion=champion,
        clusters=store_table(run.lake, "clusters", pa.Table.from_pylist(rows, CLUSTER_SCHEMA)),
        transitions=(),
    )
    run.assignments = run.assignments.model_copy(update={"cluster_ids": (7, 8, 9)})
    profile = run.lake.read_table(run.explanation.profile.path)
    ids = np.asarray(profile["cluster_id"]) + 7
    profile = profile.set_column(
        profile.schema.get_field_index("cluster_id"), profile.schema.field("cluster_id"), [ids]
    )
    stored = store_table(run.lake, "profile", profile)
    run.explanation = run.explanation.model_copy(update={"profile": stored})
    return champion, run


def test_names_of_a_night_are_in_the_registry(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, run = night(run, None, "Mine", None)
    found = run.describe(monkeypatch, champion)
    clusters = clusters_of(run, found)
    assert {i: (row["name"], row["named_by"]) for i, row in clusters.items()} == {
        7: ("low amount, low age", "features"),
        8: ("Mine", "registry"),
        9: ("high age, high amount", "features"),
    }
    entry = latest_entry(run.lake)
    assert entry is not None
    assert (found.named, found.entry, entry.number) == (2, 3, 3)
    assert run.lake.read_table(entry.clusters.path)["name"].to_pylist() == [
        row["name"] for row in clusters.values()
    ]
    rules = run.lake.read_table(found.rules.path)
    assert set(rules["cluster_id"].to_pylist()) == {7, 8, 9}
    # An attempt that ended between the registry and the marker: the next one says the same.
    monkeypatch.setattr(describing, "_new_names", None)  # and asks nobody again
    assert run.describe(monkeypatch, champion) == found
    monkeypatch.undo()
    next_night = replace(run, context=replace(run.context, run_id="next"))
    again = next_night.describe(monkeypatch, champion)  # nothing is left to name
    assert (again.named, again.entry) == (0, 0)
    assert {r["named_by"] for r in clusters_of(run, again).values()} == {"registry"}
    assert entry_numbers(run.lake) == [1, 2, 3]


def test_a_conflict_in_the_registry_ends_nothing(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    champion, run = night(run, None, "Mine", None)

    def lost(*_: Any, **__: Any) -> None:
        raise CommitConflict("somebody changed the registry meanwhile")

    monkeypatch.setattr("pipeline.registry.clusters.append", lost)
    with caplog.at_level(logging.WARNING):
        found = run.describe(monkeypatch, champion)
    assert "somebody changed the registry meanwhile; the next night tries again" in caplog.text
    assert {i: row["name"] for i, row in clusters_of(run, found).items()} == {
        7: None,
        8: "Mine",
        9: None,
    }
    assert found.fidelity == 1.0


def test_a_run_that_is_not_to_go_on_ends_here(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, run = night(run, None, "Mine", None)

    def lost() -> None:
        raise LeaseHeld("somebody else works on this ds")

    run.context = dataclasses.replace(run.context, hold=lost)
    with pytest.raises(LeaseHeld):
        run.describe(monkeypatch, champion)
    assert entry_numbers(run.lake) == [1, 2]


@pytest.mark.parametrize("gone", ["sample", "profile", "model", "memory"])
def test_whatever_fails_is_a_warning(
    gone: str, run: KnownRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if gone == "memory":

        def fitted(*_: Any) -> None:
            raise OutOfMemory("no memory for rules")

        monkeypatch.setattr(describing, "_fitted", fitted)
    else:
        file = {
            "sample": run.sample.parts[0],
            "profile": run.explanation.profile,
            "model": run.model.centroids,
        }[gone]
        run.lake.delete([file.path])
    found = run.describe(monkeypatch)
    assert [record.levelname for record in caplog.records if record.levelname == "WARNING"]
    assert (found.rules is None) == (gone != "profile")
    assert bool(found.no_rules_reason) == (gone != "profile")
    assert found.named == (0 if gone == "profile" else 3)
    assert sorted(clusters_of(run, found)) == [0, 1, 2]


def test_what_another_attempt_may_have_is_left_to_it(
    run: KnownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(*_: Any) -> None:
        raise NodesLost("nodes were lost")

    monkeypatch.setattr(describing, "_fitted", fitted)
    with pytest.raises(NodesLost):
        run.describe(monkeypatch)


# ------------------------------------------------------------------------------- a language model


def openai(chat: Server) -> dict[str, Any]:
    return {"namer": "openai", "endpoint": chat.url, "model": "small", "timeout_s": 5.0}


def test_names_by_an_endpoint(
    run: KnownRun,
    chat: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat.answer = lambda _: (200, saying({"0": "Small orders", "1": "", "2": "Older customers"}))
    found = run.describe(monkeypatch, **openai(chat))
    assert {i: (r["name"], r["named_by"]) for i, r in clusters_of(run, found).items()} == {
        0: ("Small orders", "openai"),
        1: ("low age, high amount", "features"),
        2: ("Older customers", "openai"),
    }
    # Features and figures, and nothing of any row.
    sent = json.dumps([body for _, _, body in chat.requests])
    assert "amount" in sent
    assert not any(f'"{key}"' in sent or f" {key}," in sent for key in range(1000, 2200))
    assert '"id"' not in sent


def test_an_endpoint_that_fails(
    run: KnownRun,
    chat: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat.answer = lambda _: (500, b"")
    found = run.describe(monkeypatch, **openai(chat))
    assert {r["named_by"] for r in clusters_of(run, found).values()} == {"features"}


@pytest.mark.parametrize(
    ("explain", "said"),
    [
        ({"namer": "openai"}, "needs explain.endpoint"),
        ({"namer": "openai", "endpoint": "http://h/v1"}, "needs explain.endpoint"),
        ({"endpoint": "file:///etc/passwd"}, "pattern"),
        ({"endpoint": "https://user:secret@h/v1"}, "pattern"),
        ({"tree_depth": 0}, "greater than or equal"),
        ({"tree_depth": 9}, "less than or equal"),
    ],
)
def test_settings(explain: dict[str, Any], said: str) -> None:
    source = {"path": "in", "features": ["x"]}
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"source": source, "output": "o", "clusters": 2, "explain": explain})
