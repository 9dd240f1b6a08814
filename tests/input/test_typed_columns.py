"""Typed columns: from every way to store them to one row of numbers, and what is refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.inputs import FeatureColumn
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.columns import category_codes, column_type, feature_matrix, memory_dtype
from pipeline.input.pinning import PinnedInput, list_shards, pin
from pipeline.input.reading import Reader, RowBlock, pieces_of_shards
from pipeline.input.samples import MergedParts, SamplePart, part_name
from pipeline.input.statistics import RowStatistics, fit_scaler
from pipeline.model.channels import TypedScaler, on_circles
from pipeline.model.scaling import Moments

WORDS = ["red", "", "grün", None, "red", "blue" * 50, "Ꮬ", "a", "b", "ab", "ba"]
NAN = float("nan")


def config(path: Path, features: list[Any], **source: Any) -> Config:
    source = {"path": str(path), "features": features, **source}
    return Config.model_validate({"source": source, "output": "unused", "clusters": 2})


def pinned(path: Path, features: list[Any], **source: Any) -> PinnedInput:
    settings = config(path, features, **source)
    return pin(settings, list_shards(settings))


def blocks(path: Path, features: list[Any], **source: Any) -> list[RowBlock]:
    settings = config(path, features, **source)
    found = pin(settings, list_shards(settings))
    reader = Reader(found.features, found.dtype, settings.source.nulls, pa.schema([]), False)
    return list(reader.blocks(pieces_of_shards(found.shards, 1)))


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


# ---------------------------------------------------------------------------------- categories

STORED: dict[str, Callable[[list[str | None]], pa.Array]] = {
    "string": lambda words: pa.array(words, pa.string()),
    "large_string": lambda words: pa.array(words, pa.large_string()),
    "string_view": lambda words: pa.array(words, pa.string_view()),
    "dictionary": lambda words: pa.array(words, pa.string()).dictionary_encode(),
    "dictionary<int8>": lambda words: pa.array(words, pa.dictionary(pa.int8(), pa.string())),
    "null in the dictionary": lambda words: pa.DictionaryArray.from_arrays(
        pa.array(range(len(words)), pa.int32()), pa.array(words, pa.string())
    ),
    "sliced": lambda words: pa.array(["x", None, "yy", *words, "z"]).slice(3, len(words)),
    "sliced dictionary": lambda words: pa.array(["x", *words]).dictionary_encode().slice(1),
}


@pytest.mark.parametrize("stored", STORED)
def test_a_word_has_one_code_however_it_is_stored(stored: str) -> None:
    codes = category_codes(STORED[stored](WORDS))
    np.testing.assert_array_equal(codes, category_codes(pa.array(WORDS)))
    assert np.isnan(codes).tolist() == [word is None for word in WORDS]
    assert codes[0] == codes[4]
    assert len(np.unique(codes[np.isfinite(codes)])) == len({*WORDS} - {None})


def test_codes_are_what_they_were() -> None:
    """Models that are stored know them."""
    codes = category_codes(pa.array(["red", "", "-1"])).tolist()
    assert codes == [1291016513700262.0, 3978078226723292.0, 3998983647050671.0]
    assert category_codes(pa.array([-1, 2**60])).tolist() == [-1.0, 7049443985223135.0]


@pytest.mark.parametrize("stored", STORED)
def test_no_rows_and_nothing_but_null(stored: str) -> None:
    assert category_codes(STORED[stored]([])).shape == (0,)
    assert np.isnan(category_codes(STORED[stored]([None, None]))).all()


def test_many_words_share_no_code() -> None:
    words = [f"{a}{b}" for a in "abcdefghij" for b in range(10_000)]
    assert len(np.unique(category_codes(pa.array(words)))) == len(words)


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64(), pa.dictionary(pa.int32(), pa.int64())]
)
def test_an_integer_is_its_own_code(kind: pa.DataType) -> None:
    codes = category_codes(pa.array([3, None, 0], kind))
    np.testing.assert_array_equal(codes, [3, NAN, 0])


def test_integers_that_no_float_holds_stay_apart() -> None:
    wide = [2**53 + 1, 2**53, -(2**60), 2**62 + 1, 2**52 - 1]
    codes = category_codes(pa.array(wide))
    assert len(np.unique(codes)) == len(wide)
    assert codes[-1] == 2**52 - 1
    np.testing.assert_array_equal(codes, category_codes(pa.array(wide, pa.int64())))
    unsigned = category_codes(pa.array([2**64 - 1, 2**53], pa.uint64()))
    assert unsigned[0] not in codes
    assert unsigned[1] == codes[1]


# ---------------------------------------------------------------------------------- timestamps


@pytest.mark.parametrize(
    "kind",
    [*(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")), pa.date32(), pa.date64()],
    ids=str,
)
def test_timestamps_are_seconds(kind: pa.DataType) -> None:
    column = pa.array([datetime.datetime(2026, 2, 28), None], pa.timestamp("s")).cast(kind)
    spec = FeatureColumn(name="t", width=1, vector=False, type="timestamp")
    matrix, missing = feature_matrix([column], [spec], "float64")
    expected = datetime.datetime(2026, 2, 28, tzinfo=datetime.UTC).timestamp()
    np.testing.assert_array_equal(matrix, [[expected], [NAN]])
    assert missing is None  # a typed column has a place for it


def test_a_zone_has_its_own_clock() -> None:
    noon = datetime.datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Amsterdam"))
    column = pa.array([noon], pa.timestamp("us", "Europe/Amsterdam"))
    spec = FeatureColumn(name="t", width=1, vector=False, type="timestamp")
    matrix, _ = feature_matrix([column], [spec], "float64")
    hour = on_circles(matrix)[0, :2]
    np.testing.assert_allclose(hour, on_circles(np.array([[12 * 3600.0]]))[0, :2], atol=1e-9)


def test_circles_go_round() -> None:
    monday = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC).timestamp()
    day, week = 86_400, 7 * 86_400
    places = on_circles(monday + np.array([[0.0], [day / 4], [day], [week], [week / 2]]))
    np.testing.assert_allclose(places[0, 2:4], [1, 0], atol=1e-9)  # the week begins on Monday
    np.testing.assert_allclose(places[1, :2] @ places[0, :2], 0, atol=1e-9)
    np.testing.assert_allclose(places[2, :2], places[0, :2], atol=1e-9)
    np.testing.assert_allclose(places[3, :4], places[0, :4], atol=1e-9)
    np.testing.assert_allclose(places[4, 2:4], [-1, 0], atol=1e-9)


# -------------------------------------------------------------------------- from shards to rows


def test_every_type_in_one_row(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet",
        age=[1.5, None, 3.0],
        member=[True, None, False],
        color=["red", "blue", None],
        x=pa.array([[1, 2], None, [5, 6]], pa.list_(pa.float32(), 2)),
        plain=[7, 8, 9],
    )
    features = [{"column": "age"}, {"column": "member"}, "color", {"column": "x"}, "plain"]
    found = pinned(tmp_path, features)
    types = {column.name: column.type for column in found.features}
    assert types == {
        "age": "number", "member": "boolean", "color": "category", "x": "vector", "plain": None,
    }  # fmt: skip
    (block,) = blocks(tmp_path, features)
    red, blue = category_codes(pa.array(["red", "blue"]))
    np.testing.assert_array_equal(
        block.x_BF,
        [[1.5, 1, red, 1, 2, 7], [NAN, NAN, blue, NAN, NAN, 8], [3, 0, NAN, 5, 6, 9]],
    )
    assert block.stored is not None
    assert block.stored.to_pydict() == {"color": ["red", "blue", None]}


def test_nulls_of_a_plain_column_are_still_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", age=[1.5, None], plain=[1.0, None])
    with pytest.raises(InputError, match="column plain: 1 of 2 rows hold null"):
        blocks(tmp_path, [{"column": "age"}, "plain"])
    (block,) = blocks(tmp_path, [{"column": "age"}, "plain"], nulls="drop")
    assert block.x_BF.tolist() == [[1.5, 1.0]]


def test_dropped_rows_are_gone_from_the_categories(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", color=["a", "b", "c"], plain=[1.0, None, 2.0])
    (block,) = blocks(tmp_path, ["color", "plain"], nulls="drop")
    assert block.stored is not None
    assert block.stored["color"].to_pylist() == ["a", "c"]


def test_plain_columns_are_written_as_they_always_were() -> None:
    column = FeatureColumn(name="x", width=3, vector=True)
    assert column.model_dump(mode="json") == {"name": "x", "width": 3, "vector": True}


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ([{"column": "small", "type": "category"}], "float32"),
        ([{"column": "member"}], "float32"),
        ([{"column": "wide", "type": "category"}], "float64"),
        (["color"], "float64"),
        (["day"], "float64"),
        (["small"], "int8"),
    ],
)
def test_memory(tmp_path: Path, features: list[Any], dtype: str) -> None:
    write(
        tmp_path / "a.parquet",
        small=pa.array([1, 2], pa.int8()),
        wide=[1, 2],
        member=[True, False],
        color=["a", "b"],
        day=pa.array([datetime.date(2026, 1, 1)] * 2),
    )
    assert pinned(tmp_path, features).dtype == dtype


def test_folders_are_categories_where_that_is_said(tmp_path: Path) -> None:
    for code in ("nl", "7"):
        write(tmp_path / f"country={code}/a.parquet", x=[1.0])
    features = ["x", {"column": "country", "type": "category"}]
    found = np.concatenate([block.x_BF for block in blocks(tmp_path, features)])
    assert set(found[:, 1]) == set(category_codes(pa.array(["nl", "7"])))
    with pytest.raises(InputError, match=r"say[s]? so: \{column: country, type: category\}"):
        pinned(tmp_path, ["x", "country"])


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("column", "kind", "says"),
    [
        (pa.array([1.5, 2.5]), "category", "expected strings, integers .* Make it type: number"),
        (pa.array(["a", "b"]), "number", "expected integers, floats .* Make it type: category"),
        (pa.array([1, 2]), "timestamp", "expected timestamps or dates. Make it type: number"),
        (pa.array([1, 2]), "boolean", "expected booleans. Make it type: number"),
        (pa.array([1, 2]), "vector", "expected lists of numbers, of one width"),
        (pa.array([[1], [2]]), "number", "Make it type: vector"),
        (pa.array([{"a": 1}] * 2), "category", "Convert the column"),
        (pa.array([{"a": 1}] * 2), "auto", "is not a number; features must be"),
        (pa.array([b"a", b"b"]), "auto", "is not a number; features must be"),
        (pa.array([1, 2], pa.time32("s")), "auto", "is not a number; features must be"),
        (pa.array([1, 2], pa.timestamp("s", "Mars/Base")), "auto", "Mars/Base"),
    ],
)
def test_a_type_that_does_not_fit(tmp_path: Path, column: pa.Array, kind: str, says: str) -> None:
    path = write(tmp_path / "a.parquet", c=column)
    with pytest.raises(InputError, match=f"shard a.parquet, column c: .*{says}"):
        pinned(path, [{"column": "c", "type": kind}])


@pytest.mark.parametrize(
    ("first", "second", "features"),
    [
        (["a"], [1], [{"column": "c", "type": "category"}]),
        (["a"], [1.5], ["c"]),
        ([True], [1.5], [{"column": "c"}]),
    ],
)
def test_shards_that_mean_different_things(
    tmp_path: Path, first: list[Any], second: list[Any], features: list[Any]
) -> None:
    write(tmp_path / "a.parquet", c=first)
    write(tmp_path / "b.parquet", c=second)
    with pytest.raises(InputError, match=r"shard b\.parquet, column c: type .* does not mean"):
        pinned(tmp_path, features)


def test_shards_that_store_the_same_differently(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", c=pa.array(["x", "y"]), n=pa.array([1, 2], pa.int8()))
    write(tmp_path / "b.parquet", c=pa.array(["y"]).dictionary_encode(), n=[2.5])
    found = np.concatenate([b.x_BF for b in blocks(tmp_path, ["c", {"column": "n"}])])
    assert found[1, 0] == found[2, 0]
    assert found[:, 1].tolist() == [1, 2, 2.5]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"scaling": "minmax"}, "source.scaling=minmax works only on plain numbers; column c"),
        ({"scaling": "unit_norm"}, "source.scaling=unit_norm works only on plain numbers"),
        ({"image_shape": [1, 1]}, "image_shape"),
    ],
)
def test_settings_for_plain_numbers(tmp_path: Path, source: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "a.parquet", c=["a", "b"])
    with pytest.raises(InputError, match=says):
        pinned(path, ["c"], **source)


def test_own_augmentation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", c=["a", "b"])
    settings = config(path, ["c"])
    augment = settings.augment.model_copy(update={"function": "my:function"})
    settings = settings.model_copy(update={"augment": augment})
    with pytest.raises(InputError, match=r"augment\.function=my:function works only on plain"):
        pin(settings, list_shards(settings))


# ---------------------------------------------------------------------------------- the sample


def mixed(rows: int, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    color = random.choice(["red", "blue", "green"], rows, p=[0.6, 0.3, 0.1])
    return pa.table(
        {
            "n": pa.array(random.normal(size=rows), mask=random.random(rows) < 0.25),
            "color": pa.array(color, mask=random.random(rows) < 0.1),
            "day": pa.array(random.integers(0, 10**9, rows), pa.timestamp("s")),
        }
    )


FEATURES = [{"column": "n"}, "color", "day"]


def statistics_of(path: Path) -> tuple[RowStatistics, tuple[FeatureColumn, ...]]:
    features = pinned(path, FEATURES).features
    parts = [RowStatistics.of(block, features).bounded() for block in blocks(path, FEATURES)]
    return RowStatistics.merged(parts), features


def test_statistics_of_many_slices_are_those_of_the_whole(tmp_path: Path) -> None:
    table = mixed(1000)
    for number in range(7):
        some = table.take(np.arange(number, 1000, 7))
        write(
            tmp_path / f"in/{number}.parquet",
            **dict(zip(some.column_names, some.columns, strict=True)),
        )
    found, _ = statistics_of(tmp_path / "in")
    counted = dict(
        zip(found.values["value"].to_pylist(), found.values["rows"].to_pylist(), strict=True)
    )
    words = [word for word in table["color"].to_pylist() if word]
    assert counted == {word: words.count(word) for word in set(words)}
    seconds = table["day"].cast(pa.int64()).to_numpy()[:, None].astype(float)
    whole = Moments.of(on_circles(seconds))
    np.testing.assert_allclose(found.moments.mean_F[3:], whole.mean_F, atol=1e-9)
    assert found.moments.missing_F[0] == table["n"].null_count


def test_rare_values_share_a_bucket(tmp_path: Path) -> None:
    words = ["a"] * 50 + ["b"] * 30 + ["c"] * 2 + ["once"]
    path = write(tmp_path / "a.parquet", n=[1.0, 2.0] * 41 + [3.0], color=words,
                 day=pa.array(range(83), pa.timestamp("s")))  # fmt: skip
    found, features = statistics_of(path)
    feature = {"column": "color", "values": 2}
    scaler = fit_scaler(config(path, [{"column": "n"}, feature, "day"]), features, found)
    assert isinstance(scaler, TypedScaler)
    labels = [c.label for c in scaler.channels if c.kind == "category"]
    assert labels == ["a", "b", "(other)", "(null)"]
    scaler = fit_scaler(config(path, FEATURES), features, found)
    assert [c.label for c in scaler.channels if c.kind == "category"][:3] == ["a", "b", "c"]


def test_a_column_that_names_rows_is_no_category(tmp_path: Path) -> None:
    rows = 3000  # more than a slice reports
    path = write(
        tmp_path / "a.parquet", n=np.arange(rows) * 1.0, color=[f"id-{i}" for i in range(rows)],
        day=pa.array(range(rows), pa.timestamp("s")),
    )  # fmt: skip
    found, features = statistics_of(path)
    with pytest.raises(
        InputError, match=r"column color: about [23],\d{3} different values in 3,000"
    ):
        fit_scaler(config(path, FEATURES), features, found)


def slices_of(values_of: list[pa.Table]) -> list[RowStatistics]:
    """Statistics of slices that have nothing but these categories."""
    features = tuple(
        FeatureColumn(name=name, width=1, vector=False, type="category")
        for name in values_of[0].column_names
    )
    blocks = [
        SimpleNamespace(stored=table, x_BF=np.zeros((len(table), len(features))))
        for table in values_of
    ]
    return [RowStatistics.of(b, features).bounded() for b in blocks]  # type: ignore[arg-type]


def test_a_million_different_values_take_little_memory() -> None:
    slices, rows, most = 50, 21_000, 2048
    tables = []
    for number in range(slices):
        first = number * (rows - 1000)
        ids = np.arange(first, first + rows - 1000).astype(str).tolist() + ["often"] * 1000
        few = (np.arange(rows) % 300).astype(str)
        tables.append(pa.table({"id": ids, "few": few}))
    parts = slices_of(tables)
    found, largest = parts[0], 0
    for part in parts[1:]:
        found = found.merged_with(part, most)
        largest = max(largest, len(found.values))
    assert largest <= most + 300
    assert found.different("id") == pytest.approx(1_000_001, rel=0.15)  # five standard deviations
    rows_of = {
        name: dict(zip(*found.values.filter(pc.equal(found.values["column"], name))
                       .select(["value", "rows"]).to_pydict().values(), strict=True))
        for name in ("id", "few")
    }  # fmt: skip
    # What is frequent loses less than the bound; what has few values loses nothing.
    assert 50_000 - slices * rows / most < rows_of["id"]["often"] <= 50_000
    assert found.different("few") == 300
    assert rows_of["few"] == {str(n): slices * rows / 300 for n in range(300)}


def test_parts_in_any_order_are_merged_in_one() -> None:
    random = np.random.default_rng(0)
    words = [random.choice(2000, 1500).astype(str) for _ in range(6)]
    parts = []
    for number, found in enumerate(slices_of([pa.table({"w": of}) for of in words])):
        moments = {name: values.tolist() for name, values in vars(found.moments).items()}
        hashes = {"column": ["w"], "hashes": [found.hashes["w"].tolist()]}
        parts.append(
            SamplePart(part_name(number), "", 0, 1500, 1500, moments, hashes=hashes,
                       values=found.values.to_pydict(), cut=tuple(found.cut))
        )  # fmt: skip
    merged = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 4, 0, 2, 1]):
        drawn = MergedParts(map(part_name, range(6)))
        for number in order:
            drawn.add(parts[number])
            if len(drawn.parts) < 6:
                with pytest.raises(ValueError, match="missing"):
                    drawn.merged()
        assert sorted(part.name for part in drawn.parts) == [part_name(n) for n in range(6)]
        merged.append(drawn.merged())
    first, second = (found.values.sort_by("value") for found in merged)  # as whoever uses them does
    assert first == second
    assert merged[0].cut == merged[1].cut == {"w"}
    assert merged[0].different("w") == pytest.approx(1970, rel=0.15)


def test_nothing_that_varies(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", color=["a"] * 5)
    features = pinned(path, ["color"]).features
    found = RowStatistics.merged([RowStatistics.of(b, features) for b in blocks(path, ["color"])])
    with pytest.raises(InputError, match="no feature column varies"):
        fit_scaler(config(path, ["color"]), features, found)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.bool_(), "boolean"),
        (pa.int32(), "number"),
        (pa.decimal128(9, 2), "number"),
        (pa.large_string(), "category"),
        (pa.dictionary(pa.int8(), pa.string()), "category"),
        (pa.dictionary(pa.int8(), pa.float32()), "number"),
        (pa.timestamp("ns", "UTC"), "timestamp"),
        (pa.date64(), "timestamp"),
        (pa.list_(pa.float32()), "vector"),
        (pa.list_(pa.string()), None),
        (pa.duration("s"), None),
        (pa.binary(), None),
        (pa.null(), None),
    ],
    ids=str,
)
def test_types_of_columns(kind: pa.DataType, expected: str | None) -> None:
    assert column_type(kind) == expected


def test_one_byte_is_enough_for_nothing_that_may_miss() -> None:
    assert memory_dtype([pa.uint8()], may_miss=True) == "float32"
