"""A person decides who serves: promoting, going back, and what that does to ids and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from challengers import CENTERS, Lake, decided
from conftest import Dec, config_of

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Champion, GateRule, Identity, NightDecision, Verdict
from pipeline.engine import Context
from pipeline.errors import CommitConflict, InputError
from pipeline.registry import champions
from pipeline.registry.champions import judged, promote_challenger, roll_back
from pipeline.registry.clusters import store_table
from pipeline.registry.entries import Entry, append, entry_numbers, latest_entry, read_entry

REFUSED = Verdict(
    passed=False,
    rules=(
        GateRule(name="max_churn", value=0.61, limit=0.5, passed=False, detail="3 ids end"),
        GateRule(name="max_psi", value=None, limit=0.25, passed=True, detail="not applied: none"),
    ),
)


@pytest.fixture
def lake(settings: dict[str, Any], context: Context) -> Lake:
    return Lake(config_of(settings), context)


def fitted(
    lake: Lake,
    run_id: str,
    ds: str,
    champion: Champion | None,
    entry: int,
    clusters: dict[int, str | None],
    verdict: Verdict = REFUSED,
    **names: str,
) -> Lake:
    """A night that fitted a challenger against a champion, up to the gate's verdict."""
    night = lake.at(run_id, ds)
    alive = tuple(number for number, died in clusters.items() if died is None)
    centroids = np.tile(CENTERS, (2, 1))[: len(alive)] + ord(run_id) / 1000  # no two the same
    challenger = night.champion(centroids, ids=alive)
    identity = night.identity(challenger, night.clusters(clusters, **names))
    night.named()
    night.mark("decide", decided(champion, entry))
    night.mark("identify", identity)
    content = verdict.model_dump(mode="json")
    night.context.lake.write_json(f"{night.context.run_path}/gate.json", content)
    return night


def served(night: Lake, before: Entry | None = None) -> Entry:
    """Its challenger serves, as a night that passed the gate makes it."""
    marker = night.context.lake.read_json(night.context.stage_path("identify", "done.json"))
    return night.promoted(Identity.model_validate(marker["artifact"]), before)


@pytest.fixture
def first(lake: Lake) -> Entry:
    """Run "a" of 2026-01-01 serves: ids 1, 2, 3."""
    return served(fitted(lake, "a", "2026-01-01", None, 0, {1: None, 2: None, 3: None}))


@pytest.fixture
def second(lake: Lake, first: Entry) -> Entry:
    """Run "b" of 2026-01-08 serves: 3 has died, 4 is born."""
    clusters = {1: None, 2: None, 3: "2026-01-08", 4: None}
    return served(fitted(lake, "b", "2026-01-08", first.champion, 1, clusters), first)


def table(lake: Lake, entry: Entry) -> dict[int, tuple[str | None, str | None]]:
    """Died and name of each id."""
    found = lake.context.lake.read_table(entry.clusters.path).to_pylist()
    return {row["cluster_id"]: (row["died"], row["name"]) for row in found}


def renamed(lake: Lake, entry: Entry, number: int, name: str) -> Entry:
    """Somebody names a cluster."""
    before = lake.context.lake.read_table(entry.clusters.path)
    names = [name if i == number else None for i in before["cluster_id"].to_pylist()]
    place = before.schema.get_field_index("name")
    after = before.set_column(place, before.schema.field("name"), pa.array(names))
    return append(
        lake.context.lake,
        entry.number,
        action="rename",
        commit_id=name,
        who="ada",
        reason="it looks like them",
        champion=entry.champion,
        clusters=store_table(lake.context.lake, "clusters", after),
        transitions=entry.transitions,
    )


def promote(lake: Lake, run_id: str, who: str = "ada") -> Entry:
    return promote_challenger(
        lake.context.lake, run_id, who=who, why="looked at it", rematch=not_needed
    )


def not_needed(*_: Any) -> Identity:
    pytest.fail("ids mean the same, and are matched all the same")


def back(lake: Lake, *, again: bool = False) -> Entry:
    return roll_back(lake.context.lake, who="ada", why="complaints", again=again)


def test_a_refused_challenger_serves_once_somebody_says_so(lake: Lake, first: Entry) -> None:
    clusters = {1: None, 2: "2026-01-08", 3: None, 4: None}
    night = fitted(lake, "b", "2026-01-08", first.champion, 1, clusters)
    store = lake.context.lake
    assert not judged(store, "b").serves
    entry = promote(lake, "b")
    assert (entry.number, entry.action, entry.who, entry.why) == (
        2,
        "promote",
        "ada",
        "looked at it",
    )
    assert entry.champion.run_id == night.context.run_id
    assert table(lake, entry)[2] == ("2026-01-08", None)
    assert len(entry.transitions) == 2
    assert judged(store, "b").serves
    assert read_entry(store, 1) == first  # append-only
    assert promote(lake, "b", who="bob") == entry  # twice changes nothing
    assert entry_numbers(store) == [1, 2]


def test_the_first_challenger_can_be_promoted_too(lake: Lake) -> None:
    fitted(lake, "a", "2026-01-01", None, 0, {1: None})
    assert promote(lake, "a").number == 1


def test_names_that_were_given_since_stay(lake: Lake, first: Entry) -> None:
    clusters = {1: None, 2: "2026-01-08", 3: None, 4: None}
    fitted(lake, "b", "2026-01-08", first.champion, 1, clusters)
    renamed(lake, first, 1, "birds")
    entry = promote(lake, "b")
    assert entry.number == 3
    assert table(lake, entry)[1] == (None, "birds")
    assert table(lake, entry)[4] == (None, None)


def test_ids_that_mean_something_else_by_now_are_matched_anew(lake: Lake, first: Entry) -> None:
    store = lake.context.lake
    night = fitted(lake, "b", "2026-01-08", first.champion, 1, {1: None, 2: None, 4: None})
    night.mark("pin", night.manifest())
    other = fitted(lake, "c", "2026-01-09", first.champion, 1, {1: None, 3: None, 4: None})
    second = served(other, first)
    asked: list[NightDecision] = []

    def matched(decision: NightDecision, manifest: Manifest, challenger: Champion) -> Identity:
        asked.append(decision)
        ids = (3, 4, 5) if decision.champion == second.champion else (1, 3, 6)
        clusters = dict.fromkeys(range(1, 1 + ids[-1]))
        again = lake.at("b").champion(ids=ids)
        return lake.at("b").identity(again, lake.clusters(dict(clusters)))

    def promoted() -> Entry:
        return promote_challenger(store, "b", who="ada", why="", rematch=matched)

    # The champion is another one; then its new id 4 is another cluster's, if a dead one's.
    entry = promoted()
    assert (asked[0].champion, asked[0].entry, asked[0].usable) == (second.champion, 2, True)
    ids = store.read_table(entry.champion.ids.path)["cluster_id"].to_pylist()
    assert ids == [3, 4, 5]
    assert promoted() == entry
    assert len(asked) == 1


def test_new_ids_that_others_were_given_meanwhile_are_matched_anew(
    lake: Lake, first: Entry
) -> None:
    night = fitted(lake, "b", "2026-01-08", first.champion, 1, {1: None, 2: None, 4: None})
    night.mark("pin", night.manifest())
    other = fitted(lake, "c", "2026-01-09", first.champion, 1, {1: None, 3: None, 4: None})
    served(other, first)
    assert back(lake).champion == first.champion  # which it was matched to, and 4 is given
    asked: list[int] = []

    def matched(decision: NightDecision, manifest: Manifest, challenger: Champion) -> Identity:
        asked.append(decision.entry)
        return night.identity(night.champion(ids=(1, 2, 5)))

    store = lake.context.lake
    entry = promote_challenger(store, "b", who="ada", why="", rematch=matched)
    assert asked == [3]
    assert store.read_table(entry.champion.ids.path)["cluster_id"].to_pylist() == [1, 2, 5]


def test_rolling_back_ends_what_was_born_and_revives_what_died(lake: Lake, second: Entry) -> None:
    named = renamed(lake, second, 2, "fish")
    entry = back(lake)
    assert (entry.number, entry.action, entry.why) == (named.number + 1, "rollback", "complaints")
    assert entry.champion.run_id == "a"
    assert table(lake, entry) == {
        1: (None, None),
        2: (None, "fish"),
        3: (None, None),
        4: ("2026-01-08", None),
    }
    assert entry.transitions == second.transitions
    assert read_entry(lake.context.lake, 2) == second


def test_going_back_further_must_be_asked_for(lake: Lake, second: Entry) -> None:
    clusters = {1: None, 2: "2026-01-15", 3: "2026-01-08", 4: None, 5: None}
    served(fitted(lake, "c", "2026-01-15", second.champion, 2, clusters), second)
    assert back(lake).champion == second.champion
    before = entry_numbers(lake.context.lake)
    with pytest.raises(InputError, match=r"ada rolled back to m-.*--again"):
        back(lake)  # as somebody does whose first attempt got no answer
    assert entry_numbers(lake.context.lake) == before
    entry = back(lake, again=True)
    assert entry.champion.run_id == "a"
    alive = [number for number, (died, _) in table(lake, entry).items() if died is None]
    assert alive == [1, 2, 3]
    with pytest.raises(InputError, match="no champion before"):
        back(lake, again=True)


def test_what_was_rolled_back_can_be_promoted_again_with_its_own_ids(
    lake: Lake, second: Entry
) -> None:
    back(lake)
    entry = promote(lake, "b")
    assert entry.champion == second.champion
    assert {number: died for number, (died, _) in table(lake, entry).items()} == {
        1: None,
        2: None,
        3: "2026-01-08",
        4: None,
    }
    assert entry.transitions == second.transitions  # told once
    assert back(lake).champion.run_id == "a"


def test_a_champion_whose_files_are_gone_does_not_come_back(lake: Lake, second: Entry) -> None:
    path = read_entry(lake.context.lake, 1).champion.model.centroids.path
    lake.context.lake.delete([path])
    with pytest.raises(InputError, match=r"centroids.parquet is gone"):
        back(lake)
    with pytest.raises(InputError, match="is not whole"):
        promote(lake, "a")
    assert latest_entry(lake.context.lake) == second


def test_two_who_change_it_at_once_do_not_both_win(
    lake: Lake, second: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody names a cluster between the look at the log and the entry."""
    store = champions.store_table

    def late(*arguments: Any) -> Any:
        monkeypatch.undo()
        renamed(lake, second, 1, "birds")
        return store(*arguments)

    monkeypatch.setattr(champions, "store_table", late)
    with pytest.raises(CommitConflict, match="ada changed the registry meanwhile"):
        back(lake)
    assert latest_entry(lake.context.lake).action == "rename"  # type: ignore[union-attr]
    assert back(lake).champion.run_id == "a"


def test_runs_that_have_nothing_to_promote_say_so(lake: Lake, first: Entry) -> None:
    store = lake.context.lake
    with pytest.raises(InputError, match=r"run nobody is not there; give one from"):
        judged(store, "nobody")
    lake.at("young").named()
    with pytest.raises(InputError, match="fitted no new model, or has not come that far"):
        promote(lake, "young")
    lake.at("other").named()
    store.write_json("runs/other/metrics.json", {"run_id": "other"})
    with pytest.raises(InputError, match="or of a version that this one cannot read"):
        judged(store, "other")
    lake.at("failed").named()
    failed = Verdict(passed=False, rules=(), reason="loss is NaN")
    store.write_json("runs/failed/gate.json", failed.model_dump(mode="json"))
    assert judged(store, "failed").verdict == failed
    with pytest.raises(InputError, match="could not be fitted"):
        promote(lake, "failed")
    assert latest_entry(store) == first


def test_the_commands(lake: Lake, first: Entry, dec: Dec, tmp_path: Path) -> None:
    clusters = {1: None, 2: "2026-01-08", 3: None, 4: None}
    fitted(lake, "b", "2026-01-08", first.champion, 1, clusters)
    config = tmp_path / "gate.yaml"
    config.write_text(lake.config.to_yaml())

    def told(*words: str, code: int = 0) -> Any:
        done = dec(words[0], str(config), *words[1:], "--json")
        assert done.code == code, done.err
        return done.json

    found = told("gate", "b")
    assert (found["passed"], found["serves"]) == (False, False)
    assert found["rules"][0]["value"] == 0.61
    assert "max_churn is 0.61, over 0.5 (3 ids end); dec promote" in found["sentence"]
    assert told("gate", "x", code=3)["error"]["message"].startswith("run x is not there")
    assert told("promote", "b", "--why", " ", code=2)["error"]["kind"] == "ConfigError"
    entry = told("promote", "b", "--why", "looked at it")
    assert (entry["number"], entry["why"]) == (2, "looked at it")
    assert entry["who"]
    assert entry == json.loads((tmp_path / "lake/registry/2.json").read_text())
    done = dec("rollback", str(config), "--why", "complaints")
    assert done.code == 0
    assert "of run a serves from the next night on: entry 3 of the registry" in done.out
    refused = dec("rollback", str(config))
    assert refused.code == 3
    assert len(refused.err.strip().splitlines()) == 1
    assert "--again" in refused.err
