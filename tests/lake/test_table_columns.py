"""What a table can hold, and what is known of it before the night."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import published
from published_tables import FORMATS, READERS, Night, config_of, delta_table, expected, rows_of

from pipeline.config import Config
from pipeline.errors import ConfigError, InputError, TransientError
from pipeline.lake import snapshots, tables
from pipeline.lake.tables import check_columns, check_table
from pipeline.schema import ASSIGNMENT_FIELDS
from pipeline.storage import Store


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return config_of(tmp_path / "lake", request.param)


# ----------------------------------------------------------------------------- types of the keys

NINE = range(9)
KEYS: dict[str, pa.Array] = {
    "bool": pa.array([i % 2 == 0 for i in NINE]),
    "int8": pa.array([-1, *range(8)], pa.int8()),
    "int16": pa.array([-300, *range(8)], pa.int16()),
    "int32": pa.array(NINE, pa.int32()),
    "int64": pa.array([2**62 + i for i in NINE]),
    "float32": pa.array([0.5 * i for i in NINE], pa.float32()),
    "float64": pa.array([0.1 * i for i in NINE]),
    "decimal": pa.array([f"{i}.25" for i in NINE]).cast(pa.decimal128(10, 2)),
    "date": pa.array(range(20000, 20009), pa.int32()).cast(pa.date32()),
    "string": pa.array([f"k{i}" for i in NINE]),
    "large_string": pa.array([f"é{i}" for i in NINE], pa.large_string()),
    "nulls": pa.array([None, *(f"k{i}" for i in range(8))]),
    "dictionary": pa.array([f"k{i % 2}" for i in NINE]).dictionary_encode(),
    "binary": pa.array([bytes([i]) for i in NINE]),
    "timestamp_us": pa.array([i * 10**15 + 1 for i in NINE], pa.timestamp("us")),
    "timestamp_ms": pa.array([i * 10**12 + 1 for i in NINE], pa.timestamp("ms")),
    "timestamp_utc": pa.array([i * 10**15 + 1 for i in NINE], pa.timestamp("us", "UTC")),
}
ICEBERG_ONLY = {
    "uuid_bytes": pa.array([bytes([i] * 16) for i in NINE], pa.binary(16)),
    "time": pa.array([i * 10**6 for i in NINE], pa.time64("us")),
}


def test_keys_come_back_as_they_were(config: Config) -> None:
    keys = KEYS | (ICEBERG_ONLY if config.lake.format == "iceberg" else {})
    night = Night(config, "a", "2026-01-01", NINE, {"id": pa.array(NINE), **keys})
    check_columns(config.lake.format, night.commit.columns)
    night.publish()
    for read in READERS[config.lake.format]:
        found = read(config).sort_by("id")
        for name, column in keys.items():
            kept = found[name].cast(column.type) if name == "dictionary" else found[name]
            assert kept.to_pylist() == column.to_pylist(), f"{read.__name__} {name}"
    # A second night finds the columns that it needs.
    Night(config, "b", "2026-01-02", NINE, {"id": pa.array(NINE), **keys}).publish()
    check_table(config, Store(config.output), night.commit.columns)


@pytest.mark.parametrize("table_format", FORMATS)
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (pa.uint8(), "cast it to int64"),
        (pa.uint64(), "cast it to int64"),
        (pa.dictionary(pa.int32(), pa.uint32()), "cast it to int64"),
        (pa.timestamp("ns"), r"cast it to timestamp\[us\]"),
        (pa.timestamp("us", "Europe/Amsterdam"), "tz=UTC"),
        (pa.list_(pa.int64()), "cast it to a string or a number"),
        (pa.struct({"a": pa.int64()}), "cast it to a string or a number"),
        (pa.duration("us"), "cast it"),
        (pa.float16(), "cast it"),
    ],
    ids=str,
)
def test_keys_that_a_format_lacks(table_format: str, kind: pa.DataType, remedy: str) -> None:
    columns = pa.schema([pa.field("k", kind), *ASSIGNMENT_FIELDS])
    with pytest.raises(InputError, match=rf"key column k is .*{remedy}.*lake.format: parquet"):
        check_columns(table_format, columns)


def test_names_that_a_format_lacks() -> None:
    with pytest.raises(InputError, match="key column 'a b' cannot be a column of a Delta table"):
        check_columns("delta", pa.schema([("a b", pa.int64())]))
    with pytest.raises(InputError, match="columns run_id and Run_ID differ in case only"):
        check_columns("iceberg", pa.schema([("run_id", pa.string()), ("Run_ID", pa.string())]))


def test_other_keys_than_the_table_has(config: Config) -> None:
    first = Night(config, "a", "2026-01-01", range(5))
    first.publish()
    other = Night(config, "b", "2026-01-02", range(5), {"id": pa.array([f"{i}" for i in range(5)])})
    wanted = "columns id int64, and 9 that agree, this run's assignments id string, and 9"
    with pytest.raises(InputError, match=wanted):
        check_table(config, Store(config.output), other.commit.columns)
    with pytest.raises(InputError, match=wanted):
        other.publish()
    assert rows_of(published(config.output)) == expected(first)  # not in the log either


# ------------------------------------------------------------------------------- before the night


@pytest.mark.parametrize("table_format", FORMATS)
def test_library_that_is_not_installed(
    table_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'dec-pipeline\[{table_format}\]'"):
        check_table(config_of(tmp_path, table_format), Store(str(tmp_path)))


def test_checking_leaves_nothing_behind(config: Config) -> None:
    check_table(config, Store(config.output))
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("catalog", "says"),
    [
        ({"type": "sql", "uri": "sqlite:////no/such/folder/x.db"}, "unable to open database file"),
        ({"type": "nothing"}, "nothing"),
        ({"type": "rest"}, "uri|URI"),
    ],
)
def test_catalog_that_cannot_be_opened(tmp_path: Path, catalog: dict[str, str], says: str) -> None:
    config = config_of(tmp_path, "iceberg", catalog=catalog)
    with pytest.raises(ConfigError, match=f"cannot be opened: .*({says}).*lake.catalog") as error:
        check_table(config, Store(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_catalog_that_does_not_answer(tmp_path: Path) -> None:
    catalog = {"type": "rest", "uri": "http://127.0.0.1:1"}
    config = config_of(tmp_path, "iceberg", catalog=catalog)
    with pytest.raises(TransientError, match=r"127.0.0.1:1 cannot be opened: .*\. Run the same"):
        check_table(config, Store(str(tmp_path)))


def test_damaged_delta_log(tmp_path: Path) -> None:
    config = config_of(tmp_path, "delta")
    Night(config, "a", "2026-01-01", range(5)).publish()
    for version in (tmp_path / "delta/_delta_log").glob("*.json"):
        version.write_text("{nonsense")
    with pytest.raises(ConfigError, match=r"Delta table .* cannot be opened"):
        check_table(config, Store(str(tmp_path)))


def test_the_catalog_is_sqlite_below_a_local_output(tmp_path: Path) -> None:
    config = config_of(tmp_path / "lake", "iceberg", table="prod.clusters")
    snapshot = Night(config, "a", "undated", range(5)).publish()
    assert snapshot.table is not None
    assert "prod.clusters" in snapshot.table
    with sqlite3.connect(tmp_path / "lake/iceberg/catalog.db") as database:
        found = database.execute("select table_namespace, table_name from iceberg_tables")
        assert found.fetchall() == [("prod", "clusters")]
    database.close()


def test_files_that_vacuum_removed_before_they_were_published(tmp_path: Path) -> None:
    config = config_of(tmp_path / "lake", "delta")
    served, night = (Night(config, run, "2026-01-01", range(9)) for run in "ab")
    served.publish()
    delta_table(config).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    with pytest.raises(TransientError, match=r"part files are gone .*b/part-0.parquet; nothing is"):
        night.publish()
    assert rows_of(published(config.output)) == expected(served)


def test_vacuum_of_the_delta_table_takes_nothing_of_ours(tmp_path: Path) -> None:
    config = config_of(tmp_path / "lake", "delta")
    old, new = (Night(config, run, "2026-01-01", range(9)) for run in "ab")
    for night in (old, new):
        night.publish()
    gone = delta_table(config).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    assert {str(path).partition("/")[0] for path in gone} == {
        "a"
    }  # files of the run that was replaced
    assert rows_of(published(config.output)) == expected(new)


# ------------------------------------------------------------------------------------------ Spark


@pytest.mark.slow
def test_spark_reads_plain_parquet(tmp_path: Path) -> None:
    # Its jars for Iceberg and Delta are downloads of their own; so only the files are read.
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not among the dev dependencies")
    lake = tmp_path / "lake"
    config = config_of(lake, "parquet")
    keys = {name: KEYS[name] for name in ("decimal", "nulls", "dictionary", "timestamp_us")}
    night = Night(config, "a", "2026-01-01", NINE, {"id": pa.array(NINE), **keys})
    old = Night(config, "z", "2026-01-01", range(30))
    for each in (old, night):
        each.publish()
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.warehouse.dir", str(tmp_path / "warehouse"))
        .getOrCreate()
    )
    try:
        files = snapshots.assignment_files(Store(config.output))
        found = session.read.parquet(*files).orderBy("id").collect()
    finally:
        session.stop()
    assert [(row.ds, row.run_id, row.id) for row in found] == expected(night)
    for name in ("decimal", "nulls", "dictionary"):
        assert [row[name] for row in found] == keys[name].to_pylist(), name
