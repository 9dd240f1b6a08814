"""Names that a night gives: for living clusters without one, by one entry of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nights_by_hand import cluster, register

from pipeline.errors import CommitConflict
from pipeline.registry import clusters as clusters_module
from pipeline.registry.clusters import name_clusters, rename
from pipeline.registry.entries import entry_numbers, latest_entry
from pipeline.storage import Store


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    living = [cluster(2, name="Customers"), cluster(3), cluster(5)]
    register(store, [*living, cluster(4, died="2026-01-02")])
    return store


def names_of(lake: Store) -> dict[int, Any]:
    entry = latest_entry(lake)
    assert entry is not None
    return {r["cluster_id"]: r["name"] for r in lake.read_table(entry.clusters.path).to_pylist()}


def name(lake: Store, names: dict[int, str], model_id: str = "m") -> Any:
    return name_clusters(lake, names, "run r1", model_id=model_id)


def test_only_living_clusters_without_a_name_get_one(lake: Store) -> None:
    given = {2: "high a", 3: "low a", 4: "dead", 5: "Customers", 9: "nobody"}
    entry, names = name(lake, given)
    assert names == {2: "Customers", 3: "low a"}
    assert names_of(lake) == {2: "Customers", 3: "low a", 4: None, 5: None}
    assert (entry.number, entry.action, entry.who) == (2, "rename", "run r1")
    assert entry.champion.run_id == "r1"  # all else stays


def test_doing_it_twice_changes_nothing(lake: Store) -> None:
    first = name(lake, {3: "low a", 5: "low b"})
    assert name(lake, {3: "low a", 5: "another"}) == first
    assert entry_numbers(lake) == [1, 2]


def test_a_name_of_somebody_stays(lake: Store) -> None:
    rename(lake, 3, "Mine", "somebody")
    name(lake, {3: "low a", 5: "low b"})
    assert names_of(lake) == {2: "Customers", 3: "Mine", 4: None, 5: "low b"}
    rename(lake, 5, "Mine too", "somebody")
    assert names_of(lake)[5] == "Mine too"


def test_names_of_another_model_are_not_given(lake: Store) -> None:
    entry, names = name(lake, {3: "low a"}, model_id="another")
    assert (entry.number, names) == (1, {2: "Customers"})


def test_a_registry_that_moves_on_meanwhile(lake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = latest_entry(lake)
    rename(lake, 3, "Mine", "somebody")
    monkeypatch.setattr(clusters_module, "latest_entry", lambda _: old)
    with pytest.raises(CommitConflict, match="somebody changed the registry meanwhile"):
        name(lake, {3: "low a"})
    assert names_of(lake)[3] == "Mine"


def test_no_registry(tmp_path: Path) -> None:
    assert name(Store(str(tmp_path)), {0: "a"}) == (None, {})
