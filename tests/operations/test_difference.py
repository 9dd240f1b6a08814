"""``dec diff``: worked out by hand on a few keys, and against numpy on many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import Dec
from nights_by_hand import cluster, ids, publish_files, publish_night, register

from pipeline.errors import InputError, StorageFull
from pipeline.operations import difference as module
from pipeline.operations.difference import difference
from pipeline.storage import Store


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


# Two nights of four keys that both have: b moves, new and gone ones around them.
def two_nights(lake: Store) -> None:
    publish_night(lake, "r1", "2026-01-01", [(ids("a", "b", "c", "gone"), [0, 0, 1, 1])])
    parts = [(ids("a", "b"), [0, 1]), (ids("c", "new", "newer"), [1, 2, 2])]
    publish_night(lake, "r2", "2026-01-02", parts)


def test_by_hand(lake: Store) -> None:
    two_nights(lake)
    found = difference(lake, "2026-01-01", "2026-01-02")
    assert (found.in_both, found.changed, found.churn) == (3, 1, pytest.approx(1 / 3))
    assert (found.new, found.gone, found.repeated_keys, found.shared_files) == (2, 1, 0, 0)
    assert [(f.from_id, f.to_id, f.keys) for f in found.flows] == [(0, 1, 1)]
    moved = {m.cluster_id: m for m in found.moved}
    assert [m.cluster_id for m in found.moved] == [0, 1, 2]
    assert (moved[0].before, moved[0].after, moved[0].left, moved[0].left_share) == (2, 1, 1, 0.5)
    assert (moved[1].before, moved[1].after, moved[1].arrived, moved[1].gone) == (2, 2, 1, 1)
    assert (moved[2].before, moved[2].after, moved[2].new, moved[2].arrived) == (0, 2, 2, 0)
    assert (found.before.rows, found.after.rows) == (4, 5)


def test_a_night_and_itself(lake: Store) -> None:
    two_nights(lake)
    found = difference(lake, "2026-01-02", "2026-01-02")
    assert (found.in_both, found.changed, found.churn) == (5, 0, 0.0)
    assert (found.shared_files, found.shared_rows, found.flows) == (2, 5, ())


def test_files_that_both_name_are_counted_by_their_footers(lake: Store) -> None:
    carried = publish_night(lake, "r1", "d1", [(ids(1, 2, 3), [0, 0, 4]), (ids(8, 9), [0, 1])])
    publish_night(lake, "r2", "d2", [(ids(8, 9), [1, 1])], carried=carried[:1])
    # Nothing of it is read but the footer.
    path = Path(lake.locate(carried[0].path))
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(b"\0" * (len(content) - footer) + content[-footer:])
    found = difference(lake, "d1", "d2")
    assert (found.shared_files, found.shared_rows) == (1, 3)
    assert (found.in_both, found.changed, found.churn) == (5, 1, 0.2)
    assert {m.cluster_id: (m.before, m.after) for m in found.moved} == {
        0: (3, 2),
        1: (1, 2),
        4: (1, 1),
    }


def test_repeated_keys_are_counted_and_not_joined(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(1, 1, 2, 3), [0, 1, 0, 0])])
    publish_night(lake, "r2", "d2", [(ids(1, 2), [0, 0]), (ids(3, 3, 4), [0, 0, 0])])
    found = difference(lake, "d1", "d2")
    assert (found.repeated_keys, found.repeated_rows) == (2, 6)
    assert (found.in_both, found.new, found.gone) == (1, 1, 0)


def test_null_is_a_key(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(None, "", "a"), [0, 1, 2])])
    publish_night(lake, "r2", "d2", [(ids(None, "", "a"), [5, 1, 2])])
    found = difference(lake, "d1", "d2")
    assert (found.in_both, found.changed) == (3, 1)
    assert [(f.from_id, f.to_id) for f in found.flows] == [(0, 5)]


def test_columns_of_any_name_and_type(lake: Store) -> None:
    stamps = np.array(["2026-01-01", "2026-01-01", "2026-01-02"], "datetime64[us]")
    keys = pa.table(
        {
            "before": pa.array(["x", "y", "x"]).dictionary_encode(),
            "rows": pa.array(stamps),
            "key_0": pa.array([b"\xff", b"", None], pa.binary()),
            "flag": pa.array([True, False, None]),
        }
    )
    publish_night(lake, "r1", "d1", [(keys, [0, 1, 2])])
    publish_night(lake, "r2", "d2", [(keys.take([2, 1, 0]), [2, 1, 1])])
    found = difference(lake, "d1", "d2")
    assert (found.in_both, found.changed, found.new, found.gone) == (3, 1, 0, 0)


def test_a_wider_type_on_the_second_night(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(1, -2, kind=pa.int32()), [0, 1])])
    publish_night(lake, "r2", "d2", [(ids(1, -2, kind=pa.int64()), [0, 1])])
    assert difference(lake, "d1", "d2").churn == 0.0


def test_many_keys_as_numpy_has_it(lake: Store) -> None:
    random = np.random.default_rng(0)
    nights = []
    for night in (1, 2):
        numbers = random.choice(30_000, 20_000, replace=False)
        clusters = random.integers(-1, 7, 20_000)
        keys = pa.table({"k": pa.array(numbers % 100), "s": pa.array(numbers // 100).cast("str")})
        parts = [(keys.slice(at, 5000), clusters[at : at + 5000]) for at in range(0, 20_000, 5000)]
        publish_night(lake, f"r{night}", f"d{night}", parts)
        nights.append(dict(zip(numbers.tolist(), clusters.tolist(), strict=True)))
    both = nights[0].keys() & nights[1].keys()
    changed = sum(nights[0][key] != nights[1][key] for key in both)
    found = difference(lake, "d1", "d2")
    assert (found.in_both, found.changed) == (len(both), changed)
    assert (found.new, found.gone) == (20_000 - len(both), 20_000 - len(both))
    assert sum(flow.keys for flow in found.flows) == changed
    assert found.model_copy() == difference(lake, "d1", "d2")
    few = difference(lake, "d1", "d2", most=3)
    assert (len(few.flows), few.flow_count) == (3, found.flow_count)


def test_one_key_in_every_row(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(*[7] * 50), [0] * 50)])
    publish_night(lake, "r2", "d2", [(ids(7), [0])])
    found = difference(lake, "d1", "d2")
    assert (found.repeated_keys, found.repeated_rows, found.churn) == (1, 51, None)


def test_keys_of_any_type_are_equal_as_they_are_to_arrow(lake: Store) -> None:
    numbers = pa.array([1, 2, None], pa.int64())
    kinds = [
        *(pa.int8(), pa.uint64(), pa.date32(), pa.time32("s"), pa.time64("ns"), pa.duration("ns")),
        *(pa.timestamp("ns", "Europe/Zurich"), pa.float32(), pa.decimal128(38, 2)),
        *(pa.decimal256(60, 2), pa.string(), pa.large_string()),
    ]
    columns = {str(kind): numbers.cast(_whole(kind)).cast(kind) for kind in kinds}
    columns["fixed"] = pa.array([b"ab", b"cd", None], pa.binary(2))
    columns["signed zero"] = pa.array([0.0, -0.0, 0.0])
    for name, column in columns.items():
        nights = [f"{name}-{night}".replace(" ", "-") for night in (1, 2)]
        nights = ["".join(c if c.isalnum() else "-" for c in night) for night in nights]
        keys = pa.table({"k": column, "n": pa.array([1, 1, 1 + (name == "signed zero")])})
        publish_night(lake, f"r{nights[0]}", nights[0], [(keys, [0, 1, 2])])
        publish_night(lake, f"r{nights[1]}", nights[1], [(keys.take([2, 1, 0]), [2, 1, 1])])
        found = difference(lake, *nights)
        figures = (found.in_both, found.changed, found.new, found.gone, found.repeated_keys)
        assert figures == (3, 1, 0, 0, 0), name


def _whole(kind: pa.DataType) -> pa.DataType:
    """An integer type that Arrow casts to this one."""
    return pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()


def test_more_keys_than_memory_spill_to_a_folder_that_is_removed(
    lake: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(scratch))
    numbers = np.arange(600_000)
    for night in (1, 2):
        keys = pa.table({"id": pa.array(numbers), "text": pa.array(numbers).cast("str")})
        publish_night(lake, f"r{night}", f"d{night}", [(keys, numbers % 7)])
    # Two nights of two columns and their groups are some 60 MB.
    found = difference(lake, "d1", "d2", memory_mib=48)
    assert (found.in_both, found.changed, found.new) == (600_000, 0, 0)
    assert list(scratch.iterdir()) == []
    with pytest.raises(StorageFull, match=r"scratch has no room .* or set TMPDIR"):
        difference(lake, "d1", "d2", memory_mib=8)
    assert list(scratch.iterdir()) == []


def test_a_part_that_is_gone_is_reported_as_such(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(1), [0])])
    parts = publish_night(lake, "r2", "d2", [(ids(1), [0]), (ids(2), [0])])
    Path(lake.locate(parts[1].path)).unlink()
    with pytest.raises(FileNotFoundError, match=parts[1].path.rpartition("/")[2]):
        difference(lake, "d1", "d2")


# ----------------------------------------------------------------------------------- the registry


def register_two(lake: Store) -> None:
    clusters = [cluster(0, name="[b]zeros"), cluster(1)]
    row = dict.fromkeys(("rows", "from_rows", "to_rows", "from_rows_now", "to_rows_now"), 5)
    rows = [
        row | {"ds": ds, "run_id": "r", "kind": kind, "from_id": start, "to_id": end}
        for ds, kind, start, end in [
            ("2026-01-01", "birth", None, 0),
            ("2026-01-02", "survival", 0, 0),
            ("2026-01-02", "split", 0, 1),
            ("2026-01-03", "death", 0, None),
        ]
    ]
    register(lake, clusters, transitions=rows)


def test_names_and_transitions_are_the_registrys(lake: Store) -> None:
    two_nights(lake)
    register_two(lake)
    found = difference(lake, "2026-01-01", "2026-01-02")
    assert [(t.kind, t.from_id, t.to_id) for t in found.transitions] == [("split", 0, 1)]
    assert [(f.from_name, f.to_name) for f in found.flows] == [("[b]zeros", None)]
    assert {m.cluster_id: m.name for m in found.moved} == {0: "[b]zeros", 1: None, 2: None}


# ------------------------------------------------------------------------------------ the command


def test_a_night_that_is_not_there(lake: Store) -> None:
    with pytest.raises(InputError, match="for ds d1; it has none"):
        difference(lake, "d1", "d2")
    publish_night(lake, "r1", "d1", [(ids(1), [0])])
    with pytest.raises(InputError, match="no published assignments for ds d2; it has d1"):
        difference(lake, "d1", "d2")


def test_nights_of_other_keys(lake: Store) -> None:
    publish_night(lake, "r1", "d1", [(ids(1), [0])])
    publish_night(lake, "r2", "d2", [(pa.table({"other": [1]}), [0])])
    with pytest.raises(InputError, match=r"different keys, id: int64 and other: int64; only"):
        difference(lake, "d1", "d2")


def test_nights_without_rows(lake: Store) -> None:
    publish_files(lake, "r1", "d1", [])
    publish_night(lake, "r2", "d2", [(ids(1), [0])])
    found = difference(lake, "d1", "d2")
    assert (found.churn, found.new, found.in_both) == (None, 1, 0)


def test_the_command(lake: Store, dec: Dec, tmp_path: Path) -> None:
    two_nights(lake)
    register_two(lake)
    path = tmp_path / "config.yaml"
    source = {"path": str(tmp_path), "features": ["x"]}
    settings = {"source": source, "output": lake.url, "clusters": 2}
    path.write_text(yaml.safe_dump(settings), "utf-8")
    shown = dec("diff", str(path), "2026-01-01", "2026-01-02")
    assert shown.code == 0, shown.err
    for text in ("33.333%: 1 of 3 keys", "0 [b]zeros", "split", "clusters that moved most"):
        assert text in shown.out
    found = json.loads(dec("diff", str(path), "2026-01-01", "2026-01-02", "--json").out)
    assert found["churn"] == pytest.approx(1 / 3)
    assert found["moved"][0]["left_share"] == 0.5
    wrong = dec("diff", str(path), "2026-01-01", "2026-01-09")
    assert wrong.code == 3
    assert "ds 2026-01-09; it has 2026-01-01, 2026-01-02" in wrong.err
