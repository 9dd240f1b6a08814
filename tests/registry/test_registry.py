"""The registry's log and its tables: appended to, never changed, and never in doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import Dec, config_of

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Reference
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.matching import KINDS, NONE, Matched, Transitions
from pipeline.errors import (
    CommitConflict,
    CommitError,
    CommitStateUnknown,
    ConfigError,
    InputError,
)
from pipeline.operations.forgotten_keys import key_table
from pipeline.registry import entries as registry
from pipeline.registry.clusters import (
    ClusterObservation,
    clusters_table,
    keys_as_json,
    lists_of,
    living,
    next_id,
    rename,
    store_table,
    transitions_table,
)
from pipeline.registry.entries import (
    CLUSTER_SCHEMA,
    append,
    entry_numbers,
    latest_entry,
    read_entry,
)
from pipeline.storage import Store

FILE = StoredFile(path="registry/some.parquet", sha256="0", bytes=1)
MODEL = ClusteringModel(
    model_id="m-1", kind="kmeans", weights=None, centroids=FILE, scaler=FILE, scaling="none"
)
SAMPLE = Sample(
    parts=(FILE,), rows=9, scanned_rows=9, missing_values=0, scaler=FILE, scaling="none"
)
CHAMPION = Champion(
    model=MODEL,
    run_id="run-1",
    ds="2026-01-01",
    refit_ds="2026-01-01",
    ids=FILE,
    reference=Reference(sample=SAMPLE, features=(), bins=FILE),
    settings="0",
)


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def promoted(lake: Store, after: int, commit_id: str, **changes: Any) -> registry.Entry:
    change: dict[str, Any] = {
        "action": "promote",
        "who": f"run {commit_id}",
        "reason": "refit: it was time",
        "champion": CHAMPION,
        "clusters": FILE,
        "transitions": (FILE,),
    }
    return append(lake, after, commit_id=commit_id, **change | changes)


# ---------------------------------------------------------------------------------------- the log


def test_the_newest_entry_decides(lake: Store) -> None:
    assert latest_entry(lake) is None
    first = promoted(lake, 0, "a")
    second = promoted(lake, 1, "b", action="rollback")
    assert (first.number, second.number) == (1, 2)
    assert entry_numbers(lake) == [1, 2]
    assert latest_entry(lake) == second
    assert read_entry(lake, 1) == first
    store_table(lake, "clusters", CLUSTER_SCHEMA.empty_table())  # files beside it are no entries
    assert entry_numbers(lake) == [1, 2]


def test_doing_it_twice_changes_nothing(lake: Store) -> None:
    first = promoted(lake, 0, "a")
    assert promoted(lake, 0, "a", reason="the same, by a later attempt") == first
    assert entry_numbers(lake) == [1]


def test_who_comes_second_is_told_who_was_first(lake: Store) -> None:
    promoted(lake, 0, "a")
    with pytest.raises(CommitConflict, match="run a changed the registry meanwhile") as refused:
        promoted(lake, 0, "b")
    assert "promote: refit: it was time" in str(refused.value)
    assert latest_entry(lake) == read_entry(lake, 1)


def test_an_answer_that_was_lost(lake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Store.create_json

    def landed_but_who_knows(self: Store, path: str, content: Any) -> bool:
        create(self, path, content)
        raise OSError("connection reset")

    monkeypatch.setattr(Store, "create_json", landed_but_who_knows)
    assert promoted(lake, 0, "a").number == 1  # the log is asked before anybody is told
    with pytest.raises(CommitConflict, match="run a changed the registry meanwhile"):
        promoted(lake, 0, "b")
    assert entry_numbers(lake) == [1]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError("connection reset"), CommitStateUnknown, "whether the promote is done is not kno"),
        (PermissionError(13, "Permission denied"), CommitError, "nothing was published. Allow run"),
    ],
)
def test_an_entry_that_is_not_there(
    lake: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, message: str
) -> None:
    def fails(self: Store, path: str, content: Any) -> bool:
        raise error

    monkeypatch.setattr(Store, "create_json", fails)
    with pytest.raises(kind, match=message) as failed:
        promoted(lake, 0, "a")
    assert failed.type is kind
    assert entry_numbers(lake) == []


def test_hold_comes_first(lake: Store) -> None:
    def hold() -> None:
        raise CommitConflict("another attempt works on the same ds")

    with pytest.raises(CommitConflict, match="another attempt"):
        promoted(lake, 0, "a", hold=hold)
    assert latest_entry(lake) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"number": 1}'])
def test_an_entry_that_cannot_be_read(lake: Store, content: bytes) -> None:
    lake.write_bytes("registry/1.json", content)
    with pytest.raises(InputError, match=r"registry/1\.json is not an entry") as refused:
        latest_entry(lake)
    assert len(str(refused.value).splitlines()) == 1


def test_an_entry_under_the_number_of_another(lake: Store) -> None:
    promoted(lake, 0, "a")
    lake.write_bytes("registry/7.json", lake.read_bytes("registry/1.json"))
    with pytest.raises(InputError, match="it says that it is number 1"):
        latest_entry(lake)


# ------------------------------------------------------------------------------------- its tables


def seen(model_id: str, *sizes: int) -> ClusterObservation:
    keys = [json.dumps({"id": n}) for n in range(sum(sizes))]
    return ClusterObservation(
        model_id,
        np.array(sizes),
        np.arange(len(sizes) * 2, dtype=np.float32).reshape(-1, 2),
        lists_of(keys, np.array(sizes)),
    )


def ids_of(
    ids: list[int], born: list[bool], parents: list[tuple[int, int]] | None = None
) -> Matched:
    none = np.zeros(0, np.int64)
    return Matched(
        np.array(ids, np.int32),
        np.array(born),
        np.array(parents or np.zeros((0, 2)), np.int32),
        Transitions(none.astype(np.int8), *(none.astype(np.int32),) * 2, *(none,) * 5),
        0.0,
    )


def three_nights() -> list[pa.Table]:
    """Three are born; one splits and one dies; the next night another dies."""
    first = clusters_table(
        CLUSTER_SCHEMA.empty_table(),
        seen("m-1", 3, 1, 2),
        ids_of([0, 1, 2], [True] * 3),
        "2026-01-01",
    )
    second = clusters_table(
        first,
        seen("m-2", 2, 1, 4),
        ids_of([3, 2, 0], [True, False, False], [(3, 0), (3, 2)]),
        "2026-01-08",
    )
    third = clusters_table(second, seen("m-3", 5, 0), ids_of([0, 3], [False, False]), "2026-01-15")
    return [first, second, third]


def test_clusters_are_born_live_on_and_die() -> None:
    _, second, third = three_nights()
    rows = second.drop_columns(["centroid"]).to_pylist()
    assert [(r["cluster_id"], r["born"], r["died"], r["parents"]) for r in rows] == [
        (0, "2026-01-01", None, []),
        (1, "2026-01-01", "2026-01-08", []),
        (2, "2026-01-01", None, []),
        (3, "2026-01-08", None, [0, 2]),
    ]
    assert [(r["size"], r["model_id"]) for r in rows] == [
        (4, "m-2"),
        (1, "m-1"),  # as it was when it was last seen
        (1, "m-2"),
        (2, "m-2"),
    ]
    assert second["centroid"].to_pylist() == [[4, 5], [2, 3], [2, 3], [0, 1]]
    assert rows[0]["exemplars"] == ['{"id": 3}', '{"id": 4}', '{"id": 5}', '{"id": 6}']
    assert rows[3]["exemplars"] == ['{"id": 0}', '{"id": 1}']

    rows = third.to_pylist()
    assert [r["died"] for r in rows] == [None, "2026-01-08", "2026-01-15", None]
    assert rows[3]["parents"] == [0, 2]
    assert rows[3]["exemplars"] == []  # no row of the sample is in it
    assert living(third)["cluster_id"].to_pylist() == [0, 3]


def test_an_id_is_never_given_again() -> None:
    first, second, third = three_nights()
    assert [next_id(t) for t in (CLUSTER_SCHEMA.empty_table(), first, second, third)] == [
        0,
        3,
        4,
        4,
    ]
    everybody_dead = clusters_table(third, seen("m-4", 1), ids_of([4], [True]), "2026-01-22")
    newest_dead = clusters_table(
        everybody_dead, seen("m-5", 1), ids_of([5], [True]), "2026-01-29"
    ).filter(pa.array([True] * 6))
    assert living(newest_dead)["cluster_id"].to_pylist() == [5]
    assert newest_dead["cluster_id"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert next_id(newest_dead) == 6


def test_transitions_as_a_table() -> None:
    counts = np.arange(10).reshape(5, 2)
    table = transitions_table(
        Transitions(
            np.array([KINDS.index("survival"), KINDS.index("birth")], np.int8),
            np.array([4, NONE], np.int32),
            np.array([4, 9], np.int32),
            *counts,
        ),
        "2026-01-31",
        "run-1",
    )
    assert table.schema == registry.TRANSITION_SCHEMA
    assert table.drop_columns(["ds", "run_id"]).to_pylist() == [
        {
            "kind": "survival",
            "from_id": 4,
            "to_id": 4,
            "rows": 0,
            "from_rows": 2,
            "to_rows": 4,
            "from_rows_now": 6,
            "to_rows_now": 8,
        },
        {
            "kind": "birth",
            "from_id": None,
            "to_id": 9,
            "rows": 1,
            "from_rows": 3,
            "to_rows": 5,
            "from_rows_now": 7,
            "to_rows_now": 9,
        },
    ]


def test_the_same_table_is_the_same_file(lake: Store) -> None:
    first, second, _ = three_nights()
    files = [store_table(lake, "clusters", table) for table in (first, second, three_nights()[0])]
    assert files[0] == files[2] != files[1]
    assert lake.read_table(files[0].path).equals(first)


def test_keys_of_any_type_as_json() -> None:
    import datetime
    import decimal

    keys = pa.table(
        {
            "number": pa.array([2**60, None]),
            "text": pa.array(["käse", "b"]).dictionary_encode(),
            "day": [datetime.date(2026, 1, 31), datetime.date(2026, 2, 1)],
            "at": pa.array([1, 2], pa.timestamp("ns")),
            "price": [decimal.Decimal("1.50"), decimal.Decimal("2.00")],
            "hash": [b"\xff\x00", b"a"],
            "uuid": pa.array([b"\xff" * 16, b"0" * 16], pa.binary(16)),
            "flag": [True, False],
        }
    )
    assert json.loads(keys_as_json(keys)[0]) == {
        "number": 2**60,
        "text": "käse",
        "day": "2026-01-31",
        "at": "1970-01-01 00:00:00.000000001",
        "price": "1.50",
        "hash": "ff00",
        "uuid": "ff" * 16,
        "flag": True,
    }
    assert json.loads(keys_as_json(keys)[1])["number"] is None
    assert keys_as_json(keys.slice(0, 0)) == []
    # dec forget finds them again.
    again = key_table(keys_as_json(keys), keys.schema)
    assert again.to_pylist() == keys.to_pylist()


# ----------------------------------------------------------------------------------------- names


@pytest.fixture
def served(lake: Store) -> Store:
    """A lake whose clusters are those of the second night: 0, 2 and 3 live, 1 died."""
    promoted(lake, 0, "a", clusters=store_table(lake, "clusters", three_nights()[1]))
    return lake


def names(lake: Store) -> dict[int, str | None]:
    entry = latest_entry(lake)
    assert entry is not None
    table = lake.read_table(entry.clusters.path)
    assert table.schema == registry.CLUSTER_SCHEMA
    return dict(zip(table["cluster_id"].to_pylist(), table["name"].to_pylist(), strict=True))


def test_a_name_is_an_entry(served: Store) -> None:
    entry = rename(served, 2, " heavy users ", "jo")
    assert (entry.number, entry.action, entry.who) == (2, "rename", "jo")
    assert entry.why == "cluster 2 is called heavy users"
    assert (entry.champion, entry.transitions) == (CHAMPION, (FILE,))
    assert names(served) == {0: None, 1: None, 2: "heavy users", 3: None}
    assert rename(served, 2, "heavy users", "jo") == entry  # once more changes nothing
    rename(served, 2, "users", "jo")
    rename(served, 0, "heavy users", "jo")  # it is free again
    assert names(served) == {0: "heavy users", 1: None, 2: "users", 3: None}
    assert entry_numbers(served) == [1, 2, 3, 4]


def test_a_name_stays_until_its_cluster_dies(served: Store) -> None:
    for cluster_id, name in ((0, "stays"), (2, "dies")):
        rename(served, cluster_id, name, "jo")
    entry = latest_entry(served)
    assert entry is not None
    before = served.read_table(entry.clusters.path)
    after = clusters_table(before, seen("m-3", 5, 0), ids_of([0, 3], [False] * 2), "2026-01-15")
    assert after["name"].to_pylist() == ["stays", None, "dies", None]  # also of the dead
    promoted(served, 3, "b", clusters=store_table(served, "clusters", after))
    rename(served, 3, "dies", "jo")  # a name stands for one that lives


@pytest.mark.parametrize(
    ("cluster_id", "name", "error", "says"),
    [
        (9, "x", InputError, "there is no cluster 9; `dec clusters` lists those that live"),
        (-1, "x", InputError, "there is no cluster -1"),
        (1, "x", InputError, "cluster 1 died on 2026-01-08; only a cluster that lives"),
        (2, "  ", ConfigError, "'' is no name for a cluster; give 1 to 100 printable"),
        (2, "a\nb", ConfigError, "is no name"),
        (2, "x" * 101, ConfigError, "is no name"),
        (2, "known", InputError, "cluster 0 is called 'known' already"),
    ],
)
def test_names_that_are_refused(
    served: Store, cluster_id: int, name: str, error: type[Exception], says: str
) -> None:
    rename(served, 0, "known", "jo")
    with pytest.raises(error, match=says) as refused:
        rename(served, cluster_id, name, "jo")
    assert len(str(refused.value).splitlines()) == 1
    assert entry_numbers(served) == [1, 2]


def test_a_name_and_another_change_at_once(served: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Store.create_json

    def somebody_is_faster(self: Store, path: str, content: Any) -> bool:
        monkeypatch.undo()
        promoted(served, 1, "b")
        return create(self, path, content)

    monkeypatch.setattr(Store, "create_json", somebody_is_faster)
    with pytest.raises(CommitConflict, match="run b changed the registry meanwhile"):
        rename(served, 2, "x", "jo")


def test_the_commands(served: Store, settings: dict[str, Any], dec: Dec, tmp_path: Path) -> None:
    config = str(tmp_path / "settings.yaml")
    assert config_of(settings).output == served.url
    Path(config).write_text(yaml.safe_dump(settings))

    done = dec("rename", config, "2", "heavy users")
    assert (done.code, done.err) == (0, "")
    assert done.out == "cluster 2 is called heavy users: entry 2 of the registry\n"

    shown = dec("clusters", config)
    assert shown.code == 0
    lines = [line.split() for line in shown.out.splitlines() if line.strip()]
    assert lines[0] == ["id", "name", "born", "parents", "size", "nearest", "rows"]
    assert lines[2:] == [
        ["0", "2026-01-01", "4", "3", "4", "5"],
        ["2", "heavy", "users", "2026-01-01", "1", "2"],
        ["3", "2026-01-08", "0,", "2", "2", "0", "1"],
        "3 clusters live, 1 died; model m-1 of ds 2026-01-01, entry 2".split(),
    ]
    everything = dec("clusters", config, "--all", "--json").json
    assert [(c["cluster_id"], c["name"], c["died"]) for c in everything["clusters"]] == [
        (0, None, None),
        (1, None, "2026-01-08"),
        (2, "heavy users", None),
        (3, None, None),
    ]

    refused = dec("rename", config, "1", "x")
    assert refused.code == InputError.exit_code
    assert refused.err.startswith("error: cluster 1 died on 2026-01-08")


def test_commands_before_the_first_night(settings: dict[str, Any], dec: Dec) -> None:
    nothing = dec("clusters", settings=settings)
    assert nothing.code == InputError.exit_code
    assert "has no clusters with permanent ids; `dec nightly` makes them" in nothing.err
