"""Random tables of several writers: the keys that are read, and would be published, are theirs."""

from __future__ import annotations

import datetime
import itertools
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.pinning import list_shards, pin
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.operations.forgotten_keys import KeySet, key_table
from pipeline.registry.clusters import keys_as_json

pytest.importorskip("hypothesis", reason="of the extra dev")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

START, END = datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)
NEAR = datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)  # within nanoseconds
DAY = datetime.timedelta(days=1)


def integers(bits: int, signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1)


def milliseconds(times: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return times.map(lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=16)
TIMES, DATES = st.times(), st.dates()
ANY_TIME, NEAR_TIME = st.datetimes(START, END), st.datetimes(*NEAR)
# Each kind: its types, which shards may mix, and values that all of them hold.
KINDS: list[tuple[list[pa.DataType], st.SearchStrategy[Any]]] = [
    ([pa.bool_()], st.booleans()),
    ([pa.int8(), pa.int16(), pa.int32(), pa.int64()], integers(8, True)),
    ([pa.int64()], integers(64, True)),
    ([pa.uint8(), pa.uint16(), pa.int64(), pa.uint64()], integers(8, False)),
    ([pa.uint64()], integers(64, False)),
    ([pa.float32(), pa.float64()], st.floats(width=32)),
    ([pa.float64()], st.floats()),
    ([pa.decimal128(9, 3)], st.decimals(-999_999, 999_999, places=3)),
    ([pa.decimal128(38, 3)], st.decimals(-(10**20), 10**20, places=3)),
    ([pa.decimal128(9, 3), pa.decimal128(18, 5)], st.decimals(-999, 999, places=2)),
    ([pa.string(), pa.large_string(), pa.string_view()], TEXTS),
    ([pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string_view()], TEXTS),
    ([pa.binary(), pa.large_binary(), pa.binary_view()], st.binary(max_size=16)),
    ([pa.binary(4), pa.binary()], st.binary(min_size=4, max_size=4)),
    ([pa.date32()], DATES),
    ([pa.time64("us"), pa.time32("ms")], milliseconds(TIMES)),
    ([pa.timestamp("us"), pa.timestamp("ms")], milliseconds(ANY_TIME)),
    ([pa.timestamp("ns"), pa.timestamp("us")], NEAR_TIME),
    ([pa.timestamp("us", "UTC")], st.datetimes(START + DAY, END - DAY)),
    ([pa.uuid()], st.uuids(allow_nil=True).map(lambda found: found.bytes)),
]
WRITERS = ["pyarrow", "pyarrow", "int96", "duckdb", "polars"]
PAGES = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["NONE", "snappy", "zstd"]),
        "use_dictionary": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "store_schema": st.booleans(),
        "row_group_size": st.integers(1, 8),
        "write_statistics": st.booleans(),
    }
)


@st.composite
def shards(draw: st.DrawFn) -> list[tuple[pa.Table, str, dict[str, Any]]]:
    """Tables of a source, each with its writer and settings."""
    numbers = draw(st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=3))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(0 if found else 1, 12))
        columns: dict[str, pa.Array] = {"x": pa.array(np.arange(rows) * 0.5)}
        for place, number in enumerate(numbers):
            types, values = KINDS[number]
            some = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
            columns[f"k{place}"] = pa.array(some, draw(st.sampled_from(types)))
        if found and draw(st.booleans()):
            columns = dict(reversed(columns.items()))
        found.append((pa.table(columns), draw(st.sampled_from(WRITERS)), draw(PAGES)))
    return found


def write(table: pa.Table, path: Path, writer: str, pages: dict[str, Any]) -> None:
    kinds = table.schema.types
    views = any(pa.types.is_string_view(k) or pa.types.is_binary_view(k) for k in kinds)
    extension = any(isinstance(kind, pa.BaseExtensionType) for kind in kinds)
    if writer == "polars" and not extension and not any(map(pa.types.is_fixed_size_binary, kinds)):
        polars.from_arrow(table).write_parquet(path, row_group_size=pages["row_group_size"])  # type: ignore[union-attr]
    elif writer == "duckdb" and not views and not extension:
        with duckdb.connect() as database:
            database.register("t", table)
            database.sql(f"copy t to '{path}' (format parquet)")
    else:
        pages = pages | {"use_deprecated_int96_timestamps": writer == "int96"}
        pq.write_table(table, path, **pages)


def comparable(value: Any) -> Any:
    """NaN equals NaN, and -0.0 is not 0.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value


def rows_of(path: str, names: list[str]) -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        database.sql("set timezone = 'UTC'")
        found = database.sql(f"select {', '.join(names)} from read_parquet('{path}')").fetchall()
    return [tuple(map(comparable, row)) for row in found]


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
@given(shards())
def test_keys_are_those_that_duckdb_reads(
    tables: list[tuple[pa.Table, str, dict[str, Any]]],
) -> None:
    names = sorted(name for name in tables[0][0].column_names if name != "x")
    with TemporaryDirectory() as folder:
        for number, (table, writer, pages) in enumerate(tables):
            write(table, Path(folder, f"{number}.parquet"), writer, pages)
        source = {"path": folder, "features": ["x"], "keys": names}
        config = Config.model_validate({"source": source, "output": "unused", "clusters": 2})
        found = pin(config, list_shards(config))
        reader = Reader(found.features, found.dtype, "error", found.carried, False)
        blocks = list(reader.blocks(pieces_of_shards(found.shards, 1)))
        tables_read = [block.carried for block in blocks if block.carried is not None]
        keys = pa.concat_tables([found.carried.empty_table(), *tables_read])
        published = f"{folder}/published"
        pq.write_table(keys, published)
        expected = [rows_of(f"{folder}/{n}.parquet", names) for n in range(len(tables))]
        assert rows_of(published, names) == list(itertools.chain(*expected))
    assert sum(len(block.x_BF) for block in blocks) == len(keys)
    # Each key is found again, by its value and by its text.
    assert KeySet(keys, "keys").found_in(keys).all()
    assert KeySet(key_table(keys_as_json(keys), keys.schema), "keys").found_in(keys).all()


def test_keys_that_no_type_holds_are_an_error(tmp_path: Path) -> None:
    for number, (_, values) in enumerate([(0, ["a"]), (1, [1])]):
        pq.write_table(pa.table({"x": [1.0], "k": values}), tmp_path / f"{number}.parquet")
    source = {"path": str(tmp_path), "features": ["x"], "keys": ["k"]}
    config = Config.model_validate({"source": source, "output": "unused", "clusters": 2})
    with pytest.raises(InputError, match=r"1\.parquet, column k: type int64 does not fit string"):
        pin(config, list_shards(config))
