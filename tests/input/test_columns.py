"""Arrow columns of every layout → the same matrix."""

import decimal
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from ray.data.extensions import ArrowTensorArray

from pipeline.artifacts.inputs import FeatureColumn
from pipeline.input.columns import (
    RaggedVectors,
    feature_matrix,
    is_vector,
    memory_dtype,
    number_type,
)

# Ray's own: making a tensor column reads its default context, which warns about its own fields.
pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")

X = FeatureColumn(name="x", width=3, vector=True)
SCALAR = FeatureColumn(name="s", width=1, vector=False)
ROWS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]], dtype=np.float32)


def ray_tensors(rows: np.ndarray) -> pa.Array:
    return ArrowTensorArray.from_numpy(rows)


VECTORS: dict[str, Callable[[np.ndarray], pa.Array]] = {
    "fixed_size_list": lambda rows: pa.FixedSizeListArray.from_arrays(rows.ravel(), 3),
    "list": lambda rows: pa.array(list(rows), pa.list_(pa.from_numpy_dtype(rows.dtype))),
    "large_list": lambda rows: pa.array(list(rows), pa.large_list(pa.from_numpy_dtype(rows.dtype))),
    "fixed_shape_tensor": pa.FixedShapeTensorArray.from_numpy_ndarray,
    "ray_tensor": ray_tensors,
    # A tensor of 3 × 1 is a row of 3 features.
    "ray_tensor_2d": lambda rows: ray_tensors(rows[:, :, None]),
}


def matrix(column: pa.Array | pa.ChunkedArray, spec: FeatureColumn = X) -> np.ndarray:
    found, missing = feature_matrix([column], [spec], "float32")
    assert missing is None
    return found


# ----------------------------------------------------------------------------- vector columns


@pytest.mark.parametrize("layout", VECTORS)
def test_vector_layouts(layout: str) -> None:
    column = VECTORS[layout](ROWS)
    assert is_vector(column.type)
    assert number_type(column.type) == pa.float32()
    np.testing.assert_array_equal(matrix(column), ROWS)


@pytest.mark.parametrize("layout", VECTORS)
def test_sliced_vectors(layout: str) -> None:
    np.testing.assert_array_equal(matrix(VECTORS[layout](ROWS).slice(1, 2)), ROWS[1:3])


@pytest.mark.parametrize("layout", VECTORS)
def test_chunked_vectors(layout: str) -> None:
    chunks = [VECTORS[layout](ROWS[:1]), VECTORS[layout](ROWS).slice(1)]
    np.testing.assert_array_equal(matrix(pa.chunked_array(chunks)), ROWS)


@pytest.mark.parametrize("layout", VECTORS)
def test_no_rows(layout: str) -> None:
    assert matrix(VECTORS[layout](ROWS).slice(0, 0)).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float64"])
@pytest.mark.parametrize("layout", VECTORS)
def test_number_types_in_vectors(layout: str, dtype: str) -> None:
    rows = ROWS.astype(dtype)
    found, missing = feature_matrix([VECTORS[layout](rows)], [X], dtype)
    assert missing is None
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, rows)


def test_booleans_in_vectors() -> None:
    column = pa.array([[True, False, True]] * 2, pa.list_(pa.bool_(), 3))
    found, _ = feature_matrix([column], [X], "uint8")
    assert found.tolist() == [[1, 0, 1]] * 2


def test_null_free_fixed_size_list_is_not_copied() -> None:
    values = ROWS.ravel().copy()
    column = pa.FixedSizeListArray.from_arrays(values, 3)
    assert np.shares_memory(matrix(column), values)
    assert np.shares_memory(matrix(column.slice(1)), values)
    assert np.shares_memory(matrix(pa.chunked_array([column])), values)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float32())])
@pytest.mark.parametrize("offset", [0, 1])
def test_nulls_in_rows_and_in_values(kind: pa.DataType, offset: int) -> None:
    column = pa.array([[0, 0, 0], [1, 2, 3], None, [4, None, 6], [7, 8, 9]], kind).slice(offset)
    found, missing = feature_matrix([column], [X], "float32")
    nan = np.nan
    expected = [[0, 0, 0], [1, 2, 3], [nan] * 3, [4, nan, 6], [7, 8, 9]][offset:]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert missing.tolist() == [False, False, True, True, False][offset:]


def test_nulls_hide_what_lies_beneath_them() -> None:
    # A null slot of a fixed_size_list keeps its bytes; they must not be taken for values.
    valid = pa.py_buffer(bytes([0b1101]))
    values = pa.array(ROWS.ravel())
    column = pa.Array.from_buffers(pa.list_(pa.float32(), 3), 4, [valid], children=[values])
    found, missing = feature_matrix([column], [X], "float32")
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2, 3]], ROWS[[0, 2, 3]])
    assert missing.tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64(), 3), pa.list_(pa.uint8())])
def test_nulls_among_integers(kind: pa.DataType) -> None:
    found, missing = feature_matrix([pa.array([[1, None, 3], None], kind)], [X], "float64")
    np.testing.assert_array_equal(found, [[1, np.nan, 3], [np.nan] * 3])
    assert missing.tolist() == [True, True]


def test_all_rows_null() -> None:
    column = pa.array([None, None], pa.list_(pa.float32()))
    found, missing = feature_matrix([column], [X], "float32")
    assert np.isnan(found).all()
    assert found.shape == (2, 3)
    assert missing.tolist() == [True, True]


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0, 3.0], [4.0, 5.0]],
        [[1.0, 2.0], [3.0, 4.0]],  # of one width, but not the layout's
        [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]],  # three on average
        [[1.0, 2.0, 3.0], []],
        [None, [1.0]],
    ],
)
@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float64())])
def test_ragged_vectors(rows: list[list[float]], kind: pa.DataType) -> None:
    widths = [len(row) for row in rows if row is not None]
    with pytest.raises(RaggedVectors) as error:
        feature_matrix([pa.array(rows, kind)], [X], "float64")
    assert error.value.args[-2:] == (min(widths), max(widths))


# ----------------------------------------------------------------------------- scalar columns


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array([1, 0, 2], kind) for kind in (pa.uint8(), pa.int8(), pa.uint16(), pa.int16())),
        *(pa.array([1, 0, 2], kind) for kind in (pa.int32(), pa.uint32(), pa.int64())),
        *(pa.array([1, 0, 2]).cast(kind) for kind in (pa.float32(), pa.float64())),
        pa.array(np.array([1, 0, 2], np.float16)),
        pa.array([decimal.Decimal(n) for n in (1, 0, 2)], pa.decimal128(10, 2)),
        pa.array([1, 0, 2], pa.int32()).dictionary_encode(),
        pa.chunked_array([[1.0], [0.0, 2.0]]),
        pa.array([9, 1, 0, 2, 9], pa.int16()).slice(1, 3),
        pa.array([9.0, 1, 0, 2]).dictionary_encode().slice(1),
    ],
    ids=lambda column: str(column.type),
)
def test_scalar_layouts(column: pa.Array) -> None:
    assert not is_vector(column.type)
    assert number_type(column.type) is not None
    assert matrix(column, SCALAR).tolist() == [[1], [0], [2]]


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_booleans(offset: int) -> None:
    values = [True, False, True, True, False]
    found, _ = feature_matrix([pa.array(values).slice(offset)], [SCALAR], "uint8")
    assert found.tolist() == [[int(value)] for value in values[offset:]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3], pa.int32()),
        pa.array([1, None, 3], pa.float16()),
        pa.array([True, None, True]),
        pa.array([decimal.Decimal(1), None, decimal.Decimal(3)], pa.decimal128(5, 1)),
        pa.array([1, None, 3], pa.int64()).dictionary_encode(),
        pa.array([1.0, float("nan"), 3.0]),
        pa.array([1.0, float("inf"), 3.0], pa.float32()),
        pa.array([1.0, -float("inf"), 3.0], pa.float32()),
        pa.array([0.0, 1.0, None, 3.0]).slice(1),
    ],
    ids=lambda column: str(column.type),
)
def test_missing_scalars(column: pa.Array) -> None:
    found, missing = feature_matrix([column], [SCALAR], "float64")
    assert missing.tolist() == [False, True, False]
    assert not np.isfinite(found[1, 0])


def test_infinities_that_cancel_are_missing() -> None:
    _, missing = feature_matrix([pa.array([np.inf, -np.inf, 1.0])], [SCALAR], "float64")
    assert missing.tolist() == [True, True, False]


def test_sum_that_overflows_is_not_missing() -> None:
    found, missing = feature_matrix([pa.array([1e308, 1e308])], [SCALAR], "float64")
    assert missing is None
    assert found.tolist() == [[1e308], [1e308]]


def test_large_integers_stay_exact() -> None:
    # 2^53 − 1 is the last odd number that float64 holds; float32 would round it.
    found, _ = feature_matrix([pa.array([2**53 - 1])], [SCALAR], "float64")
    assert int(found[0, 0]) == 2**53 - 1


# ---------------------------------------------------------------------------- several columns


def test_columns_side_by_side_in_the_order_of_the_layout() -> None:
    columns = [
        pa.array([0.5, 1.5]),
        VECTORS["fixed_size_list"](ROWS[:2]),
        pa.array([True, False]),
    ]
    layout = [SCALAR, X, SCALAR]
    found, missing = feature_matrix(columns, layout, "float32")
    assert missing is None
    assert found.tolist() == [[0.5, 1, 2, 3, 1], [1.5, 4, 5, 6, 0]]


def test_missing_in_any_column() -> None:
    columns = [pa.array([1.0, None, 3.0]), pa.array([1, 2, None]), pa.array([1, 2, 3])]
    found, missing = feature_matrix(columns, [SCALAR] * 3, "float32")
    assert missing.tolist() == [False, True, True]
    nan = np.nan
    np.testing.assert_array_equal(found, [[1, 1, 1], [nan, 2, 2], [3, nan, 3]])


# -------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("kinds", "may_miss", "expected"),
    [
        ([pa.uint8()], False, "uint8"),
        ([pa.bool_(), pa.uint8()], False, "uint8"),
        ([pa.int8()], False, "int8"),
        ([pa.int8(), pa.uint8()], False, "float32"),  # neither holds the other
        ([pa.uint8()], True, "float32"),  # no NaN among bytes
        ([pa.bool_()], True, "float32"),
        ([pa.float16()], False, "float16"),
        ([pa.float16()], True, "float32"),
        ([pa.float16(), pa.uint8()], False, "float32"),
        ([pa.float32(), pa.uint16(), pa.int8()], False, "float32"),
        ([pa.int32()], False, "float64"),  # above 2^24 float32 leaves out integers
        ([pa.int64()], False, "float64"),
        ([pa.float64(), pa.float32()], False, "float64"),
        ([pa.decimal128(10, 2)], True, "float64"),
    ],
)
def test_memory_dtype(kinds: list[pa.DataType], may_miss: bool, expected: str) -> None:
    assert memory_dtype(kinds, may_miss=may_miss) == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.timestamp("us"),
        pa.date32(),
        pa.list_(pa.string()),
        pa.list_(pa.list_(pa.float32())),
        pa.struct([("a", pa.float32())]),
        pa.dictionary(pa.int32(), pa.string()),
        pa.null(),
    ],
    ids=str,
)
def test_types_that_are_no_features(kind: pa.DataType) -> None:
    assert number_type(kind) is None


# ----------------------------------------------------------------------------- vectors of bytes


def vectors_as_bytes(rows: np.ndarray) -> pa.Array:
    return pa.array([row.tobytes() for row in rows], pa.binary(rows.dtype.itemsize * rows.shape[1]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("part", [slice(0, 4), slice(1, 3), slice(2, 2)])
def test_bytes_as_vectors(dtype: str, part: slice) -> None:
    column = vectors_as_bytes(ROWS.astype(dtype)).slice(part.start, part.stop - part.start)
    spec = X.model_copy(update={"dtype": dtype, "type": "vector"})
    found, missing = feature_matrix([column], [spec], dtype)
    assert missing is None
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ROWS[part])
    if len(column):
        content = np.frombuffer(column.buffers()[1], np.uint8)
        assert np.shares_memory(found, content)


@pytest.mark.parametrize("offset", [0, 1])
def test_missing_among_bytes_as_vectors(offset: int) -> None:
    values = [np.array(row, np.float32).tobytes() for row in ([1, 2, 3], [4, np.nan, 6])]
    column = pa.array([values[0], None, values[1]], pa.binary(12)).slice(offset)
    spec = X.model_copy(update={"dtype": "float32"})
    found, missing = feature_matrix([column], [spec], "float32")
    nan = np.nan
    expected = [[1, 2, 3], [nan] * 3, [4, nan, 6]][offset:]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert missing.tolist() == [False, True, True][offset:]
