"""Pieces of shards → raw rows, keys and errors, on real small Parquet files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.errors import BadShard, InputError
from pipeline.input import reading
from pipeline.input.pinning import list_shards, pin
from pipeline.input.reading import Reader, RowBlock, pieces_of_shards
from pipeline.input.slices import training_share

VECTORS = pa.list_(pa.float32(), 2)
NAN = float("nan")


def write(path: Path, row_group_size: int | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def opened(path: Path, features: list[str] | None = None, **source: Any) -> tuple[Reader, pa.Table]:
    """The reader for a source, and its pieces."""
    label = source.pop("label", None)
    settings = Config.model_validate(
        {
            "source": {"path": str(path), "features": features or ["x"], **source},
            "output": "unused",
            "clusters": 2,
            "evaluate": {"label": label},
        }
    )
    pinned = pin(settings, list_shards(settings))
    reader = Reader(
        features=pinned.features,
        dtype=pinned.dtype,
        nulls=settings.source.nulls,
        carried=pinned.carried,
        shard_keys=not settings.source.keys,
    )
    return reader, pieces_of_shards(pinned.shards, 1)


def rows_of(blocks: list[RowBlock]) -> list[list[float]]:
    return np.concatenate([block.x_BF for block in blocks]).tolist()


def carried_by(blocks: list[RowBlock]) -> pa.Table:
    return pa.concat_tables([block.carried for block in blocks])


def read(path: Path, features: list[str] | None = None, **source: Any) -> list[RowBlock]:
    reader, pieces = opened(path, features, **source)
    return list(reader.blocks(pieces))


# ------------------------------------------------------------------------------------- values


def test_features_and_keys_of_several_shards(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", id=[1, 2], x=pa.array([[1, 2], [3, 4]], VECTORS), y=[5, 6])
    write(tmp_path / "b.parquet", y=[9], extra=["e"], x=pa.array([[7, 8]], VECTORS), id=[3])
    blocks = read(tmp_path, ["y", "x"], keys=["id"])
    assert rows_of(blocks) == [[5, 1, 2], [6, 3, 4], [9, 7, 8]]
    assert all(block.x_BF.dtype == np.float64 for block in blocks)  # y is int64
    assert carried_by(blocks).to_pydict() == {"id": [1, 2, 3]}


def test_shard_and_row_number_are_keys_where_none_is_named(tmp_path: Path) -> None:
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0]
    write(tmp_path / "in/a.parquet", row_group_size=2, x=first, y=first)
    write(tmp_path / "b.parquet", x=second, y=second)
    blocks = read(tmp_path, label="y")
    table = carried_by(blocks)
    assert table.column_names == ["shard", "row_number", "y"]
    assert table["shard"].to_pylist() == ["b.parquet"] * 2 + ["in/a.parquet"] * 5
    assert table["row_number"].to_pylist() == [0, 1, 0, 1, 2, 3, 4]
    assert rows_of(blocks) == [[value] for value in table["y"].to_pylist()]


def test_parts_of_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 0)  # blocks of 1,024 rows, the least
    path = write(tmp_path / "a.parquet", row_group_size=2500, x=np.arange(5000.0))
    reader, pieces = opened(path)
    # Rows 1,000 to 1,599 of the second row group: across the edge of a block.
    part = pieces.slice(1, 1).set_column(2, "row_start", pa.array([1000]))
    part = part.set_column(3, "rows", pa.array([600]))
    blocks = list(reader.blocks(part))
    assert [len(block.x_BF) for block in blocks] == [24, 576]
    assert rows_of(blocks) == [[float(n)] for n in range(3500, 4100)]
    assert carried_by(blocks)["row_number"].to_pylist() == list(range(3500, 4100))


def test_training_shares_read_every_row_once(tmp_path: Path) -> None:
    for name in range(3):
        values = np.arange(name * 10, name * 10 + 7.0)
        write(tmp_path / f"{name}.parquet", row_group_size=3, x=values)
    reader, pieces = opened(tmp_path)
    shares = [training_share(pieces, rank, 2, fit_rows=None, seed=1) for rank in range(2)]
    found = [value for share in shares for [value] in rows_of(list(reader.blocks(share)))]
    assert sorted(found) == [*range(7), *range(10, 17), *range(20, 27)]


def test_no_carried_columns_unless_asked_for(tmp_path: Path) -> None:
    reader, pieces = opened(write(tmp_path / "a.parquet", x=[1.0]))
    bare = Reader(reader.features, reader.dtype, "error", pa.schema([]), shard_keys=False)
    (block,) = bare.blocks(pieces)
    assert block.carried is None


def test_keys_take_the_type_that_holds_every_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", id=pa.array([1], pa.int32()), x=[1.0])
    write(tmp_path / "b.parquet", id=pa.array([2**40]), x=[1.0])
    found = carried_by(read(tmp_path, keys=["id"]))
    assert found.schema == pa.schema([("id", pa.int64())])
    assert found["id"].to_pylist() == [1, 2**40]


@pytest.mark.parametrize("other", [["b"], pa.array(["b"]).dictionary_encode()])
def test_dictionary_keys(tmp_path: Path, other: Any) -> None:
    write(tmp_path / "a.parquet", id=pa.array(["a", None, "a"]).dictionary_encode(), x=[1.0] * 3)
    write(tmp_path / "b.parquet", id=other, x=[1.0])
    found = carried_by(read(tmp_path, keys=["id"]))
    assert found["id"].to_pylist() == ["a", None, "a", "b"]


@pytest.mark.parametrize(
    ("folders", "values"), [(["1", "2"], [1, 2]), (["be", "n%20l"], ["be", "n l"])]
)
def test_hive_column_as_key(tmp_path: Path, folders: list[str], values: list[Any]) -> None:
    for folder in folders:
        write(tmp_path / f"c={folder}/a.parquet", x=[1.0])
    assert carried_by(read(tmp_path, keys=["c"]))["c"].to_pylist() == values


def test_hive_null_as_key(tmp_path: Path) -> None:
    write(tmp_path / "c=__HIVE_DEFAULT_PARTITION__/a.parquet", x=[1.0])
    write(tmp_path / "c=5/a.parquet", x=[1.0])
    assert carried_by(read(tmp_path, keys=["c"]))["c"].to_pylist() == [5, None]


@pytest.mark.parametrize("keys", [[], ["hour"]])
def test_hive_column_as_feature(tmp_path: Path, keys: list[str]) -> None:
    write(tmp_path / "hour=3/a.parquet", x=[1.0, 2.0])
    write(tmp_path / "hour=4/a.parquet", x=[5.0])
    assert rows_of(read(tmp_path, ["hour", "x"], keys=keys)) == [[3, 1], [3, 2], [4, 5]]


# ------------------------------------------------------------------------------------- nulls

HOLES = {"id": [1, 2, 3, 4], "x": [1.0, None, NAN, 4.0], "y": [1.0, 2.0, float("inf"), 4.0]}


def test_missing_values_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **HOLES)
    with pytest.raises(InputError, match=r"a.parquet, column x, y: 2 of 4 rows hold null, NaN"):
        read(tmp_path, ["x", "y"])


def test_missing_values_are_counted_in_the_whole_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", row_group_size=1, **HOLES)
    with pytest.raises(InputError, match="column x: 2 of 4 rows"):
        read(tmp_path, ["x"])


def test_missing_hive_value_is_an_error_that_names_its_column(tmp_path: Path) -> None:
    write(tmp_path / "hour=1/a.parquet", x=[1.0])
    write(tmp_path / "hour=__HIVE_DEFAULT_PARTITION__/b.parquet", x=[1.0, 2.0])
    with pytest.raises(InputError, match=r"b\.parquet, column hour: 2 of 2 rows"):
        read(tmp_path, ["hour", "x"])


def test_missing_values_are_kept_for_the_mean(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **HOLES)
    blocks = read(tmp_path, ["x", "y"], keys=["id"], nulls="mean")
    np.testing.assert_array_equal(
        np.isfinite(rows_of(blocks)), [[True, True], [False, True], [False, False], [True, True]]
    )
    assert carried_by(blocks)["id"].to_pylist() == [1, 2, 3, 4]


def test_rows_with_missing_values_are_dropped_with_their_keys(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **HOLES)
    blocks = read(tmp_path, ["x", "y"], keys=["id"], nulls="drop")
    assert rows_of(blocks) == [[1, 1], [4, 4]]
    assert carried_by(blocks)["id"].to_pylist() == [1, 4]


def test_row_numbers_are_those_of_the_shard_when_rows_are_dropped(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **HOLES)
    assert carried_by(read(tmp_path, nulls="drop"))["row_number"].to_pylist() == [0, 3]


# ------------------------------------------------------------------------------------- errors


def test_ragged_lists_that_the_footer_hides(tmp_path: Path) -> None:
    # Four values in two rows look like a width of 2.
    rows = pa.array([[1, 2, 3], [4]], pa.list_(pa.float32()))
    write(tmp_path / "a.parquet", x=rows)
    with pytest.raises(InputError, match=r"a\.parquet, column x: lists of 1 to 3 values"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["rewritten", "truncated"])
def test_changed_shard(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0, 2.0])
    reader, pieces = opened(path)
    if kind == "rewritten":
        write(path, x=[1.0, 2.0, 3.0])
    else:
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a\.parquet changed since this run pinned it.*new run"):
        list(reader.blocks(pieces))


def test_shard_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 0)  # blocks of 1,024 rows, the least
    path = write(tmp_path / "a.parquet", x=np.arange(3000.0))
    reader, pieces = opened(path)
    blocks = reader.blocks(pieces)
    next(blocks)
    os.replace(write(tmp_path / "new", x=np.arange(3000.0)), path)
    with pytest.raises(BadShard, match=r"a\.parquet changed since this run pinned it"):
        list(blocks)


def test_vanished_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0])
    reader, pieces = opened(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.parquet cannot be read: it does not exist"):
        list(reader.blocks(pieces))


def test_shard_damaged_behind_an_intact_footer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=np.random.default_rng(0).normal(size=1000))
    before = path.stat()
    reader, pieces = opened(path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # the head of the only data page and some of its values
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # so that only the data tells
    with pytest.raises(InputError, match=r"shard a\.parquet cannot be read"):
        list(reader.blocks(pieces))
