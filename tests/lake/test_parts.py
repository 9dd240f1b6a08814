"""Part files: their identity, statistics, and when one that is there counts as done."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.assignments import PartFile
from pipeline.errors import TransientError
from pipeline.lake.parts import (
    part_identity,
    part_path,
    read_statistics,
    statistics_of,
    write_part,
    wrong_parts,
)
from pipeline.storage import Store

PIECES = pa.table(
    {
        "slice": [0, 0],
        "shard": [3, 4],
        "name": ["a.parquet", "b.parquet"],
        "version": ["v1", "v1"],
        "row_group": [0, 0],
        "row_start": [0, 0],
        "rows": [10, 5],
    }
)
ASSIGNED = pa.table(
    {
        "cluster_id": pa.array([0, 0, 2, 2, 2], pa.int32()),
        "confidence": pa.array([0.5, 0.75, 1.0, 0.5, 0.25], pa.float32()),
    }
)


def changed(column: str, value: Any) -> pa.Table:
    values = [PIECES[column][0].as_py(), value]
    return PIECES.set_column(PIECES.column_names.index(column), column, pa.array(values))


# ------------------------------------------------------------------------------------ identity


def test_identity_is_that_of_rows_and_model_alone() -> None:
    identity = part_identity(PIECES, model="m", ds="d")
    assert part_identity(PIECES, ds="d", model="m") == identity
    # Numbers that depend on what else is in the table: more shards must not write it again.
    assert part_identity(changed("slice", 7), model="m", ds="d") == identity
    assert part_identity(changed("shard", 9), model="m", ds="d") == identity


@pytest.mark.parametrize(
    ("column", "value"),
    [("name", "c.parquet"), ("version", "v2"), ("row_group", 1), ("row_start", 1), ("rows", 4)],
)
def test_other_rows_are_another_part(column: str, value: Any) -> None:
    before, after = (part_identity(p, model="m") for p in (PIECES, changed(column, value)))
    assert after != before
    assert part_path("f", after) != part_path("f", before)


def test_another_model_is_another_part() -> None:
    assert part_identity(PIECES, model="m") != part_identity(PIECES, model="n")
    assert part_identity(PIECES, model="m") != part_identity(PIECES.slice(0, 1), model="m")


# ---------------------------------------------------------------------------------- statistics


def test_statistics_by_hand() -> None:
    label = pa.array(["cat", "dog", "cat", None, "cat"])
    found = statistics_of("i", 6, ASSIGNED, label)
    assert (found.rows_in, found.rows) == (6, 5)
    assert found.cluster_rows == [[0, 2], [2, 3]]
    assert found.confidence_sum == 3.0
    # The row without a label does not count.
    assert sorted(found.contingency) == [[0, "cat", 1], [0, "dog", 1], [2, "cat", 2]]


@pytest.mark.parametrize(
    "label",
    [
        pa.array([1, 2, 1, 2, 1], pa.int16()),
        pa.array([1.5, 2.5, 1.5, 2.5, 1.5]),
        pa.array([True, False, True, False, True]),
        pa.array([b"a", b"b", b"a", b"b", b"a"]),
        pa.array([1, 2, 1, 2, 1], pa.date32()),
        pa.array(["a", "b", "a", "b", "a"]).dictionary_encode(),
    ],
    ids=lambda label: str(label.type),
)
def test_any_label_can_be_counted_and_stored(label: pa.Array) -> None:
    statistics = statistics_of("i", 5, ASSIGNED, label)
    # Cluster 0 has one row of each class; cluster 2 has two of the first and one of the second.
    assert sorted(rows for _, _, rows in statistics.contingency) == [1, 1, 1, 2]
    assert json.loads(json.dumps(asdict(statistics))) == asdict(statistics)


def test_statistics_of_no_rows() -> None:
    found = statistics_of("i", 4, ASSIGNED.slice(0, 0), None)
    assert (found.rows, found.cluster_rows, found.confidence_sum) == (0, [], 0.0)


# ----------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("rows", [5, 0])
def test_part_that_is_there_is_done(tmp_path: Path, rows: int) -> None:
    lake, table = Store(str(tmp_path)), ASSIGNED.slice(0, rows)
    statistics = statistics_of("i", 5, table, None)
    size = write_part(lake, "f/part.parquet", table, statistics)
    assert read_statistics(lake, "f/part.parquet", "i") == (statistics, size)
    assert (tmp_path / "f/part.parquet").stat().st_size == size
    assert pq.read_table(tmp_path / "f/part.parquet").equals(table)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    lake, statistics = Store(str(tmp_path)), statistics_of("i", 5, ASSIGNED, None)
    for name in ("a", "b"):
        write_part(lake, name, ASSIGNED, statistics)
    assert lake.read_bytes("a") == lake.read_bytes("b")


def test_part_with_a_class_that_is_no_number(tmp_path: Path) -> None:
    label = pa.array([1.0, float("nan"), 1.0, 1.0, float("nan")])
    lake, statistics = Store(str(tmp_path)), statistics_of("i", 5, ASSIGNED, label)
    assert write_part(lake, "part.parquet", ASSIGNED, statistics)
    assert read_statistics(lake, "part.parquet", "i") is not None


def test_absent_or_foreign_part_is_not_done(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    assert read_statistics(lake, "part.parquet", "i") is None
    write_part(lake, "part.parquet", ASSIGNED, statistics_of("i", 5, ASSIGNED, None))
    assert read_statistics(lake, "part.parquet", "another") is None
    pq.write_table(ASSIGNED, tmp_path / "plain.parquet")
    assert read_statistics(lake, "plain.parquet", "i") is None


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_part_that_was_cut_short_is_not_done(tmp_path: Path, keep: float) -> None:
    lake, path = Store(str(tmp_path)), tmp_path / "part.parquet"
    write_part(lake, path.name, ASSIGNED, statistics_of("i", 5, ASSIGNED, None))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert read_statistics(lake, path.name, "i") is None


def test_part_with_another_number_of_rows_is_not_done(tmp_path: Path) -> None:
    lake, path = Store(str(tmp_path)), tmp_path / "part.parquet"
    write_part(lake, path.name, ASSIGNED, statistics_of("i", 5, ASSIGNED, None))
    pq.write_table(pq.read_table(path).slice(1), path)
    assert read_statistics(lake, "part.parquet", "i") is None


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_upload_that_did_not_arrive_whole_is_noticed(tmp_path: Path, kept: int) -> None:
    class Lossy(Store):
        def write_bytes(self, path: str, content: Any) -> None:
            super().write_bytes(path, content[:kept])

    lake = Lossy(str(tmp_path))
    with pytest.raises(TransientError, match=r"is not the file of [\d,]+ bytes and 5 rows"):
        write_part(lake, "part.parquet", ASSIGNED, statistics_of("i", 5, ASSIGNED, None))


def test_parts_that_are_gone_or_changed_are_found(tmp_path: Path) -> None:
    lake, statistics = Store(str(tmp_path)), statistics_of("i", 5, ASSIGNED, None)
    paths = [f"{run}/{part}.parquet" for run in ("a", "b") for part in range(2)]
    files = [
        PartFile(path=path, rows=5, bytes=write_part(lake, path, ASSIGNED, statistics))
        for path in paths
    ]
    assert wrong_parts(lake, files) == []
    lake.delete([paths[0]])
    (tmp_path / paths[3]).write_bytes(b"")
    assert wrong_parts(lake, files) == [lake.locate(paths[0]), lake.locate(paths[3])]
