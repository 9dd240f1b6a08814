"""``dec forget``: what it removes, what it leaves, and what becomes of it when it is killed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Dec, published
from nights_by_hand import (
    cluster,
    ids,
    publish_files,
    publish_night,
    register,
    sample_of,
    store_table,
    write_assignments,
)
from object_store import BUCKET
from published_tables import FORMATS, READERS, Night, config_of

from pipeline.artifacts.nights import Identity, NightDecision, Verdict
from pipeline.config import Retention
from pipeline.errors import CommitStateUnknown, InputError, LeaseHeld, TransientError
from pipeline.lake.lease import take
from pipeline.lake.parts import statistics_in
from pipeline.lake.receipts import folder_for_parts, read_receipts, withdrawn_parts
from pipeline.lake.snapshots import (
    assignment_files,
    latest_snapshot,
    read_file_list,
    read_snapshot,
    snapshot_files,
)
from pipeline.lake.tables import open_table
from pipeline.operations import forgetting
from pipeline.operations.forgetting import Forgotten, forget
from pipeline.operations.forgotten_keys import KeySet, key_table, read_keys
from pipeline.operations.garbage import collect
from pipeline.registry import entries as registry
from pipeline.registry.champions import promote_challenger
from pipeline.registry.clusters import keys_as_json
from pipeline.storage import Store

SECRET = "person-4711"


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def keys_of(*values: Any) -> KeySet:
    return KeySet(ids(*values), "keys.parquet")


def without(lake: Store, *values: Any, **options: Any) -> Forgotten:
    return forget(lake, keys_of(*values), who="me@here", on_wait=pytest.fail, **options)


def served(lake: Store, ds: str | None = None) -> list[Any]:
    """Keys that readers find, by DuckDB."""
    files = assignment_files(lake, ds)
    rows = duckdb.execute("SELECT id FROM read_parquet(?) ORDER BY id", [files]).fetchall()
    return [row[0] for row in rows]


def names(lake: Store) -> set[str]:
    return {file.name for file in lake.walk()}


def contents(lake: Store) -> dict[str, bytes]:
    """Everything that a reader may find, apart from what clocks and salts decide."""
    own = {name for name in names(lake) if not name.startswith(("leases", "forgotten"))}
    return {
        name: b"" if name.startswith(("snapshots", "registry/", "current")) else read(lake, name)
        for name in own
    }


def read(lake: Store, name: str) -> bytes:
    return Path(lake.locate(name)).read_bytes()


def two_nights(lake: Store) -> None:
    """Two nights that share a part, and a third part that holds none of the keys."""
    first = publish_night(
        lake, "r1", "2026-01-01", [(ids(SECRET, "a", "b"), [0, 0, 1]), (ids("c"), [1])]
    )
    publish_night(lake, "r2", "2026-01-02", [(ids("d", "e"), [0, 1])], carried=first[:1])


# -------------------------------------------------------------------------------- published nights


def test_rows_go_from_every_night_that_names_the_file(lake: Store) -> None:
    two_nights(lake)
    before = assignment_files(lake)
    unchanged = {path: Path(path).stat().st_mtime_ns for path in before}
    done = without(lake, SECRET, "nobody")
    assert served(lake, "2026-01-01") == ["a", "b", "c"]
    assert served(lake, "2026-01-02") == ["a", "b", "d", "e"]
    latest = latest_snapshot(lake)
    assert latest is not None
    assert latest.snapshot == 3
    assert {ds: p.rows for ds, p in latest.partitions.items()} == {"2026-01-01": 3, "2026-01-02": 4}
    assert lake.read_json("current.json")["snapshot"] == 3
    # One file was written, none in place; both nights name it.
    after = assignment_files(lake)
    assert len(set(after) - set(before)) == 1
    assert {path: Path(path).stat().st_mtime_ns for path in before} == unchanged
    counts = [(c.kind, c.ds, c.rows, c.files, c.staged) for c in done.counts]
    assert counts == [
        ("assignments", "2026-01-01", 1, 1, False),
        ("assignments", "2026-01-02", 1, 1, False),
    ]
    assert done.held_by == (1, 2)


def test_sizes_and_rows_in_the_lists_are_those_of_the_files(lake: Store) -> None:
    two_nights(lake)
    without(lake, SECRET)
    latest = latest_snapshot(lake)
    assert latest is not None
    for partition in latest.partitions.values():
        listed = read_file_list(lake, partition.files)
        assert listed.rows == sum(file.rows for file in listed.files) == partition.rows
        for file in listed.files:
            assert Path(lake.locate(file.path)).stat().st_size == file.bytes
            assert pq.read_metadata(lake.locate(file.path)).num_rows == file.rows


def test_footers_have_the_statistics_of_what_is_left(lake: Store) -> None:
    two_nights(lake)
    path = assignment_files(lake, "2026-01-02")[-1]
    old = next(p for p in assignment_files(lake) if SECRET in pq.read_table(p)["id"].to_pylist())
    before = statistics_in(pq.read_metadata(old))
    without(lake, SECRET)
    new = next(p for p in assignment_files(lake) if "a" in pq.read_table(p)["id"].to_pylist())
    after = statistics_in(pq.read_metadata(new))
    assert before is not None
    assert after is not None
    assert (after.rows_in, after.rows) == (2, 2)
    assert after.cluster_rows == [[0, 1], [1, 1]]
    confidence = pq.read_table(new)["confidence"].to_numpy()
    assert after.confidence_sum == pytest.approx(confidence.sum())
    # It is not the slice's part: no night may carry it over or go on with it.
    assert after.identity != before.identity
    assert path != new
    assert pq.read_schema(new).remove_metadata() == pq.read_schema(old).remove_metadata()


def test_old_snapshots_stay_as_they_were_until_gc(lake: Store) -> None:
    two_nights(lake)
    without(lake, SECRET)
    for number in (1, 2):
        for partition in read_snapshot(lake, number).partitions.values():
            for file in read_file_list(lake, partition.files).files:
                assert Path(lake.locate(file.path)).stat().st_size == file.bytes
    held = [p for p in names(lake) if p.endswith(".parquet") and SECRET.encode() in read(lake, p)]
    assert len(held) == 1
    long_ago = time.time() - 9 * 86_400
    for name in names(lake):
        os.utime(lake.locate(name), (long_ago, long_ago))
    collect(lake, Retention(snapshots=1, days=0), dry_run=False)
    assert [p for p in names(lake) if SECRET.encode() in read(lake, p)] == []
    assert served(lake) == ["a", "a", "b", "b", "c", "d", "e"]
    assert without(lake, SECRET).held_by == ()


def test_files_that_only_old_snapshots_name_are_told_and_left(lake: Store) -> None:
    publish_night(lake, "r1", "d", [(ids(SECRET, "a"), [0, 0])])
    publish_night(lake, "r2", "d", [(ids("a"), [0])])
    before = contents(lake)
    done = without(lake, SECRET)
    assert (done.held_by, done.counts, done.receipts) == ((1,), (), [])
    assert contents(lake) == before


def test_nobody_has_the_key(lake: Store) -> None:
    two_nights(lake)
    before = names(lake)
    done = without(lake, "nobody")
    assert (done.counts, done.receipts, done.held_by, names(lake)) == ((), [], (), before)


def test_a_part_that_loses_all_its_rows(lake: Store) -> None:
    two_nights(lake)
    without(lake, SECRET, "a", "b")
    assert served(lake, "2026-01-01") == ["c"]
    without(lake, "c", "d", "e")
    assert served(lake) == []


def test_dry_run_changes_nothing(lake: Store) -> None:
    two_nights(lake)
    before = contents(lake)
    done = without(lake, SECRET, dry_run=True)
    assert (done.files, done.held_by, done.receipts) == (1, (1, 2), [])
    assert contents(lake) == before
    assert "leases" not in {name.split("/")[0] for name in names(lake)}


def test_forgetting_again_and_more(lake: Store) -> None:
    two_nights(lake)
    without(lake, SECRET)
    without(lake, "a")
    assert [receipt.number for receipt in read_receipts(lake)] == [1, 2]
    assert served(lake) == ["b", "b", "c", "d", "e"]
    assert without(lake, "d").held_by == (2, 3, 4)


# ------------------------------------------------------------------------------ keys of many kinds


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.string(), pa.timestamp("us")])
def test_keys_in_the_type_of_the_table_from_parquet_and_csv(
    lake: Store, tmp_path: Path, kind: pa.DataType
) -> None:
    values = pa.array(range(1000, 2000), pa.int64()).cast(kind)
    publish_night(lake, "r", "d", [(pa.table({"id": values}), [0] * 1000)])
    pq.write_table(pa.table({"other": [1.0], "id": values[5:6]}), tmp_path / "keys.parquet")
    (tmp_path / "keys.csv").write_text(f"id,other\n{values[7].cast(pa.string())},x\n")
    for name in ("keys.parquet", "keys.csv"):
        keys = read_keys(str(tmp_path / name), ["id"])
        assert forget(lake, keys, who="me").counts[0].rows == 1
    left = {*served(lake)}
    assert left == {*values.to_pylist()} - {values[5].as_py(), values[7].as_py()}


def test_keys_of_several_columns_are_whole_keys(lake: Store) -> None:
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "country": pa.array(np.array(["nl", "be", "fr"])[random.integers(0, 3, 500)]),
            "id": pa.array(random.integers(0, 300, 500), mask=random.random(500) < 0.1),
            "part": pa.array(random.integers(0, 5, 500).astype(np.int16)),
        }
    )
    publish_night(lake, "r", "d", [(table, [0] * 500)])
    wanted = table.slice(100, 60)
    keys = KeySet(wanted.cast(wanted.schema.set(2, pa.field("part", pa.int64()))), "keys")
    done = forget(lake, keys, who="me")
    gone = {tuple(row.values()) for row in wanted.to_pylist()}
    expected = [row for row in table.to_pylist() if tuple(row.values()) not in gone]
    assert done.counts[0].rows == 500 - len(expected)
    (path,) = assignment_files(lake)
    assert pq.read_table(path, columns=table.column_names).to_pylist() == expected


def test_row_groups_that_cannot_hold_a_key_are_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(100)}), tmp_path / "part.parquet", row_group_size=10)
    footer = pq.read_metadata(tmp_path / "part.parquet")
    keys = keys_of(25, 31)
    groups = [g for g in range(10) if keys.may_be_in(footer.row_group(g))]
    assert groups == [2, 3]
    text = KeySet(ids("m", None), "keys")
    pq.write_table(ids("a", None), tmp_path / "text.parquet")
    assert text.may_be_in(pq.read_metadata(tmp_path / "text.parquet").row_group(0))


def test_exemplars_are_read_whatever_json_they_are() -> None:
    schema = pa.schema([("country", pa.string()), ("id", pa.int64())])
    texts = ['["nl", 7]', '{"id": 7, "country": "nl"}', '["nl", "7"]', '["nl", null]']
    rows = key_table(texts, schema).to_pylist()
    assert rows == [{"country": "nl", "id": 7}] * 3 + [{"country": "nl", "id": None}]
    assert key_table(["7", '"7"'], pa.schema([("id", pa.int64())]))["id"].to_pylist() == [7, 7]


def test_exemplars_as_the_registry_writes_them() -> None:
    keys = pa.table(
        {
            "text": ["é", "", None],
            "number": pa.array([2**62 + 1, None, -1]),
            "flag": [True, False, None],
            "at": pa.array([0, 1_000_001, None], pa.timestamp("us")),
            "bytes": pa.array([b"\xff", b"", None], pa.binary()),
            "share": [0.1, 1e300, None],
        }
    )
    assert key_table(keys_as_json(keys), keys.schema).equals(keys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "cannot be read: it does not exist"),
        ("other.csv", f"name\n{SECRET}\n", r"lacks id; it must have a column for each of"),
        ("ragged.csv", f"id\n{SECRET},1\n{SECRET},2,3\n", "nor a CSV file with one header"),
        ("keys.parquet", f"id\n{SECRET}\n", "is neither a Parquet file"),
        ("empty.csv", "id\n", "has no keys"),
    ],
)
def test_key_files_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_keys(str(tmp_path / name), ["id"])
    assert SECRET not in str(refused.value)


def test_a_key_of_another_type_is_not_shown(lake: Store, tmp_path: Path) -> None:
    publish_night(lake, "r", "d", [(ids(1, 2), [0, 0])])
    (tmp_path / "keys.csv").write_text(f"id\n1\n{SECRET}\n")
    with pytest.raises(InputError, match="cannot be converted to int64, its type in") as refused:
        forget(lake, read_keys(str(tmp_path / "keys.csv"), ["id"]), who="me")
    assert SECRET not in str(refused.value)
    assert served(lake) == [1, 2]
    assert SECRET not in repr(keys_of(SECRET))


def test_a_night_of_other_keys_is_refused(lake: Store) -> None:
    publish_night(lake, "r", "d", [(pa.table({"shard": ["s"], "row_number": [0]}), [0])])
    with pytest.raises(InputError, match=r"ds d have the keys \['shard', 'row_number'\], not"):
        without(lake, SECRET)


# --------------------------------------------------------------------- samples, exemplars, staging


def test_the_champions_sample_and_exemplars(lake: Store) -> None:
    two_nights(lake)
    exemplars = [json.dumps([key]) for key in ("a", SECRET)]
    clusters = [cluster(0, exemplars=exemplars, name="zero"), cluster(1, exemplars=['["c"]'])]
    parts = [sample_of(ids("a", SECRET)), sample_of(ids("c"))]
    first = registry_of(lake, clusters, parts)
    done = without(lake, SECRET)
    entry = registry.latest_entry(lake)
    assert entry is not None
    assert (entry.number, entry.action, entry.who) == (2, "forget", "me@here")
    sample = entry.champion.reference.sample
    assert sample.rows == 2
    assert sample.parts[1] == first.champion.reference.sample.parts[1]
    for file in (*sample.parts, entry.clusters):
        content = read(lake, file.path)
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file.sha256, file.bytes)
    assert lake.read_table(sample.parts[0].path)["id"].to_pylist() == ["a"]
    table = lake.read_table(entry.clusters.path)
    assert table.schema == registry.CLUSTER_SCHEMA
    assert table["exemplars"].to_pylist() == [['["a"]'], ['["c"]']]
    assert table["name"].to_pylist() == ["zero", None]
    assert entry.transitions == first.transitions
    kinds = {count.kind: count.rows for count in done.counts}
    assert kinds == {"assignments": 1, "exemplars": 1, "reference sample": 1}
    # Nothing keeps the old ones; an older entry, as a rollback reads it, has what took their place.
    assert not lake.exists(first.clusters.path)
    assert registry.read_entry(lake, 1).champion == entry.champion
    held = [name for name in names(lake) if SECRET.encode() in read(lake, name)]
    assert [name.split("/")[2] for name in held] == ["assignments"]  # of snapshots 1 and 2


def registry_of(
    lake: Store, clusters: Sequence[dict[str, Any]], parts: Sequence[pa.Table]
) -> registry.Entry:
    return register(lake, clusters, sample=parts)


def test_a_refused_challenger_can_be_promoted_afterwards(lake: Store) -> None:
    two_nights(lake)
    register(lake, [cluster(0)], sample=[sample_of(ids("a"))])
    # A second run, all but its entry: that is what a challenger is which the gate refused.
    clusters = [cluster(0, exemplars=[json.dumps({"id": SECRET})]), cluster(1)]
    entry = register(lake, clusters, run="r5", sample=[sample_of(ids(SECRET, "b"))], after=1)
    lake.delete(["registry/2.json"])
    decision = NightDecision(
        action="refit", why="", entry=1, champion=registry.read_entry(lake, 1).champion, usable=True
    )
    identity = Identity(
        challenger=entry.champion,
        clusters=entry.clusters,
        transitions=entry.transitions[0],
        **dict.fromkeys(("survived", "split", "merged", "born", "died"), 0),
        churn=None,
    )
    for stage, artifact in (("decide", decision), ("identify", identity)):
        marker = {"stage": stage, "fingerprint": "f", "seconds": 1, "finished_at": "now"}
        content = marker | {"artifact": artifact.model_dump(mode="json")}
        lake.write_json(f"runs/r5/stages/{stage}/done.json", content)
    for name in ("run", "metrics"):
        lake.write_json(f"runs/r5/{name}.json", {"ds": "2026-01-02"})
    lake.write_json("runs/r5/gate.json", Verdict(passed=False, rules=()).model_dump())
    lake.write_json("runs/r5/stages/none", {})  # in the place of its model, which forgets nothing
    without(lake, SECRET)
    assert not lake.exists(entry.clusters.path)
    promoted = promote_challenger(lake, "r5", who="me", why="better", rematch=pytest.fail)
    sample = promoted.champion.reference.sample
    assert (promoted.number, sample.rows) == (2, 1)
    assert lake.read_table(sample.parts[0].path)["id"].to_pylist() == ["b"]
    assert lake.read_table(promoted.clusters.path)["exemplars"].to_pylist() == [[], []]


def test_samples_of_earlier_champions(lake: Store) -> None:
    registry_of(lake, [cluster(0)], [sample_of(ids("a", SECRET))])
    register(lake, [cluster(0)], run="r2", sample=[sample_of(ids("a"))], after=1)
    without(lake, SECRET)
    assert [n for n in names(lake) if SECRET.encode() in read(lake, n)] == []
    earlier = registry.read_entry(lake, 1).champion.reference.sample
    assert earlier.rows == 1
    assert lake.read_table(earlier.parts[0].path)["id"].to_pylist() == ["a"]
    latest = registry.latest_entry(lake)
    assert latest is not None
    assert latest.number == 2  # its own files held nothing


def stage_run(lake: Store, run: str = "dead", ds: str = "2026-01-03") -> None:
    """A run that was killed before its publish."""
    write_assignments(lake, run, ds, [(ids(SECRET), [0]), (ids("z"), [0])])
    lake.write_json(f"runs/{run}/run.json", {"run_id": run, "ds": ds, "version": "0"})
    part = store_table(
        lake, f"runs/{run}/stages/sample/part-000000.parquet", sample_of(ids(SECRET))
    )
    for stage in ("pin", "sample", "assign"):
        named = [part.model_dump()] if stage == "sample" else []
        lake.write_json(f"runs/{run}/stages/{stage}/done.json", {"artifact": {"parts": named}})


def test_staged_files_go_and_their_run_makes_them_again(lake: Store) -> None:
    two_nights(lake)
    stage_run(lake)
    done = without(lake, SECRET)
    assert {(c.kind, c.ds) for c in done.counts if c.staged} == {
        ("assignments", "2026-01-03"),
        ("reference sample", "2026-01-03"),
    }
    left = {name for name in names(lake) if name.startswith("runs/dead/")}
    assert "runs/dead/assignments/part-1.parquet" in left
    assert "runs/dead/assignments/part-0.parquet" not in left
    assert "runs/dead/stages/sample/part-000000.parquet" not in left
    markers = {s: read(lake, f"runs/dead/stages/{s}/done.json") for s in ("sample", "assign")}
    assert set(markers.values()) == {b""}
    assert read(lake, "runs/dead/stages/pin/done.json") != b""
    # It writes the same part again from the source: that is no part of a night that was published.
    assert "runs/dead/assignments/part-0.parquet" not in withdrawn_parts(lake)


def test_markers_of_complete_runs_stay(lake: Store) -> None:
    stage_run(lake)
    lake.write_json("runs/dead/metrics.json", {})
    before = read(lake, "runs/dead/stages/sample/done.json")
    without(lake, SECRET)
    assert read(lake, "runs/dead/stages/sample/done.json") == before
    held = [name for name in names(lake) if SECRET.encode() in read(lake, name)]
    assert held == []


def test_a_published_run_that_labels_again_writes_elsewhere(lake: Store) -> None:
    two_nights(lake)
    folder = "runs/r1/assignments"
    assert folder_for_parts(lake, folder) == folder
    without(lake, SECRET)
    assert withdrawn_parts(lake) == {f"{folder}/part-0.parquet"}
    assert folder_for_parts(lake, folder) == f"{folder}/again-1"
    assert folder_for_parts(lake, "runs/r2/assignments") == "runs/r2/assignments"


# ----------------------------------------------------------------------------------- the receipt


def test_the_receipt_has_hashes_and_no_key(lake: Store) -> None:
    two_nights(lake)
    without(lake, SECRET, "nobody")
    (receipt,) = read_receipts(lake)
    hashes = {
        hashlib.sha256((receipt.salt + json.dumps([key])).encode()).hexdigest()
        for key in (SECRET, "nobody")
    }
    assert {*receipt.keys} == hashes
    assert len(receipt.salt) == 32
    assert (receipt.who, receipt.snapshot, receipt.held_by) == ("me@here", 3, (1, 2))
    assert receipt.finished
    (file,) = receipt.files
    assert (file.old, file.removed, file.rows) == ("runs/r1/assignments/part-0.parquet", 1, 2)
    assert file.new is not None
    assert lake.exists(file.new)
    text = read(lake, receipt.path).decode()
    assert SECRET not in text
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in text


# -------------------------------------------------------------------------------- killed, disturbed


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["create_json", "append", "amend", "delete", "write_json"])
def test_killed_anywhere_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ends = []
    for name in ("whole", "killed"):
        lake = Store(str(tmp_path / name))
        two_nights(lake)
        stage_run(lake)
        clusters = [cluster(0, exemplars=[json.dumps([SECRET])])]
        register(lake, clusters, run="r9", sample=[sample_of(ids("a", SECRET))])
        if name == "killed":
            with monkeypatch.context() as patch:
                kill_before(patch, step)
                with pytest.raises(Killed):
                    without(lake, SECRET)
            # Readers see all of it or none of it.
            assert served(lake).count(SECRET) in (0, 2)
            if read_receipts(lake):
                with pytest.raises(InputError, match="dec forget was interrupted; nothing was rem"):
                    collect(lake, Retention(), dry_run=True)
        without(lake, SECRET)
        assert served(lake) == ["a", "a", "b", "b", "c", "d", "e"]
        ends.append(contents(lake))
        receipts = [receipt.model_dump() for receipt in read_receipts(lake)]
        for receipt in receipts:
            del receipt["at"], receipt["salt"], receipt["keys"]
        ends[-1]["receipts"] = json.dumps(receipts).encode()
    assert ends[0] == ends[1]


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def kill_before(patch: pytest.MonkeyPatch, step: str) -> None:
    real = {name: getattr(Store, name) for name in ("create_json", "write_json")}

    def of_receipt(self: Store, path: str, content: Any) -> Any:
        if path.startswith("forgotten/"):
            raise Killed
        return real[step](self, path, content)

    if step in real:
        patch.setattr(Store, step, of_receipt)
    elif step == "delete":
        # Leases remove old claims, too.
        patch.setattr(forgetting._Change, "_remove_staged", kill)
    elif step == "append":
        patch.setattr(forgetting.registry, "append_forgotten", kill)
    else:
        patch.setattr(forgetting, "amend", kill)


def test_the_answer_to_the_commit_was_lost(lake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    two_nights(lake)
    real = Store.create_json

    def lost(self: Store, path: str, content: Any) -> bool:
        created = real(self, path, content)
        if path.startswith("snapshots/"):
            raise OSError("connection reset")
        return created

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create_json", lost)
        without(lake, SECRET)
    assert [*snapshot_files(lake)] == [1, 2, 3]

    def failed(self: Store, path: str, content: Any) -> bool:
        if path.startswith("snapshots/"):
            raise OSError("connection reset")
        return real(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create_json", failed)
        with pytest.raises(CommitStateUnknown):
            without(lake, "a")
    without(lake, "a")
    assert served(lake) == ["b", "b", "c", "d", "e"]
    assert [receipt.finished for receipt in read_receipts(lake)] == [True, True]


def test_somebody_works_on_a_night(lake: Store) -> None:
    two_nights(lake)
    before = contents(lake)
    lease = take(lake, "2026-01-02", "run r3", seconds=60)
    try:
        with pytest.raises(LeaseHeld, match="ds 2026-01-02 is being worked on by run r3"):
            without(lake, SECRET)
    finally:
        lease.release()
    assert contents(lake) == before
    without(lake, SECRET)
    assert SECRET not in served(lake)


def test_a_night_that_reads_the_champions_sample_is_not_disturbed(lake: Store) -> None:
    entry = register(lake, [cluster(0)], sample=[sample_of(ids("a", SECRET))])
    part = entry.champion.reference.sample.parts[0]
    marker = "runs/r7/stages/decide/done.json"
    lake.write_json("runs/r7/run.json", {"ds": "2026-01-07"})
    lake.write_json(marker, {"champion": entry.champion.model_dump(mode="json")})
    before = contents(lake)
    lease = take(lake, "2026-01-07", "run r7", seconds=60)
    try:
        with pytest.raises(LeaseHeld, match="ds 2026-01-07 is being worked on by run r7"):
            without(lake, SECRET)
    finally:
        lease.release()
    assert contents(lake) == before
    without(lake, SECRET)
    assert not lake.exists(part.path)
    assert read(lake, marker) == b""  # it decides anew


def test_a_night_that_published_before_the_leases_were_had(
    lake: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_nights(lake)
    real = forgetting._leases
    published: list[Any] = []

    def late(*of: Any) -> Any:
        if not published:
            published.extend(publish_night(lake, "r3", "2026-01-03", [(ids(SECRET, "x"), [0, 0])]))
        return real(*of)

    monkeypatch.setattr(forgetting, "_leases", late)
    done = without(lake, SECRET)
    assert served(lake, "2026-01-03") == ["x"]
    assert SECRET not in served(lake)
    assert done.held_by == (1, 2, 3)


def test_a_night_published_between_receipt_and_commit(
    lake: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_nights(lake)
    real = forgetting.amend

    def late(*of: Any, **more: Any) -> Any:
        latest = latest_snapshot(lake)
        assert latest is not None
        files = read_file_list(lake, latest.partitions["2026-01-02"].files).files
        publish_files(lake, "r3", "2026-01-03", files)  # carries the old part
        return real(*of, **more)

    monkeypatch.setattr(forgetting, "amend", late)
    done = without(lake, SECRET)
    assert SECRET not in served(lake)
    assert done.held_by == (1, 2, 3)


# ------------------------------------------------------------- the publish stage, and other tables


def test_a_run_that_took_up_a_part_meanwhile_is_not_published(tmp_path: Path) -> None:
    night = Night(config_of(tmp_path / "lake", "parquet"), "a", "d", range(10))
    night.publish()
    forget(night.lake, keys_of(3), who="me")
    night.lake.write_json("runs/a/stages/assign/done.json", {"complete": True})
    night.context = dataclasses.replace(night.context, run_id="late")
    with pytest.raises(TransientError, match=r"1 of 2 part files are gone.*part-0.*nothing is pub"):
        night.publish()
    assert read(night.lake, "runs/late/stages/assign/done.json") == b""
    assert served(night.lake) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("table_format", FORMATS)
def test_tables_follow(
    tmp_path: Path, table_format: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "lake", table_format)
    for run, ds, numbers in (("a", "d1", range(10)), ("b", "d2", range(5, 20))):
        Night(config, run, ds, numbers).publish()
    lake, table = Store(config.output), open_table(config, Store(config.output))
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(forgetting._Change, "_let_the_table_follow", kill)
            with pytest.raises(Killed):
                forget(lake, keys_of(7, 12, 99), who="me", table=table)
        assert [*snapshot_files(lake)] == [1, 2, 3]
    forget(lake, keys_of(7, 12, 99), who="me", table=table)
    left = sorted([*range(10), *range(5, 20)])
    left = [number for number in left if number not in (7, 12)]
    for reader in READERS[table_format]:
        assert sorted(reader(config)["id"].to_pylist()) == left, reader.__name__
    assert sorted(published(config.output)["id"].to_pylist()) == left
    assert [*snapshot_files(lake)] == [1, 2, 3]


# -------------------------------------------------------------------------- the command, and on S3


def settings_of(tmp_path: Path, output: str, keys: Sequence[str] = ("id",)) -> str:
    path = tmp_path / "config.yaml"
    source = {"path": str(tmp_path), "features": ["x"], "keys": list(keys)}
    path.write_text(yaml.safe_dump({"source": source, "output": output, "clusters": 2}), "utf-8")
    return str(path)


def test_the_command(lake: Store, dec: Dec, tmp_path: Path) -> None:
    two_nights(lake)
    config = settings_of(tmp_path, lake.url)
    keys = tmp_path / "keys.csv"
    keys.write_text(f"id\n{SECRET}\n")
    dry = dec("forget", config, "--keys", str(keys), "--dry-run")
    assert dry.code == 0, dry.err
    assert "would be removed from" in dry.out
    assert latest_snapshot(lake).snapshot == 2  # type: ignore[union-attr]
    shown = dec("forget", config, "--keys", str(keys))
    assert shown.code == 0, shown.err
    for text in (
        "published as snapshot 3",
        "forgotten/1.json",
        "still hold some of the rows until `dec gc`: 1, 2",
        "remove them there too",
        "models keep what they learnt",
    ):
        assert text in shown.out
    again = dec("forget", config, "--keys", str(keys), "--json")
    found = json.loads(again.out)
    assert (found["counts"], found["held_by"], found["receipts"]) == ([], [1, 2], [])
    for finished in (dry, shown, again):
        assert SECRET not in finished.out + finished.err
    assert SECRET not in served(lake)


def test_the_command_needs_keys(lake: Store, dec: Dec, tmp_path: Path) -> None:
    config = settings_of(tmp_path, lake.url, keys=())
    refused = dec("forget", config, "--keys", "keys.csv")
    assert refused.code == 2
    assert refused.err.startswith("error: source.keys is empty: shard and row number identify")


def test_on_s3(s3_env: dict[str, str]) -> None:
    lake = Store(f"s3://{BUCKET}/forgetting")
    two_nights(lake)
    stage_run(lake)
    register(lake, [cluster(0)], run="r9", sample=[sample_of(ids("a", SECRET))])
    done = without(lake, SECRET)
    assert done.held_by == (1, 2)
    files = assignment_files(lake)
    assert not any(SECRET in lake_ids(lake, path) for path in files)
    entry = registry.latest_entry(lake)
    assert entry is not None
    part = entry.champion.reference.sample.parts[0]
    assert lake.read_table(part.path)["id"].to_pylist() == ["a"]
    assert not lake.exists("runs/dead/assignments/part-0.parquet")
    assert without(lake, SECRET).counts == ()


def lake_ids(lake: Store, location: str) -> list[Any]:
    values: list[Any] = lake.read_table(location.removeprefix(f"{lake.url}/"))["id"].to_pylist()
    return values
