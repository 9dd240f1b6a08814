"""Types of values that Parquet writers use: read as they are, or refused with a clear message."""

from __future__ import annotations

import base64
import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from pipeline.config import Config
from pipeline.errors import BadShard, InputError
from pipeline.input.parquet import opening
from pipeline.input.parquet.opening import ShardFile
from pipeline.input.parquet.plain_types import plain_array, plain_type
from pipeline.input.pinning import PinnedInput, list_shards, pin
from pipeline.input.reading import Reader, RowBlock, pieces_of_shards
from pipeline.lake.parts import statistics_of
from pipeline.schema import classes_in

YEAR_9999, YEAR_1600 = datetime.datetime(9999, 12, 31), datetime.datetime(1600, 1, 1)


def write(path: Path, columns: dict[str, Any], **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **how)


def pinned(path: Path, **source: Any) -> tuple[Config, PinnedInput]:
    label = source.pop("label", None)
    source = {"path": str(path), "features": ["x"], **source}
    content = {"source": source, "output": "unused", "clusters": 2, "evaluate": {"label": label}}
    config = Config.model_validate(content)
    return config, pin(config, list_shards(config))


def read(path: Path, **source: Any) -> list[RowBlock]:
    config, found = pinned(path, **source)
    keys = bool(config.source.keys)
    reader = Reader(found.features, found.dtype, config.source.nulls, found.carried, not keys)
    return list(reader.blocks(pieces_of_shards(found.shards, 1)))


def keys_of(path: Path, **source: Any) -> pa.Table:
    blocks = read(path, keys=["k"], **source)
    return pa.concat_tables([block.carried.select(["k"]) for block in blocks if block.carried])


def rows_of(path: Path, **source: Any) -> list[list[float]]:
    return np.concatenate([block.x_BF for block in read(path, **source)]).tolist()


# --------------------------------------------------------------------------------------- INT96


@pytest.mark.parametrize("row_group_size", [None, 2])
def test_int96_timestamps_of_any_year_are_unchanged(
    tmp_path: Path, row_group_size: int | None
) -> None:
    times = [YEAR_9999, YEAR_1600, None, datetime.datetime(2020, 2, 29, 1, 2, 3, 456_789)]
    columns = {"x": [1.0] * 4, "k": pa.array(times, pa.timestamp("us"))}
    how = {"use_deprecated_int96_timestamps": True, "row_group_size": row_group_size}
    write(tmp_path / "a.parquet", columns, **how)
    assert pq.ParquetFile(tmp_path / "a.parquet").schema.column(1).physical_type == "INT96"
    found = keys_of(tmp_path)["k"]
    assert found.type == pa.timestamp("us")
    assert found.to_pylist() == times
    stored = [k for (k,) in duckdb.sql(f"select k from '{tmp_path}/a.parquet'").fetchall()]
    assert sorted(stored, key=str) == sorted(times, key=str)  # it may read row groups in any order


def test_int96_timestamps_beside_others(tmp_path: Path) -> None:
    times = pa.array([YEAR_9999, YEAR_1600], pa.timestamp("us"))
    int96 = {"use_deprecated_int96_timestamps": True}
    write(tmp_path / "a.parquet", {"x": [1.0] * 2, "k": times}, **int96)
    write(tmp_path / "b.parquet", {"x": [1.0] * 2, "k": times})
    assert keys_of(tmp_path)["k"].to_pylist() == [YEAR_9999, YEAR_1600] * 2


def test_int96_timestamps_as_features(tmp_path: Path) -> None:
    times = pa.array([YEAR_9999, YEAR_1600, None], pa.timestamp("us"))
    write(tmp_path / "a.parquet", {"x": times}, use_deprecated_int96_timestamps=True)
    expected = [[253_402_214_400.0], [-11_676_096_000.0], [np.nan]]
    np.testing.assert_array_equal(rows_of(tmp_path), expected)


def test_int96_timestamps_that_microseconds_do_not_hold(tmp_path: Path) -> None:
    times = pa.array([0, 1_500], pa.timestamp("ns"))
    columns = {"x": times, "k": times}
    write(tmp_path / "a.parquet", columns, use_deprecated_int96_timestamps=True)
    assert len(rows_of(tmp_path)) == 2  # as a feature they may be rounded
    with pytest.raises(
        InputError, match=r"a\.parquet, column k: INT96 .*finer than microsec.*NANOS"
    ):
        keys_of(tmp_path)


# --------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("kind", [pa.list_view(pa.float32()), pa.large_list_view(pa.float32())])
@pytest.mark.parametrize("part", [slice(0, 6), slice(1, 6), slice(2, 4), slice(3, 3)])
def test_plain_lists_of_views(kind: pa.DataType, part: slice) -> None:
    views = pa.array([[1.0], None, [2.0, 3.0], [], None, [4.0]], kind)
    views = views.slice(part.start, part.stop - part.start)
    found = plain_array(views)
    found.validate(full=True)
    assert found.type == plain_type(kind)
    assert found.to_pylist() == views.to_pylist()


def test_views_that_overlap_and_are_out_of_order() -> None:
    offsets, sizes = pa.array([2, 0, 1], pa.int32()), pa.array([1, 2, 2], pa.int32())
    views = pa.ListViewArray.from_arrays(offsets, sizes, pa.array([1.0, 2.0, 3.0]))
    assert plain_array(views).to_pylist() == [[3.0], [1.0, 2.0], [2.0, 3.0]]


@pytest.mark.parametrize("kind", [pa.list_view(pa.float32()), pa.large_list_view(pa.float32())])
def test_list_views_as_features(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", {"x": pa.array([[1, 2], None, [3, 4]], kind)})
    write(tmp_path / "b.parquet", {"x": pa.array([[5, 6]], pa.list_(pa.float32(), 2))})
    expected = [[1, 2], [np.nan] * 2, [3, 4], [5, 6]]
    np.testing.assert_array_equal(rows_of(tmp_path, nulls="mean"), expected)


@pytest.mark.parametrize("other", [pa.string_view(), pa.string(), pa.large_string()])
def test_string_views_as_keys(tmp_path: Path, other: pa.DataType) -> None:
    long = "longer than what fits into a view"
    views = pa.array(["a", None, long], pa.string_view())
    write(tmp_path / "a.parquet", {"x": [1.0] * 3, "k": views})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": pa.array(["b"], other)})
    found = keys_of(tmp_path)["k"]
    assert found.to_pylist() == ["a", None, long, "b"]
    assert found.type in (pa.string(), pa.large_string())


def test_binary_views_as_keys(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0] * 2, "k": pa.array([b"a", None], pa.binary_view())})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": pa.array([b"bc"], pa.binary(2))})
    found = keys_of(tmp_path)["k"]
    assert (found.type, found.to_pylist()) == (pa.binary(), [b"a", None, b"bc"])


def test_string_views_as_labels_and_categories(tmp_path: Path) -> None:
    words = pa.array(["a", None, "b"], pa.string_view())
    write(tmp_path / "a.parquet", {"x": words, "y": words})
    write(tmp_path / "b.parquet", {"x": ["b"], "y": ["c"]})
    blocks = read(tmp_path, label="y")
    assert [b.carried["y"].to_pylist() for b in blocks if b.carried] == [["a", None, "b"], ["c"]]
    codes = np.concatenate([block.x_BF for block in blocks]).ravel()
    assert np.isnan(codes[1])
    assert codes[2] == codes[3] != codes[0]
    assert [b.stored["x"].to_pylist() for b in blocks if b.stored] == [["a", None, "b"], ["b"]]


# --------------------------------------------------------------------- names, nulls and mixtures


def test_a_column_called_like_the_leaf_of_a_list(tmp_path: Path) -> None:
    lists = pa.array([[1.0, 2.0], [3.0, 4.0]])
    columns = {"x": lists, "x.list.element": [5.0, 6.0], "x.y": ["a", "b"], "k": [1, 2]}
    write(tmp_path / "a.parquet", columns)
    assert rows_of(tmp_path) == [[1, 2], [3, 4]]
    assert rows_of(tmp_path, features=["x.list.element", "x"]) == [[5, 1, 2], [6, 3, 4]]
    assert keys_of(tmp_path, features=["x.list.element"])["k"].to_pylist() == [1, 2]
    assert read(tmp_path, features=["x.y"])[0].stored.to_pydict() == {"x.y": ["a", "b"]}


def test_sizes_count_the_leaves_of_the_selected_columns(tmp_path: Path) -> None:
    columns = {"s": [{"a": 1, "b": [1, 2]}] * 2, "x": [1.0, 2.0], "x.y": np.arange(2)}
    write(tmp_path / "a.parquet", columns)
    footer = ShardFile(pa.memory_map(f"{tmp_path}/a.parquet"), "a").footer
    assert footer.leaves == {"s": [0, 1], "x": [2], "x.y": [3]}
    sizes = [footer.metadata.row_group(0).column(n).total_compressed_size for n in range(4)]
    assert footer.stored_bytes(0, ["s", "x"]) == sum(sizes[:3])


@pytest.mark.parametrize("first", ["null", "number"])
def test_a_column_of_type_null_in_some_shards(tmp_path: Path, first: str) -> None:
    parts = {"null": pa.nulls(2), "number": pa.array([1.0, 2.0])}
    other = {"null": "number", "number": "null"}[first]
    for name, kind in (("a", first), ("b", other)):
        write(tmp_path / f"{name}.parquet", {"x": parts[kind], "k": parts[kind], "y": [0.0, 0.0]})
    found = keys_of(tmp_path, features=["x", "y"], nulls="mean")
    assert found["k"].type == pa.float64()
    assert sorted(found["k"].to_pylist(), key=str) == [1.0, 2.0, None, None]
    rows = np.array(rows_of(tmp_path, features=["x", "y"], nulls="mean"))
    assert np.isnan(rows[:, 0]).sum() == 2
    assert rows_of(tmp_path, nulls="drop") == [[1.0], [2.0]]
    with pytest.raises(InputError, match="column x: 2 of 2 rows hold null"):
        read(tmp_path)


@pytest.mark.parametrize(
    "values",
    [["a", "b"], [True, False], pa.array([0, 1], pa.timestamp("s")), [[1.0, 2.0], [3.0, 4.0]]],
    ids=str,
)
def test_a_typed_column_of_type_null_in_some_shards(tmp_path: Path, values: Any) -> None:
    write(tmp_path / "a.parquet", {"x": pa.nulls(2)})
    write(tmp_path / "b.parquet", {"x": values})
    rows = np.array(rows_of(tmp_path, features=[{"column": "x"}]))
    assert np.isnan(rows[:2]).all()
    assert np.isfinite(rows[2:]).all()


def test_a_feature_of_type_null_in_every_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.nulls(2)})
    with pytest.raises(InputError, match=r"column x has no value in any shard.*source.features"):
        pinned(tmp_path, nulls="mean")


def test_unsigned_keys_beside_signed_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "k": [-1]})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": pa.array([7], pa.uint64())})
    assert keys_of(tmp_path)["k"].to_pylist() == [-1, 7]
    write(tmp_path / "b.parquet", {"x": [1.0], "k": pa.array([2**63], pa.uint64())})
    match = r"b\.parquet, column k: a value of type uint64 does not fit int64.*with one type"
    with pytest.raises(InputError, match=match) as error:
        keys_of(tmp_path)
    assert "permissions" not in str(error.value)


def test_integer_keys_that_floats_round(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "k": [0.5]})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": [2**53 + 1]})
    with pytest.raises(InputError, match=r"b\.parquet, column k: a value of type int64 does not"):
        keys_of(tmp_path)


def test_decimal_keys_that_floats_round(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "k": [0.5]})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": [decimal.Decimal("0.1")]})
    with pytest.raises(InputError, match=r"b\.parquet, column k: type decimal.* does not fit doub"):
        keys_of(tmp_path)


def test_timestamps_that_nanoseconds_do_not_hold(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "k": pa.array([0], pa.timestamp("ns"))})
    write(tmp_path / "b.parquet", {"x": [1.0], "k": pa.array([YEAR_9999], pa.timestamp("us"))})
    with pytest.raises(InputError, match=r"b\.parquet, column k: a value of type timestamp\[us"):
        keys_of(tmp_path)


def test_fields_of_structs_are_named_in_the_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "s": [{"a": 1.0}]})
    with pytest.raises(InputError, match=r"no column s\.a; s is a struct, and fields of structs"):
        pinned(tmp_path, features=["s.a"])
    with pytest.raises(InputError, match=r"no column s\.a; s is a struct"):
        pinned(tmp_path, keys=["s.a"])


NOT_KEYS = [
    [[1, 2]],
    pa.array([[1.0]], pa.list_view(pa.float64())),
    pa.array([[1.0]], pa.list_(pa.float64(), 1)),
    [{"a": 1}],
    pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2))),
]


@pytest.mark.parametrize("values", NOT_KEYS, ids=lambda values: str(pa.array(values).type)[:20])
def test_what_cannot_be_a_key_is_refused_when_the_input_is_pinned(
    tmp_path: Path, values: Any
) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0], "k": values})
    with pytest.raises(InputError, match=r"a\.parquet, column k: type .* cannot be a key"):
        pinned(tmp_path, keys=["k"])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), pa.uuid()], ids=str
)
def test_bytes_cannot_be_labels(tmp_path: Path, kind: pa.DataType) -> None:
    values = [uuid.UUID(int=1).bytes] if kind == pa.uuid() else [b"ab"]
    write(tmp_path / "a.parquet", {"x": [1.0], "y": pa.array(values, kind)})
    with pytest.raises(InputError, match=r"column y: type .* cannot be a label"):
        pinned(tmp_path, label="y")


def test_a_codec_that_is_not_read_is_no_matter_of_permissions(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1.0, 2.0]}, compression="snappy")
    _, found = pinned(tmp_path)
    reader = Reader(found.features, found.dtype, "error", found.carried, True)

    def unknown(*_: object, **__: object) -> None:
        raise pa.ArrowNotImplementedError("Unknown codec: LZO")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ShardFile, "batches", unknown)
        with pytest.raises(InputError, match="LZO; the installed pyarrow does not read") as error:
            list(reader.blocks(pieces_of_shards(found.shards, 1)))
    assert "permissions" not in str(error.value)


# -------------------------------------------------------------------------------- other writers


def test_keys_of_duckdb_and_polars(tmp_path: Path) -> None:
    """A column of each type that they write; the values are those that DuckDB reads."""
    types = (
        "uuid() as a, interval 3 day as b, time '01:02:03.5' as c, date '0001-01-01' as d, "
        "timestamptz '9999-12-31 00:00:00+00' as e, timestamp_ns '2020-01-01 00:00:00.000000001' "
        "as f, 1.5::decimal(4, 1) as g, 1.5::decimal(18, 1) as h, 1.5::decimal(38, 1) as i, "
        "'ab'::blob as j, 255::utinyint as k, 'x'::enum('x', 'y') as l, '[1]'::json as m, "
        "18446744073709551615::ubigint as n, true as o"
    )
    duckdb.sql(f"copy (select 1.0 as x, {types}) to '{tmp_path}/a.parquet' (format parquet)")
    names = [chr(letter) for letter in range(ord("a"), ord("o") + 1)]
    (block,) = read(tmp_path, keys=names)
    assert block.carried is not None
    pq.write_table(block.carried, tmp_path / "published.parquet")
    for name in (name for name in names if name != "b"):  # Arrow has intervals as twelve bytes
        before, after = (
            duckdb.sql(f"select typeof({name}), {name} from '{tmp_path}/{file}.parquet'").fetchall()
            for file in ("a", "published")
        )
        assert before == after


def test_views_of_polars(tmp_path: Path) -> None:
    frame = polars.DataFrame(
        {
            "x": [1.0, 2.0],
            "k": ["a", None],
            "c": polars.Series(["u", "v"], dtype=polars.Categorical),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    (block,) = read(tmp_path, keys=["k", "c"])
    assert block.carried is not None
    assert block.carried.to_pydict() == {"k": ["a", None], "c": ["u", "v"]}


# ------------------------------------------------------------------------------------ encryption


class _Kms(pe.KmsClient):
    def wrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64decode(key)


def write_encrypted(path: Path, table: pa.Table, **how: Any) -> None:
    factory = pe.CryptoFactory(lambda _: _Kms())
    settings = pe.EncryptionConfiguration(footer_key="k", **how)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("encrypted", ["x", "other"])
@pytest.mark.parametrize("plaintext_footer", [True, False])
@pytest.mark.parametrize("columns", [1, 2000])  # a footer of more than one read, too
def test_encrypted_files(
    tmp_path: Path, encrypted: str, plaintext_footer: bool, columns: int
) -> None:
    more = {f"c{n}": [1.0, 2.0] for n in range(columns)}
    table = pa.table({"x": [1.0, 2.0], "other": [1, 2], **more})
    write(tmp_path / "a.parquet", {name: table[name] for name in table.column_names})
    how = {"column_keys": {"k": [encrypted]}, "plaintext_footer": plaintext_footer}
    write_encrypted(tmp_path / "b.parquet", table, **how)
    with pytest.raises(BadShard, match=r"shard b\.parquet cannot be read: it is encrypted"):
        pinned(tmp_path)
    _, found = pinned(tmp_path, on_bad_shard="quarantine", max_bad_share=0.5)
    assert [shard.reason for shard in found.quarantined] == [
        "it is encrypted, and encrypted files are not read"
    ]


# ------------------------------------------------------------------------------ vectors of bytes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bytes_as_vectors_beside_lists(tmp_path: Path, dtype: str) -> None:
    rows = np.array([[1.0, -2.0, 0.5], [3.0, 4.0, 65504.0]], dtype)
    size = 3 * rows.itemsize
    as_bytes = pa.array([*(row.tobytes() for row in rows), None], pa.binary(size))
    write(tmp_path / "a.parquet", {"x": as_bytes})
    write(tmp_path / "b.parquet", {"x": pa.array(rows.tolist(), pa.list_(pa.float32()))})
    feature = {"column": "x", "type": "vector", "dtype": dtype}
    found = np.array(rows_of(tmp_path, features=[feature]))
    np.testing.assert_array_equal(found, [*rows, [np.nan] * 3, *rows])
    _, pinned_input = pinned(tmp_path, features=[feature])
    (column,) = pinned_input.features
    assert (column.width, column.vector, column.dtype) == (3, True, dtype)


def test_bytes_that_are_no_vectors(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.array([b"abcdefg"], pa.binary(7)), "b": [b"abcd"]})
    whole = r"a\.parquet, column x: 7 bytes are not a whole number of float32; correct its dtype"
    with pytest.raises(InputError, match=whole):
        pinned(tmp_path, features=[{"column": "x", "dtype": "float32"}])
    with pytest.raises(InputError, match=r"type binary cannot be a vector.*or bytes of one size"):
        pinned(tmp_path, features=[{"column": "b", "type": "vector", "dtype": "float32"}])
    with pytest.raises(InputError, match=r"cannot be a vector.*or bytes of one size with dtype"):
        pinned(tmp_path, features=[{"column": "x", "type": "vector"}])


def test_a_dtype_is_for_vectors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column x: dtype=float16 is for type: vector"):
        pinned(tmp_path, features=[{"column": "x", "type": "number", "dtype": "float16"}])


# -------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_nan_is_a_missing_label(kind: pa.DataType) -> None:
    label = pa.array(np.array([0, np.nan, 1, np.inf, 1], kind.to_pandas_dtype())).cast(kind)
    label = pa.concat_arrays([label, pa.nulls(1, kind)])
    table = pa.table({"cluster_id": np.zeros(6, np.int32), "confidence": np.ones(6, np.float32)})
    found = statistics_of("identity", 6, table, label)
    assert found.contingency == [[0, 0.0, 1], [0, 1.0, 2], [0, "inf", 1]]
    assert classes_in(label).null_count == 2


@pytest.mark.parametrize(
    "label",
    [
        pa.array([decimal.Decimal(1), None], pa.decimal32(5, 2)),
        pa.array([1, None], pa.duration("s")),
        pa.array([1, None], pa.bool8()),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([datetime.date(2020, 1, 1), None]),
        pa.array([True, None]),
    ],
    ids=lambda label: str(label.type),
)
def test_labels_of_any_type(label: pa.Array) -> None:
    table = pa.table({"cluster_id": np.zeros(2, np.int32), "confidence": np.ones(2, np.float32)})
    ((cluster, _, rows),) = statistics_of("identity", 2, table, label).contingency
    assert (cluster, rows) == (0, 1)


def test_files_of_the_input_are_opened_in_one_place() -> None:
    """Whoever opens them otherwise would read other types, or wrong timestamps."""
    folder = Path(opening.__file__).parents[1]
    opened = [p.name for p in folder.rglob("*.py") if "import pyarrow.parquet" in p.read_text()]
    # The others read the log and the deletes of lake tables.
    assert {*opened} - {"delta.py", "entries.py"} == {"opening.py"}
