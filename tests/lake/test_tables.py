"""Iceberg and Delta tables, written by the publish stage and read back by other libraries."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import published
from published_tables import (
    FORMATS,
    READERS,
    Night,
    assigned,
    config_of,
    delta_table,
    expected,
    first_reader,
    iceberg_table,
    publish_at_once,
    rows_of,
    versions,
    with_pyiceberg,
)

from pipeline.config import Config
from pipeline.errors import (
    CommitConflict,
    CommitError,
    CommitStateUnknown,
    ConfigError,
)
from pipeline.lake import snapshots
from pipeline.lake.tables import check_table, open_table
from pipeline.stages import publish as publishing
from pipeline.storage import Store


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return config_of(tmp_path / "lake", request.param)


# ------------------------------------------------------------------------------ what readers see


def test_each_ds_has_the_rows_of_its_latest_run(config: Config) -> None:
    a = Night(config, "a", "2026-01-01", range(50))
    b = Night(config, "b", "2026-01-02", range(30, 70))
    again = Night(config, "c", "2026-01-01", range(40, 57), parts=1)
    for night in (a, b, again):
        night.publish()
    for read in READERS[config.lake.format]:
        assert rows_of(read(config)) == expected(b, again), read.__name__
    assert rows_of(published(config.output)) == expected(b, again)  # the log says the same


def test_every_column_comes_back(config: Config) -> None:
    night = Night(config, "a", "2026-01-01", range(9), parts=1)
    night.publish()
    wanted = assigned({"id": pa.array(range(9))}, 9, "a", "2026-01-01")
    for read in READERS[config.lake.format]:
        found = read(config).select(wanted.schema.names).sort_by("id")
        assert found.to_pylist() == wanted.sort_by("id").to_pylist(), read.__name__


def test_publishing_again_changes_nothing(config: Config) -> None:
    a, b = (Night(config, run, "2026-01-01", range(n)) for run, n in (("a", 20), ("b", 10)))
    first = a.publish()
    before = versions(config)
    assert a.publish() == first
    assert versions(config) == before
    b.publish()
    a.publish()  # whatever the log makes of that, the table follows
    serves = rows_of(published(config.output))
    assert serves in (expected(a), expected(b))
    assert rows_of(first_reader(config)(config)) == serves


def test_history_names_run_model_ds_and_commit(config: Config) -> None:
    night = Night(config, "a", "2026-01-01", range(5))
    night.publish()
    if config.lake.format == "delta":
        found = delta_table(config).history(1)[0]
    else:
        found = iceberg_table(config).current_snapshot().summary.additional_properties
    wanted = {
        "dec.run-id": "a",
        "dec.model-id": "m-1",
        "dec.ds": "2026-01-01",
        "dec.commit-id": night.commit.commit_id,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_parquet_has_no_table(tmp_path: Path) -> None:
    config = config_of(tmp_path / "lake", "parquet")
    night = Night(config, "a", "undated", range(5))
    assert night.publish().table is None
    assert sorted(path.name for path in (tmp_path / "lake").iterdir()) == [
        "current.json",
        "runs",
        "snapshots",
    ]


def test_another_format_publishes_the_same_run_again(tmp_path: Path) -> None:
    night = Night(config_of(tmp_path / "lake", "parquet"), "a", "undated", range(5))
    plain = night.publish()
    night.config = config_of(tmp_path / "lake", "iceberg")
    inputs = (night.model, night.assignments)
    stage = publishing.publish
    assert stage.fingerprint(night.config, inputs) != stage.fingerprint(
        config_of(tmp_path / "lake", "parquet"), inputs
    )
    assert night.publish().number == plain.number
    assert rows_of(with_pyiceberg(night.config)) == expected(night)
    assert night.config.result_settings() == config_of("/", "delta").result_settings()


# ----------------------------------------------------------- killed, raced, answers that are lost


def test_killed_before_the_log(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Night(config, "a", "2026-01-01", range(20))
    before.publish()
    night = Night(config, "b", "2026-01-01", range(5, 30))
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish_partition", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            night.publish()
    assert rows_of(first_reader(config)(config)) == expected(before)
    other = Night(config, "c", "2026-01-02", range(3))  # the table moved on meanwhile
    other.publish()
    night.publish()
    assert rows_of(first_reader(config)(config)) == expected(night, other)
    if config.lake.format == "iceberg":
        assert list(iceberg_table(config).refs()) == ["main"]  # no branch is left


def test_racing_publishers_one_wins(config: Config) -> None:
    Night(config, "first", "2026-01-02", range(3)).publish()
    nights = [Night(config, f"r{n}", "2026-01-01", range(n, n + 10)) for n in range(2)]
    together = threading.Barrier(len(nights))
    real = snapshots.publish

    def at_the_same_time(lake: Store, *rest: Any, **named: Any) -> Any:
        return real(_Meeting(lake.url, together), *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "publish_partition", at_the_same_time)
        with ThreadPoolExecutor() as pool:
            ends = [pool.submit(night.publish) for night in nights]
            errors = [end.exception(timeout=120) for end in ends]
    (winner,) = (night for night, error in zip(nights, errors, strict=True) if error is None)
    (lost,) = (error for error in errors if error is not None)
    assert isinstance(lost, CommitConflict)
    assert f"run {winner.run_id} published" in str(lost)
    in_table = [row for row in rows_of(first_reader(config)(config)) if row[0] == winner.ds]
    assert in_table == expected(winner)
    assert rows_of(published(config.output, winner.ds)) == expected(winner)


class _Meeting(Store):
    """A store whose users wait for one another before each creates a snapshot."""

    def __init__(self, url: str, together: threading.Barrier) -> None:
        super().__init__(url)
        self._together: threading.Barrier | None = together

    def create_json(self, path: str, content: Any) -> bool:
        together, self._together = self._together, None
        if together:
            together.wait(60)
        return super().create_json(path, content)


def test_three_ds_at_once_are_all_kept(config: Config) -> None:
    nights = publish_at_once(config)
    assert rows_of(first_reader(config)(config)) == expected(*nights)


def test_another_commit_before_ours_is_kept(config: Config) -> None:
    # A commit of another ds lands after the table's state was read, right before ours.
    other = Night(config, "b", "2026-01-02", range(4))
    night = Night(config, "a", "2026-01-01", range(7))
    table = night.table
    table.prepare(night.commit)
    asked = []

    def serves() -> bool:
        if not asked:
            other.publish()
        asked.append(1)
        return True

    assert table.follow(night.commit, serves)
    assert len(asked) > 1  # and the log is asked again
    assert rows_of(first_reader(config)(config)) == expected(night, other)


def test_what_the_log_replaced_does_not_come_late(config: Config) -> None:
    # Ours is published in the log, then replaced in log and table, and only then ours goes on.
    newer = Night(config, "b", "2026-01-01", range(4))
    night = Night(config, "a", "2026-01-01", range(7))
    table = night.table
    table.prepare(night.commit)
    asked = []

    def serves() -> bool:
        asked.append(1)
        if len(asked) == 1:
            newer.publish()
            return True  # it was asked before
        return False

    assert not table.follow(night.commit, serves)
    assert rows_of(first_reader(config)(config)) == expected(newer)


def test_catalog_that_is_gone_when_it_is_needed(tmp_path: Path) -> None:
    config = config_of(tmp_path / "lake", "iceberg")
    night = Night(config, "a", "2026-01-01", range(5))
    table = night.table
    table.prepare(night.commit)
    (tmp_path / "lake/iceberg/catalog.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(CommitStateUnknown, match="nothing was deleted"):
        table.follow(night.commit, lambda: True)


def test_the_audit_finds_rows_that_are_missing(config: Config) -> None:
    if config.lake.format == "delta":
        pytest.skip("Delta has no branches; what assign counted is what the log lists")
    night = Night(config, "a", "2026-01-01", range(20))
    wrong = replace(night.commit, rows=21)
    with pytest.raises(
        CommitError, match=r"20 rows in 2 files .* 0 rows besides; expected 21 in 2 and 0"
    ):
        night.table.prepare(wrong)
    assert len(with_pyiceberg(config)) == 0  # main has not moved


# --------------------------------------------------------------------------- odd names of lakes


@pytest.mark.parametrize(
    "name", ["lake%41", "a%2Fb", "100%", "lake?", "a#b", "a b+ü&c=d", "日本[1]"]
)
def test_odd_location_works_or_is_refused_at_once(
    tmp_path: Path, config: Config, name: str
) -> None:
    config = config_of(tmp_path / name, config.lake.format)
    if config.lake.format == "delta" and name in ("lake%41", "a%2Fb"):
        with pytest.raises(ConfigError, match=r"output=.* holds %(41|2F), which readers of"):
            check_table(config, Store(config.output))
        assert list(tmp_path.iterdir()) == []
        return
    check_table(config, Store(config.output))
    night = Night(config, "a", "2026-01-01", range(50))
    night.publish()
    # The format's own library: Polars and DuckDB encode or glob such paths of Delta tables.
    assert rows_of(first_reader(config)(config)) == expected(night)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and no folder beside it


@pytest.mark.parametrize(
    ("table_format", "refused"),
    [("parquet", ""), ("iceberg", "?#"), ("delta", "?#\\")],
)
def test_odd_location_in_a_store(table_format: str, refused: str) -> None:
    for character in "?#\\ü +&=":
        config = config_of(
            f"s3://bucket/a{character}b", table_format, catalog={"type": "in-memory"}
        )
        refusal = pytest.raises(ConfigError, match="readers of") if character in refused else None
        with refusal or contextlib.nullcontext():
            open_table(config, Store(config.output))
