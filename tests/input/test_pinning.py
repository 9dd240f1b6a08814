"""Finding shards and checking their footers, on real small Parquet files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input import footers, pinning
from pipeline.input.hive import hive_values
from pipeline.input.pinning import PinnedInput, check_enough_rows, list_shards, pin
from pipeline.input.selection import Selection
from pipeline.storage import parquet_bytes

VECTORS = pa.list_(pa.float32(), 2)
RAGGED = pa.list_(pa.float32())


def shard(path: Path, row_group_size: int | None = None, **columns: Any) -> Path:
    """Write a Parquet file; by default an id and a vector column of two rows."""
    columns = columns or {"id": [1, 2], "x": pa.array([[1, 2], [3, 4]], VECTORS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def config(path: Any, features: list[str] | None = None, **source: Any) -> Config:
    path = [str(p) for p in path] if isinstance(path, list) else str(path)
    label = source.pop("label", None)
    source = {"path": path, "features": features or ["x"], **source}
    return Config.model_validate(
        {"source": source, "output": "unused", "clusters": 2, "evaluate": {"label": label}}
    )


def pinned(path: Any, features: list[str] | None = None, **source: Any) -> PinnedInput:
    settings = config(path, features, **source)
    return pin(settings, list_shards(settings))


def names(path: Any) -> list[str]:
    return [file.name for file in list_shards(config(path))]


# -------------------------------------------------------------------------------- list_shards


def test_file_of_any_name(tmp_path: Path) -> None:
    assert names(shard(tmp_path / "table.dat")) == ["table.dat"]


def test_folder_in_depth_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/c.pq", "a/d.parq"):
        shard(tmp_path / name)
    for hidden in ("_SUCCESS", ".b.parquet", "_tmp/e.parquet", "a/.x/f.parquet", "notes.txt"):
        shard(tmp_path / hidden)
    assert names(tmp_path) == ["a/c.pq", "a/d.parq", "b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet"]),
        ("day=*/*.parquet", ["day=1/b.parquet", "day=2/c.parquet"]),
        ("day=*", ["day=1/b.parquet", "day=2/c.parquet"]),  # folders that match are searched
        ("day=[2-9]", ["day=2/c.parquet"]),
        ("**/*.parquet", ["a.parquet", "day=1/b.parquet", "day=2/c.parquet"]),
        ("*", ["a.parquet", "day=1/b.parquet", "day=2/c.parquet"]),
    ],
)
def test_glob(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("a.parquet", "day=1/b.parquet", "day=2/c.parquet", "_old.parquet"):
        shard(tmp_path / name)
    shard(tmp_path / "_temporary/0/half.parquet")  # an unfinished write is never input
    assert names(tmp_path / pattern) == expected


def test_list_of_locations(tmp_path: Path) -> None:
    files = [shard(tmp_path / "one/a.parquet"), shard(tmp_path / "two/b.parquet")]
    assert names([tmp_path / "two", tmp_path / "one"]) == ["a.parquet", "b.parquet"]
    # Named twice, there once.
    assert names([tmp_path / "one", files[0], tmp_path / "two/*.parquet"]) == [
        "a.parquet",
        "b.parquet",
    ]


def test_shards_of_one_name_keep_apart(tmp_path: Path) -> None:
    files = [shard(tmp_path / folder / "a.parquet") for folder in ("one", "two")]
    assert names([tmp_path / "one", tmp_path / "two"]) == [str(file) for file in files]


def test_size_and_version_follow_the_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet")
    (before,) = list_shards(config(path))
    assert before.bytes == path.stat().st_size
    shard(path, id=[1], x=pa.array([[1, 2]], VECTORS))
    (after,) = list_shards(config(path))
    assert after.version != before.version


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source\.path=.*absent: nothing exists at"):
        names(tmp_path / "absent")


@pytest.mark.parametrize("location", ["", "*.parquet"])
def test_no_parquet(tmp_path: Path, location: str) -> None:
    (tmp_path / "notes.txt").write_text("no table")
    with pytest.raises(InputError, match="holds no Parquet file"):
        names(tmp_path / location)


# -------------------------------------------------------------------------------------- pin


def test_shard_table(tmp_path: Path) -> None:
    ids = list(range(5))
    vectors = pa.array([[n, n] for n in ids], VECTORS)
    a = shard(tmp_path / "a.parquet", row_group_size=2, id=ids, x=vectors)
    b = shard(tmp_path / "b.parquet")
    found = pinned(tmp_path, keys=["id"])
    table = found.shards
    assert table["url"].to_pylist() == [str(a), str(b)]
    assert table["name"].to_pylist() == ["a.parquet", "b.parquet"]
    assert table["rows"].to_pylist() == [5, 2]
    assert table["row_group_rows"].to_pylist() == [[2, 2, 1], [2]]
    assert table["bytes"].to_pylist() == [a.stat().st_size, b.stat().st_size]
    (x,) = found.features
    assert (x.name, x.width, x.vector) == ("x", 2, True)
    assert found.dtype == "float32"
    assert found.carried == pa.schema([("id", pa.int64())])


def test_only_the_wanted_columns_count_as_work(tmp_path: Path) -> None:
    plain = {"x": pa.array(np.arange(100.0)), "id": pa.array(np.arange(100))}
    shard(tmp_path / "a.parquet", **plain)
    shard(
        tmp_path / "b.parquet", **plain, text=pa.array(["long" * 99 + str(n) for n in range(100)])
    )
    table = pinned(tmp_path).shards
    small, same = table["row_group_bytes"].to_pylist()
    assert small == same
    assert 0 < small[0] < table["bytes"][1].as_py() / 4


def test_progress_counts_footers(tmp_path: Path) -> None:
    for name in "abc":
        shard(tmp_path / f"{name}.parquet")
    settings = config(tmp_path)
    seen: list[int] = []
    pin(settings, list_shards(settings), on_footer=seen.append)
    assert seen == [1, 2, 3]


@pytest.fixture
def footers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose footers are read from here on, sorted when looked at."""
    read: list[str] = []
    footer = footers.read_footer

    def counted(file: Any) -> Any:
        read.append(file.name)
        return footer(file)

    for module in (pinning, footers):
        monkeypatch.setattr(module, "read_footer", counted)
    return read


def test_footers_that_are_known_are_not_read_again(tmp_path: Path, footers_read: list[str]) -> None:
    for name in "abcd":
        shard(tmp_path / f"{name}.parquet", row_group_size=1)
    pq.write_table(pa.table({"x": pa.nulls(0)}), tmp_path / "empty.parquet")
    settings = config(tmp_path, keys=["id"])
    before = pin(settings, list_shards(settings))
    known = round_trip(before.shards)
    footers_read.clear()
    assert pin(settings, list_shards(settings), known=known) == before
    assert footers_read == ["a.parquet"]  # globs are resolved against the first

    shard(tmp_path / "c.parquet", id=[1, 2, 3], x=pa.array([[1, 2]] * 3, VECTORS))
    shard(tmp_path / "e.parquet")
    footers_read.clear()
    after = pin(settings, list_shards(settings), known=known)
    assert sorted(footers_read) == ["a.parquet", "c.parquet", "e.parquet"]
    assert after == pin(settings, list_shards(settings))
    assert after.shards["rows"].to_pylist() == [2, 2, 3, 2, 2, 0]


def test_footers_known_for_other_columns_are_read_again(
    tmp_path: Path, footers_read: list[str]
) -> None:
    for name in "ab":
        shard(tmp_path / f"{name}.parquet")
    known = round_trip(pinned(tmp_path, keys=["id"]).shards)
    settings = config(tmp_path)
    footers_read.clear()
    assert pin(settings, list_shards(settings), known=known) == pinned(tmp_path)
    assert footers_read.count("b.parquet") == 2


def test_empty_shards_in_front_are_looked_at_once(tmp_path: Path, footers_read: list[str]) -> None:
    for number in range(20):
        pq.write_table(pa.table({"x": pa.nulls(0)}), tmp_path / f"{number:02}.parquet")
    shard(tmp_path / "rows.parquet")
    settings = config(tmp_path)
    known = round_trip(pin(settings, list_shards(settings)).shards)
    footers_read.clear()
    assert pin(settings, list_shards(settings), known=known).shards["rows"].to_pylist()[-1] == 2
    assert footers_read == ["rows.parquet"]


def test_folders_of_known_shards_are_checked_again(tmp_path: Path) -> None:
    for number in "12":
        shard(tmp_path / f"p={number}/a.parquet")
    settings = config(tmp_path, ["x", "p"])
    known = round_trip(pin(settings, list_shards(settings)).shards)
    shard(tmp_path / "p=abc/a.parquet")
    for before in (None, known):
        with pytest.raises(InputError, match="column p: type string is not a number"):
            pin(settings, list_shards(settings), known=before)


def test_a_new_shard_must_fit_those_that_are_known(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet")
    known = round_trip(pinned(tmp_path).shards)
    shard(tmp_path / "b.parquet", id=[1], x=pa.array([[1, 2, 3]], pa.list_(pa.float32())))
    settings = config(tmp_path)
    with pytest.raises(InputError, match=r"b\.parquet, column x: vectors of width 3; expected 2"):
        pin(settings, list_shards(settings), known=known)


def test_more_shards_than_are_asked_for_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        shard(tmp_path / f"{number}.parquet")
    whole = pinned(tmp_path)
    monkeypatch.setattr(pinning, "_SHARDS_AHEAD", 3)
    assert pinned(tmp_path) == whole
    assert whole.shards["rows"].to_pylist() == [2] * 7


def round_trip(shards: pa.Table) -> pa.Table:
    """As the lake gives it back."""
    return pq.read_table(pa.BufferReader(parquet_bytes(shards)))


def test_globs_follow_the_order_of_config_and_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", f_2=[1.0], f_1=[2.0], y=[3], f_10=[4.0])
    found = pinned(path, ["y", "f_*"])
    assert [column.name for column in found.features] == ["y", "f_2", "f_1", "f_10"]
    assert not any(column.vector for column in found.features)


def test_name_with_a_wildcard_in_it_is_a_name(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", **{"f[0]": [1.0], "f0": [2.0]})
    assert [column.name for column in pinned(path, ["f[0]"]).features] == ["f[0]"]


def test_order_of_columns_and_extra_columns_do_not_matter(tmp_path: Path) -> None:
    x = pa.array([[1, 2]], VECTORS)
    shard(tmp_path / "a.parquet", id=[1], x=x)
    shard(tmp_path / "b.parquet", extra=["e"], x=x, id=[2])
    found = pinned(tmp_path, keys=["id"])
    assert found.shards["rows"].to_pylist() == [1, 1]
    assert found.carried.names == ["id"]


@pytest.mark.parametrize("kind", [VECTORS, RAGGED, pa.large_list(pa.float32())])
@pytest.mark.parametrize("empty", ["a", "b", "c"])
def test_empty_shard_among_full_ones(tmp_path: Path, kind: pa.DataType, empty: str) -> None:
    for name in "abc":
        rows = [] if name == empty else [[1, 2], [3, 4]]
        shard(tmp_path / f"{name}.parquet", x=pa.array(rows, kind))
    found = pinned(tmp_path)
    assert sorted(found.shards["rows"].to_pylist()) == [0, 2, 2]
    assert found.features[0].width == 2


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2, 3]],
        [[1], [2]],
        # Three values and a null are 4 in the footer, which 2 rows divide: still not a width of 2.
        [[1, 2, 3], None],
        [None, [1, 2, 3]],
        [[1, 2, None]],
    ],
)
def test_width_of_a_list_column(tmp_path: Path, rows: list[list[float]]) -> None:
    shard(tmp_path / "a.parquet", x=pa.array(rows, RAGGED))
    expected = max(len(row) for row in rows if row)
    assert pinned(tmp_path, nulls="drop").features[0].width == expected


def test_width_of_a_list_column_whose_first_row_group_is_null(tmp_path: Path) -> None:
    rows = pa.array([None, None, [1, 2, 3], [4, 5, 6]], RAGGED)
    shard(tmp_path / "a.parquet", row_group_size=2, x=rows)
    assert pinned(tmp_path, nulls="drop").features[0].width == 3


def test_columns_with_a_dot_in_their_name(tmp_path: Path) -> None:
    # "x.norm" is a column of its own and no part of "x".
    x = pa.array([[1, 2], [3, 4]], RAGGED)
    shard(tmp_path / "a.parquet", **{"x": x, "x.norm": [1.0, 2.0]})
    found = pinned(tmp_path, ["x", "x.norm"])
    assert [(column.name, column.width) for column in found.features] == [("x", 2), ("x.norm", 1)]


@pytest.mark.parametrize(
    ("kinds", "nulls", "dtype"),
    [
        ([pa.uint8(), pa.uint8()], "error", "uint8"),
        ([pa.uint8(), pa.uint8()], "mean", "float32"),
        ([pa.uint8(), pa.float32()], "error", "float32"),
        ([pa.float32(), pa.float64()], "error", "float64"),  # one shard of many decides
    ],
)
def test_dtype_holds_every_shard(
    tmp_path: Path, kinds: list[pa.DataType], nulls: str, dtype: str
) -> None:
    for number, kind in enumerate(kinds):
        shard(tmp_path / f"{number}.parquet", x=pa.array([1, 2], kind))
    assert pinned(tmp_path, nulls=nulls).dtype == dtype


# --------------------------------------------------------------------------- keys and label


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.int32(), pa.int64(), pa.int8()], pa.int64()),
        ([pa.string(), pa.large_string()], pa.large_string()),
        ([pa.null(), pa.string()], pa.string()),
        ([pa.dictionary(pa.int32(), pa.string())] * 2, pa.dictionary(pa.int32(), pa.string())),
        ([pa.dictionary(pa.int32(), pa.string()), pa.string()], pa.string()),
        ([pa.string(), pa.dictionary(pa.int32(), pa.string())], pa.string()),
        ([pa.timestamp("ms"), pa.timestamp("us")], pa.timestamp("us")),
    ],
    ids=str,
)
def test_key_type_holds_every_shard(
    tmp_path: Path, kinds: list[pa.DataType], expected: pa.DataType
) -> None:
    for number, kind in enumerate(kinds):
        shard(tmp_path / f"{number}.parquet", k=pa.array([None], kind), x=[1.0])
    assert pinned(tmp_path, keys=["k"]).carried.field("k").type == expected


def test_label_is_carried_after_the_keys(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", id=[1], x=[1.0], y=["cat"])
    assert pinned(tmp_path, keys=["id"], label="y").carried.names == ["id", "y"]
    assert pinned(tmp_path, keys=["y"], label="y").carried.names == ["y"]


# ------------------------------------------------------------------------------- hive columns


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-20"], pa.int64()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
        (["nl", "be"], pa.string()),
        (["1", "nl"], pa.string()),
        (["007", "12"], pa.string()),  # a code: its zeros count
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
    ],
)
def test_hive_column_as_key(tmp_path: Path, values: list[str], kind: pa.DataType) -> None:
    for value in values:
        shard(tmp_path / f"c={value}/a.parquet")
    assert pinned(tmp_path, keys=["c"]).carried.field("c").type == kind


def test_hive_column_as_feature(tmp_path: Path) -> None:
    for value in (3, 4):
        shard(tmp_path / f"hour={value}/a.parquet")
    found = pinned(tmp_path, ["hour", "x"])
    assert [(column.name, column.width) for column in found.features] == [("hour", 1), ("x", 2)]
    assert found.dtype == "float64"  # int64


def test_hive_column_of_text_is_no_feature(tmp_path: Path) -> None:
    shard(tmp_path / "country=nl/a.parquet")
    with pytest.raises(InputError, match="column country: type string is not a number"):
        pinned(tmp_path, ["country"])


def test_column_of_the_file_wins_over_its_folder(tmp_path: Path) -> None:
    shard(tmp_path / "id=7/a.parquet", id=["inside"], x=[1.0])
    assert pinned(tmp_path, keys=["id"]).carried.field("id").type == pa.string()


def test_hive_values() -> None:
    url = "s3://bucket/a%20b=c%2Fd/day=__HIVE_DEFAULT_PARTITION__/=x/e=f.parquet"
    assert hive_values(url) == {"a b": "c/d", "day": None}


# ------------------------------------------------------------------------------------- errors


def test_unknown_column_has_a_suggestion(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", feature=[1.0])
    with pytest.raises(
        InputError, match=r"a\.parquet has no column featrue; did you mean feature\?"
    ):
        pinned(path, ["featrue"])


@pytest.mark.parametrize("source", [{"keys": ["zzz"]}, {"label": "zzz"}])
def test_unknown_key_or_label_lists_the_columns(tmp_path: Path, source: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no column zzz; its columns are id, x"):
        pinned(shard(tmp_path / "a.parquet"), **source)


def test_column_missing_in_a_later_shard(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", x=[1.0], y=[1.0])
    shard(tmp_path / "b.parquet", x=[1.0])
    with pytest.raises(InputError, match=r"shard b\.parquet has no column y"):
        pinned(tmp_path, ["x", "y"])


def test_glob_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f_\* matches no column.*its columns are id, x"):
        pinned(shard(tmp_path / "a.parquet"), ["f_*"])


def test_feature_named_twice_through_a_glob(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", f_1=[1.0], f_2=[2.0])
    with pytest.raises(InputError, match="names column f_1 more than once after its globs"):
        pinned(path, ["f_1", "f_*"])


@pytest.mark.parametrize("values", [[b"a"], [["a"]], [[[1.0]]], [{"a": 1}]])
def test_feature_that_is_no_number(tmp_path: Path, values: list[Any]) -> None:
    path = shard(tmp_path / "a.parquet", x=values)
    with pytest.raises(InputError, match=r"column x: type .* is not a number; features must be"):
        pinned(path)


@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_width_differs_between_shards(tmp_path: Path, kind: str) -> None:
    for name, width in (("a", 2), ("b", 3)):
        vector = pa.list_(pa.float32(), width) if kind == "fixed" else RAGGED
        shard(tmp_path / f"{name}.parquet", x=pa.array([[0.0] * width] * 2, vector))
    message = "shard b.parquet, column x: vectors of width 3; expected 2 as in shard a.parquet"
    with pytest.raises(InputError, match=message):
        pinned(tmp_path)


@pytest.mark.parametrize("scalar", ["a", "b"])
def test_scalar_in_one_shard_and_vector_in_another(tmp_path: Path, scalar: str) -> None:
    for name in "ab":
        x = [1.0] if name == scalar else pa.array([[1, 2]], VECTORS)
        shard(tmp_path / f"{name}.parquet", x=x)
    with pytest.raises(InputError, match=r"shard b\.parquet, column x"):
        pinned(tmp_path)


def test_ragged_lists_that_the_footer_shows(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", x=pa.array([[1, 2], [3, 4, 5]], RAGGED))
    with pytest.raises(InputError, match=r"a\.parquet, column x: lists of 2 to 3 values"):
        pinned(path)


@pytest.mark.parametrize("content", [b"", b"not a Parquet file", b"PAR1"])
def test_corrupt_shard(tmp_path: Path, content: bytes) -> None:
    shard(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"shard b\.parquet cannot be read"):
        pinned(tmp_path)


def test_truncated_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"shard a\.parquet cannot be read"):
        pinned(tmp_path)


def test_shard_that_vanishes_between_listing_and_pinning(tmp_path: Path) -> None:
    settings = config(shard(tmp_path / "a.parquet"))
    files = list_shards(settings)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"a\.parquet cannot be read: it does not exist"):
        pin(settings, files)


def test_key_types_that_do_not_fit(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", id=[1], x=[1.0])
    shard(tmp_path / "b.parquet", id=["one"], x=[1.0])
    with pytest.raises(InputError, match=r"b\.parquet, column id: type string does not fit int64"):
        pinned(tmp_path, keys=["id"])


def test_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has more than one column x"):
        pinned(tmp_path)


def test_enough_rows() -> None:
    check_enough_rows(config("unused"), rows=2)
    with pytest.raises(InputError, match="clusters=2 needs at least as many rows; the input has 1"):
        check_enough_rows(config("unused"), rows=1)


def test_empty_shard_of_other_types_is_no_obstacle(tmp_path: Path) -> None:
    # As pandas writes a frame without rows: every column is of type null.
    nothing = pa.table({name: pa.nulls(0) for name in ("id", "x", "label")})
    pq.write_table(nothing, tmp_path / "a.parquet")
    rows = {"id": [1, 2], "x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}
    pq.write_table(pa.table(rows), tmp_path / "b.parquet")
    config = Config.model_validate(
        {
            "source": {"path": str(tmp_path), "features": ["*"], "keys": ["id"]},
            "output": "unused",
            "clusters": 2,
            "evaluate": {"label": "label"},
        }
    )
    pinned = pin(config, list_shards(config))
    # The glob takes neither the key nor the label: they are no features.
    assert [(c.name, c.width) for c in pinned.features] == [("x", 2)]
    assert pinned.shards["rows"].to_pylist() == [0, 2]


# -------------------------------------------------------------------------------- image shapes


@pytest.mark.parametrize(
    ("features", "shape"), [(["x"], [2, 3]), (["x", "y"], [2, 2]), (["y"], [1, 1])]
)
def test_image_shape_that_does_not_fit_is_named(
    tmp_path: Path, features: list[str], shape: list[int]
) -> None:
    x = pa.FixedSizeListArray.from_arrays(pa.array(range(20)), 4)
    pq.write_table(pa.table({"x": x, "y": range(5)}), tmp_path / "a.parquet")
    config = Config.model_validate(
        {
            "source": {"path": str(tmp_path), "features": features, "image_shape": shape},
            "output": "unused",
            "clusters": 2,
        }
    )
    with pytest.raises(InputError, match=r"source\.image_shape=.* needs one vector column of"):
        pin(config, list_shards(config))


def test_image_shape_that_fits(tmp_path: Path) -> None:
    x = pa.FixedSizeListArray.from_arrays(pa.array(range(24)), 12)
    pq.write_table(pa.table({"x": x}), tmp_path / "a.parquet")
    for shape in ([3, 4], [2, 2, 3]):
        config = Config.model_validate(
            {
                "source": {"path": str(tmp_path), "features": ["x"], "image_shape": shape},
                "output": "unused",
                "clusters": 2,
            }
        )
        assert pin(config, list_shards(config)).features[0].width == 12


# ------------------------------------------------------------------------- globs over all shards


def scalars(path: Path, *columns: str, **more: Any) -> Path:
    return shard(path, id=[1, 2], **{name: [1.0, 2.0] for name in columns}, **more)


@pytest.mark.parametrize(
    ("first", "second", "patterns", "column"),
    [
        (["f0"], ["f0", "f1"], ["f*"], "f1"),  # the first shard lacks it
        (["f0", "f1"], ["f0"], ["f*"], "f1"),
        (["f0", "g"], ["f0", "h"], ["f0", "?"], "h"),
        (["f0"], ["f0", "f1"], ["*"], "f1"),
    ],
)
def test_column_of_a_glob_that_some_shards_lack(
    tmp_path: Path, first: list[str], second: list[str], patterns: list[str], column: str
) -> None:
    scalars(tmp_path / "2025.parquet", *first)
    scalars(tmp_path / "2026.parquet", *second)
    with pytest.raises(InputError) as error:
        pinned(tmp_path, patterns, keys=["id"])
    words = str(error.value)
    assert f"matches column {column} of shard 202" in words
    assert "2025.parquet" in words
    assert "2026.parquet" in words
    assert "one by one" in words


def test_globs_match_the_same_in_any_order(tmp_path: Path) -> None:
    scalars(tmp_path / "a.parquet", "f1", "f0")
    scalars(tmp_path / "b.parquet", "f0", "f1", other=[1, 2])
    shard(tmp_path / "c.parquet", f9=pa.array([], pa.float64()))  # no rows
    assert [c.name for c in pinned(tmp_path, ["f*"], keys=["id"]).features] == ["f1", "f0"]


def test_column_that_is_named_may_be_missing_from_no_shard(tmp_path: Path) -> None:
    scalars(tmp_path / "a.parquet", "f0")
    scalars(tmp_path / "b.parquet", "f1")
    with pytest.raises(InputError, match=r"shard b\.parquet has no column f0; its columns"):
        pinned(tmp_path, ["f0"])


def test_shard_of_a_later_night_with_a_further_column(tmp_path: Path) -> None:
    scalars(tmp_path / "b.parquet", "f0")
    settings = config(tmp_path, ["f*"])
    known = pin(settings, list_shards(settings)).shards
    scalars(tmp_path / "c.parquet", "f0", "f1")
    with pytest.raises(InputError, match=r"f1 of shard c\.parquet, which shard b\.parquet lacks"):
        pin(settings, list_shards(settings), known=known)
    # An earlier version did not compare; its footers are read again.
    old = {**json.loads(known.schema.metadata[b"dec_pipeline"])}
    del old["globs"]
    known = known.replace_schema_metadata({b"dec_pipeline": json.dumps(old)})
    (tmp_path / "c.parquet").unlink()
    settings = config(tmp_path, ["f*"])
    assert not footers.known_facts(
        known, Selection.of(settings, pa.schema([("f0", pa.float64())]), "b", {})
    )


@pytest.mark.parametrize("index", ["__index_level_0__", "f_index"])
def test_globs_leave_out_the_index_of_pandas(tmp_path: Path, index: str) -> None:
    table = pa.table({"f0": [1.0, 2.0], index: [5, 3]})
    named = json.dumps({"index_columns": [index], "columns": []})  # as pandas writes it
    pq.write_table(table.replace_schema_metadata({"pandas": named}), tmp_path / "a.parquet")
    shard(tmp_path / "b.parquet", f0=[1.0, 2.0])  # without an index
    for pattern in ("*", "f*", "[f_]*"):
        assert [c.name for c in pinned(tmp_path, [pattern], keys=[]).features] == ["f0"]
    assert [c.name for c in pinned(tmp_path / "a.parquet", ["f0", index]).features] == ["f0", index]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("run=7/in", ["f0", "day"]),
        ("run=7/in/*", ["f0", "day"]),
        ("run=7/in/day=*", ["f0", "day"]),
        ("run=7/in/day=1", ["f0"]),
        ("run=7/in/day=1/*.parquet", ["f0"]),
        ("run=7/in/day=1/a.parquet", ["f0"]),
        (["run=7/in/day=1", "run=7/in/day=2"], ["f0"]),
        ("*/in", ["f0", "day", "run"]),  # this folder is matched below the fixed part
    ],
)
def test_globs_leave_out_folders_above_the_source(
    tmp_path: Path, path: Any, expected: list[str]
) -> None:
    for day in (1, 2):
        shard(tmp_path / f"run=7/in/day={day}/a.parquet", f0=[1.0, 2.0])
    paths = [tmp_path / p for p in path] if isinstance(path, list) else tmp_path / path
    assert {c.name for c in pinned(paths, ["*"]).features} == set(expected)
    named = pinned(paths, ["f0", "run"], keys=["day"])  # named, they are columns as ever
    assert [c.name for c in named.features] == ["f0", "run"]


def test_column_of_a_file_that_a_folder_above_has_too(tmp_path: Path) -> None:
    scalars(tmp_path / "f1=3/a.parquet", "f0", "f1")
    assert [c.name for c in pinned(tmp_path / "f1=3", ["f*"]).features] == ["f0", "f1"]
