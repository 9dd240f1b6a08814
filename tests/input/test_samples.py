"""Reading the reference sample back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts.records import StoredFile
from pipeline.input.samples import FEATURES, feature_parts, sampled_classes, sampled_features
from pipeline.storage import Store, parquet_bytes


def stored(lake: Store, tables: list[pa.Table]) -> tuple[StoredFile, ...]:
    files = []
    for number, table in enumerate(tables):
        content = parquet_bytes(table)
        lake.write_bytes(f"{number}.parquet", content)
        files.append(StoredFile(path=f"{number}.parquet", sha256="", bytes=len(content)))
    return tuple(files)


def labelled(type_: pa.DataType, *parts: list[object]) -> list[pa.Table]:
    return [pa.table({"label": pa.array(part, type_)}) for part in parts]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.string(), ["cat", "dog"]),
        (pa.large_string(), ["cat", "dog"]),
        (pa.int16(), [7, 3]),
        (pa.bool_(), [True, False]),
        (pa.float64(), [0.5, 1.5]),
        (pa.dictionary(pa.int32(), pa.string()), ["cat", "dog"]),
    ],
)
def test_classes_have_one_number_in_every_part(
    tmp_path: Path, type_: pa.DataType, values: list[object]
) -> None:
    first, second = values
    lake = Store(str(tmp_path))
    parts = stored(lake, labelled(type_, [first, None, second], [], [second, first]))
    codes = sampled_classes(lake, parts, "label")
    assert codes.dtype == np.int64
    assert codes.tolist() == [0, -1, 1, 1, 0]


def test_classes_where_none_is_known(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    for type_ in (pa.string(), pa.null()):
        parts = stored(lake, labelled(type_, [None, None]))
        assert sampled_classes(lake, parts, "label").tolist() == [-1, -1]


def test_features_part_by_part(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    tables = [
        pa.table({FEATURES: pa.FixedSizeListArray.from_arrays(rows.ravel(), 2)})
        for rows in (x[:4], x[4:4], x[4:])  # nulls: drop may leave none of a part
    ]
    parts = stored(lake, tables)
    assert [len(part) for part in feature_parts(lake, parts)] == [4, 2]
    np.testing.assert_array_equal(sampled_features(lake, parts), x)
