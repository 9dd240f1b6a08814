"""Every type of key is found, written as text and read back."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.assignments import PartFile
from pipeline.errors import InputError
from pipeline.operations.forgotten_keys import KeySet, key_table, read_keys
from pipeline.operations.locating import asked_key, find_rows
from pipeline.registry.clusters import keys_as_json
from pipeline.schema import ASSIGNMENT_FIELDS
from pipeline.storage import Store

NAN = float("nan")
DAYS = [datetime.date(1, 1, 1), datetime.date(2020, 2, 29), datetime.date(9999, 12, 31)]
DATES = [datetime.datetime(day.year, day.month, day.day, 1, 2, 3, 4) for day in DAYS]
CLOCK = [datetime.time(0), datetime.time(1, 2, 3), datetime.time(23, 59, 59)]
NUMBERS = [decimal.Decimal(text) for text in ("-1.50", "0.00", "99.25")]
ZONES = ["UTC", "Europe/Amsterdam", "+05:30"]
UUIDS = [uuid.UUID(int=n).bytes for n in (0, 5, 2**128 - 1)]
WORDS, BYTES = ["", "a", "grün 'quoted', \"too\""], [b"", b"\0\xff", b"abc"]

COLUMNS: dict[str, pa.Array] = {
    **{str(k): pa.array([1, 0, 7], k) for k in (pa.int8(), pa.int16(), pa.uint8(), pa.uint32())},
    "int64": pa.array([-(2**63), 0, 2**63 - 1]),
    "uint64": pa.array([2**64 - 1, 0, 2**63], pa.uint64()),
    "bool": pa.array([True, False, True]),
    "float16": pa.array(np.array([0.1, NAN, 65504], np.float16)),
    "float32": pa.array([0.1, NAN, 1e-45], pa.float32()),
    "float64": pa.array([0.1, float("-inf"), 5e-324]),
    "decimal32": pa.array(NUMBERS, pa.decimal32(5, 2)),
    "decimal64": pa.array(NUMBERS, pa.decimal64(15, 2)),
    "decimal128": pa.array(NUMBERS, pa.decimal128(38, 2)),
    "decimal256": pa.array(NUMBERS, pa.decimal256(76, 2)),
    **{str(kind): pa.array(WORDS, kind) for kind in (pa.string(), pa.large_string())},
    **{str(kind): pa.array(BYTES, kind) for kind in (pa.binary(), pa.large_binary())},
    "fixed_size_binary": pa.array([b"ab", b"\0\0", b"\xff\xff"], pa.binary(2)),
    "date32": pa.array(DAYS, pa.date32()),
    "date64": pa.array(DAYS, pa.date64()),
    **{str(kind): pa.array(CLOCK, kind) for kind in (pa.time32("s"), pa.time32("ms"))},
    "time64[us]": pa.array([datetime.time(1, 2, 3, 4), *CLOCK[1:]], pa.time64("us")),
    "time64[ns]": pa.array([1, 86_399_999_999_999, 0], pa.time64("ns")),
    "timestamp[s]": pa.array([0, -1, 1], pa.timestamp("s")),
    "timestamp[us]": pa.array(DATES, pa.timestamp("us")),
    "timestamp[ns]": pa.array([1, -1, 2**62], pa.timestamp("ns")),
    **{zone: pa.array([0, 1, 10**15], pa.timestamp("us", zone)) for zone in ZONES},
    **{
        f"duration[{u}]": pa.array([-1, 0, 10**12], pa.duration(u)) for u in ("s", "ms", "us", "ns")
    },
    "uuid": pa.array(UUIDS, pa.uuid()),
    "json": pa.array(["{}", "[1]", '{"a": "b"}'], pa.json_()),
    "bool8": pa.array([1, 0, 2], pa.bool8()),
    "opaque": pa.array([1, 2, 3], pa.int32()).cast(pa.opaque(pa.int32(), "a", "b")),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "dictionary of times": pa.array(CLOCK, pa.time64("us")).dictionary_encode(),
}


def with_null(column: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([column, pa.nulls(1, column.type)])


@pytest.mark.parametrize("name", COLUMNS)
def test_keys_are_found_and_told_apart(name: str) -> None:
    column = with_null(COLUMNS[name])
    others = pa.table({"k": column})
    for wanted in ([0], [1, 1], [3], [0, 1, 2, 3]):
        keys = KeySet(others.take(pa.array(wanted)), "keys")
        found = keys.found_in(others)
        expected = np.isin(np.arange(4), wanted)
        if name == "bool":
            expected |= np.array([0 in wanted or 2 in wanted] * 3 + [False]) & [
                True,
                False,
                True,
                True,
            ]
        assert found.tolist() == expected.tolist()
        assert len(keys.hashes("salt")) == len(keys)
    pair = pa.table({"a": [1, 1, 1, 2], "k": column})
    assert KeySet(pair.slice(1, 1), "keys").found_in(pair).tolist()[1]


@pytest.mark.parametrize("name", COLUMNS)
def test_keys_as_texts_are_the_same_keys(name: str) -> None:
    """As exemplars in the clusters table, and as the user writes them for ``dec locate``."""
    table = pa.table({"k": with_null(COLUMNS[name])})
    texts = keys_as_json(table)
    again = key_table(texts, table.schema)
    assert KeySet(again, "keys").found_in(table).all()
    for row, text in enumerate(texts[:3]):
        value = json.loads(text)["k"]
        word = value if isinstance(value, str) else json.dumps(value)
        assert asked_key([f"k={word}"], table.schema).found_in(table)[row]


@pytest.mark.parametrize("name", COLUMNS)
def test_keys_of_a_file_are_forgotten_and_located(tmp_path: Path, name: str) -> None:
    """Those of a Parquet file that has them as the input has; in a part of the assignments."""
    column = with_null(COLUMNS[name])
    ours = {f.name: pa.nulls(4, f.type).fill_null(0) for f in ASSIGNMENT_FIELDS[:1]}
    pq.write_table(pa.table({"k": column, **ours}), tmp_path / "part.parquet")
    pq.write_table(pa.table({"k": column.slice(1, 1)}), tmp_path / "keys.parquet")
    part = pq.read_table(tmp_path / "part.parquet")
    keys = read_keys(str(tmp_path / "keys.parquet"), ["k"]).cast(part.schema)
    assert keys.found_in(part).tolist() == [False, True, False, False]
    files = [PartFile(path="part.parquet", rows=4, bytes=1)]
    located, _ = find_rows(Store(str(tmp_path)), files, keys)
    assert len(located) == 1
    assert keys_as_json(located.select(["k"])) == keys_as_json(part.slice(1, 1).select(["k"]))


@pytest.mark.parametrize(
    "name", ["uuid", "time64[us]", "time32[ms]", "duration[us]", "date32", "float32", "float16"]
)
def test_keys_of_a_csv_file(tmp_path: Path, name: str) -> None:
    table = pa.table({"k": COLUMNS[name]})
    texts = [json.loads(text)["k"] for text in keys_as_json(table)]
    pa.csv.write_csv(pa.table({"k": pa.array(map(str, texts))}), tmp_path / "keys.csv")
    assert read_keys(str(tmp_path / "keys.csv"), ["k"]).cast(table.schema).found_in(table).all()


def test_keys_with_views_and_int96(tmp_path: Path) -> None:
    times = pa.array(DATES[1:], pa.timestamp("us"))
    table = pa.table({"s": pa.array(["a", "b"], pa.string_view()), "t": times})
    path = tmp_path / "keys.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    keys = read_keys(str(path), ["s", "t"])
    assert keys.found_in(pa.table({"s": ["b", "b"], "t": times})).tolist() == [False, True]


@pytest.mark.parametrize("word", ["zebra", "1234", "00000000-0000-0000-0000-00000000000g"])
def test_a_word_that_is_no_uuid(word: str) -> None:
    with pytest.raises(InputError, match=r"not a value of its column: k is extension<arrow\.uuid>"):
        asked_key([f"k={word}"], pa.schema([("k", pa.uuid())]))
