"""Iceberg tables as input: rows as pyiceberg itself returns them, after every change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_tables import config_of, pinned, read, rows
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import DataScan, FileScanTask, Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DoubleType, LongType

from pipeline.errors import InputError
from pipeline.input.pinning import list_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/w")
    catalog.create_namespace("n")
    return catalog.create_table("n.t", rows(1).schema)


def config(opened: Table, **source: Any) -> Any:
    uri = opened.catalog.properties["uri"]
    named = {"table": "n.t", "catalog": {"type": "sql", "uri": uri, "name": "c"}}
    return config_of(**({"format": "iceberg"} | named | source))


def by_pyiceberg(table: Table, **scan: Any) -> dict[Any, Any]:
    found = table.refresh().scan(selected_fields=("id", "x", "y"), **scan).to_arrow().to_pydict()
    return {key: (x, y) for key, x, y in zip(found["id"], found["x"], found["y"], strict=True)}


def test_rows_after_every_change(table: Table) -> None:
    table.append(rows(100))
    with table.update_spec() as spec:
        spec.add_field("country", IdentityTransform(), "country")
    changes: dict[str, Any] = {
        "append": lambda: table.append(rows(100, 100)),
        "delete": lambda: table.delete("id < 30"),
        "delete of a partition": lambda: table.delete("country == 'de'"),
        "overwrite": lambda: table.overwrite(rows(80, 500)),
        "new column": lambda: table.update_schema().add_column("z", DoubleType()).commit(),
        "rename": lambda: (
            table.update_schema().rename_column("x", "w").rename_column("y", "x").commit()
        ),
        "rename back": lambda: table.update_schema().rename_column("w", "y").commit(),
    }
    for name, change in changes.items():
        change()
        if name != "rename":  # between the two, y is missing
            assert read(config(table)) == by_pyiceberg(table), name
    assert len(read(config(table, features=["z", "x"], nulls="mean"))) == 80
    for snapshot in table.snapshots():
        if expected := by_pyiceberg(table, snapshot_id=snapshot.snapshot_id):
            assert read(config(table, version=snapshot.snapshot_id)) == expected
    location = table.metadata_location.removeprefix("file://")
    assert read(config(table, table=location, catalog={})) == by_pyiceberg(table)


def test_a_column_that_was_dropped_and_added_again(table: Table) -> None:
    table.append(rows(10))
    table.update_schema().delete_column("x").commit()
    table.update_schema().add_column("x", DoubleType()).commit()
    table.refresh().append(rows(10, 100).select(["id", "y", "country", "x"]))
    found = read(config(table, nulls="mean"))
    assert [key for key, (x, _) in found.items() if x == x] == list(range(100, 110))


def test_a_type_that_was_widened(table: Table) -> None:
    catalog = table.catalog
    narrow = pa.table({"id": pa.array([1, 2], pa.int32()), "x": [1.5, 2.5], "y": [0.5, 0.5]})
    wide = catalog.create_table("n.wide", narrow.schema)
    wide.append(narrow)
    wide.update_schema().update_column("id", LongType()).commit()
    settings = config(table, table="n.wide")
    assert pinned(settings).carried.field("id").type == pa.int64()
    assert read(settings) == {1: (1.5, 0.5), 2: (2.5, 0.5)}


@pytest.mark.parametrize(
    "where",
    [
        "country = 'nl' and id < 50",
        "not (country = 'nl' or x > 20)",
        "country is null",
        "id in (3,99)",
    ],
)
def test_where(table: Table, where: str) -> None:
    with table.update_spec() as spec:
        spec.add_field("country", IdentityTransform(), "country")
    table.append(rows(100))
    every = {row["id"]: row for row in rows(100).to_pylist()}
    expected = {
        "country = 'nl' and id < 50": lambda r: r["country"] == "nl" and r["id"] < 50,
        "not (country = 'nl' or x > 20)": lambda r: (
            r["country"] not in ("nl", None) and r["x"] <= 20
        ),
        "country is null": lambda r: r["country"] is None,
        "id in (3,99)": lambda r: r["id"] in (3, 99),
    }[where]
    found = read(config(table, where=where))
    assert sorted(found) == [key for key, row in every.items() if expected(row)]


def _with_deletes(monkeypatch: pytest.MonkeyPatch, deletes: list[DataFile]) -> None:
    """A plan with delete files, which pyiceberg reads but does not write."""
    planned = DataScan.plan_files

    def plan(self: DataScan) -> list[FileScanTask]:
        tasks = planned(self)
        return [FileScanTask(t.file, delete_files=set(deletes), residual=t.residual) for t in tasks]

    monkeypatch.setattr(DataScan, "plan_files", plan)


def test_position_deletes(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.append(rows(100))
    (task,) = table.scan().plan_files()
    before = pinned(config(table)).shards["version"].to_pylist()
    paths = [task.file.file_path] * 50 + ["file:///another.parquet"] * 50
    content = pa.table({"file_path": paths, "pos": [*range(50), *range(50, 100)]})
    path = tmp_path / "deletes.parquet"
    pq.write_table(content, path)
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{path}",
        file_format=FileFormat.PARQUET,
        file_size_in_bytes=path.stat().st_size,
        record_count=100,
    )
    _with_deletes(monkeypatch, [deletes])
    expected = by_pyiceberg(table)
    assert sorted(expected) == list(range(50, 100))
    assert read(config(table)) == expected
    assert pinned(config(table)).shards["version"].to_pylist() != before


def test_what_cannot_be_read(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has no live rows"):
        list_shards(config(table))
    table.append(rows(10))
    for source, message in (
        ({"version": 7}, "no such snapshot"),
        ({"version": "2001-01-01"}, "no such snapshot"),
        ({"table": "n.nothing"}, "the catalog has no such table"),
        ({"where": "nowhere = 1"}, "the table has no column nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            list_shards(config(table, **source))

    def equality(_: Any) -> None:
        raise ValueError("PyIceberg does not yet support equality deletes")

    monkeypatch.setattr(DataScan, "plan_files", equality)
    with pytest.raises(InputError, match="has equality deletes"):
        list_shards(config(table))
