"""Statistics that merge, and what the scaler makes of them."""

import math

import numpy as np
import pytest
import torch

from pipeline.model.scaling import Moments, Scaler

NAN = math.nan


def fit(mode: str, rows: list[list[float]], widths: list[int]) -> Scaler:
    return Scaler.fit(mode, Moments.of(np.array(rows)), widths)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- Moments


def test_moments_by_hand() -> None:
    # Second column: 2 and 6 remain; mean 4, m2 = 4 + 4.
    moments = Moments.of(np.array([[1.0, NAN], [2.0, 2.0], [3.0, math.inf], [4.0, 6.0]]))
    assert moments.count_F.tolist() == [4, 2]
    assert moments.mean_F.tolist() == [2.5, 4.0]
    assert moments.m2_F.tolist() == [5.0, 8.0]
    assert moments.min_F.tolist() == [1.0, 2.0]
    assert moments.max_F.tolist() == [4.0, 6.0]
    assert moments.missing_F.tolist() == [0, 2]


@pytest.mark.parametrize("shift", [0.0, 1e9])
def test_merge_equals_direct_computation(shift: float) -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(101, 4)) + shift
    rows[random.random(rows.shape) < 0.2] = NAN
    rows[:30, 3] = NAN  # the first block has no value of the last feature at all
    merged = Moments.of(rows[:30])
    for block in np.split(rows[30:], [1, 20, 20]):  # one of them is empty
        merged = merged.merge(Moments.of(block))
    for column, feature in enumerate(rows.T):
        values = feature[np.isfinite(feature)]
        assert merged.count_F[column] == len(values)
        assert merged.missing_F[column] == len(feature) - len(values)
        assert merged.mean_F[column] == pytest.approx(values.mean(), rel=1e-12)
        assert merged.m2_F[column] == pytest.approx(values.var() * len(values), rel=1e-6)
        assert merged.min_F[column] == values.min()
        assert merged.max_F[column] == values.max()


def test_moments_of_only_missing_values() -> None:
    moments = Moments.of(np.full((3, 1), NAN)).merge(Moments.of(np.full((2, 1), NAN)))
    assert moments.missing_F.tolist() == [5]
    assert moments.mean_F.tolist() == [0.0]
    scaler = Scaler.fit("standard", moments, [1])
    assert scaler(torch.tensor([[NAN], [3.0]])).tolist() == [[0.0], [3.0]]


# -------------------------------------------------------------------------------------- Scaler


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Columns (0, 2) and (0, 20): means 1 and 10, deviations 1 and 10.
        ("standard", [[-1.0, -1.0], [1.0, 1.0]]),
        ("minmax", [[0.0, 0.0], [1.0, 1.0]]),
        # ‖(2, 20)‖² = 404; times 2/404 it is F = 2. A row of zeros stays.
        ("unit_norm", [[0.0, 0.0], [2 * math.sqrt(2 / 404), 20 * math.sqrt(2 / 404)]]),
        ("none", [[0.0, 0.0], [2.0, 20.0]]),
    ],
)
def test_modes_on_scalar_columns(mode: str, expected: list[list[float]]) -> None:
    rows = [[0.0, 0.0], [2.0, 20.0]]
    scaled = fit(mode, rows, widths=[1, 1])(torch.tensor(rows))
    torch.testing.assert_close(scaled, torch.tensor(expected))


@pytest.mark.parametrize(
    ("mode", "offset", "factor"),
    [
        # Each component has its own mean, but one variance: (2 + 200)/4 = 50.5 over all values.
        ("standard", [1.0, 10.0, 1.0], [50.5**-0.5, 50.5**-0.5, 1.0]),
        # From the column's smallest value, 0, to its largest, 20; the scalar from 0 to 2.
        ("minmax", [0.0, 0.0, 0.0], [1 / 20, 1 / 20, 1 / 2]),
    ],
)
def test_vector_column_shares_a_factor(mode: str, offset: list[float], factor: list[float]) -> None:
    scaler = fit(mode, [[0.0, 0.0, 0.0], [2.0, 20.0, 2.0]], widths=[2, 1])
    np.testing.assert_allclose(scaler.offset_F.numpy(), offset)
    np.testing.assert_allclose(scaler.factor_F.numpy(), factor)


# The mean of ten 0.1s is 0.09999999999999999 in float64: rounding, not a spread.
@pytest.mark.parametrize("value", [0.0, 5.0, 0.1, -1e9 / 3])
@pytest.mark.parametrize("mode", ["standard", "minmax"])
def test_constant_column_becomes_zero_and_is_not_blown_up(mode: str, value: float) -> None:
    scaler = fit(mode, [[value, float(i)] for i in range(10)], widths=[1, 1])
    assert scaler.factor_F[0].item() == 1.0
    scaled = scaler(torch.tensor([[value, 0.0], [value + 1, 0.0]], dtype=torch.float64))
    assert scaled[0, 0].item() == pytest.approx(0.0, abs=1e-6)
    # A value that the sample did not have stays in its own unit.
    assert scaled[1, 0].item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("missing", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_missing_value_becomes_the_mean(missing: float, dtype: torch.dtype) -> None:
    rows = [[1.0, 10.0], [3.0, 30.0]]  # means 2 and 20, deviations 1 and 10
    x = torch.tensor([[missing, 30.0]], dtype=dtype)
    assert fit("standard", rows, [1, 1])(x).tolist() == [[0.0, 1.0]]
    assert fit("none", rows, [1, 1])(x).tolist() == [[2.0, 30.0]]


def test_float64_timestamps_keep_their_precision() -> None:
    # A minute apart at 1.7e9 s, where float32 steps by 128: deviation 60·√(2/3).
    rows = [[1.7e9], [1.7e9 + 60], [1.7e9 + 120]]
    scaled = fit("standard", rows, [1])(torch.tensor(rows, dtype=torch.float64))
    edge = math.sqrt(3 / 2)
    torch.testing.assert_close(scaled, torch.tensor([[-edge], [0.0], [edge]]))


@pytest.mark.parametrize("mode", ["standard", "minmax", "unit_norm", "none"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float16, torch.float64])
def test_dtype_does_not_change_the_result(mode: str, dtype: torch.dtype) -> None:
    # 100 + 100 overflows a byte: the scaler has to leave uint8 before it computes.
    rows = [[100.0, 100.0], [4.0, 100.0]]
    scaler = fit(mode, rows, [2])
    scaled = scaler(torch.tensor(rows).to(dtype))
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, scaler(torch.tensor(rows)))


def test_no_rows_are_scaled_to_no_rows() -> None:
    assert fit("unit_norm", [[1.0, 2.0]], [2])(torch.empty((0, 2))).shape == (0, 2)


# ------------------------------------------------------------------------------- any magnitude


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1e38, 1e20, 1.0, 1e-24, 1e-37, 1e-44])
def test_unit_norm_keeps_directions_of_any_magnitude(magnitude: float, dtype: torch.dtype) -> None:
    x_BF = torch.tensor([[3.0, -1.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64)
    scaler = fit("unit_norm", [[0.0] * 3], [3])
    scaled = scaler((x_BF * magnitude).to(dtype))
    expected = x_BF * (3 / x_BF.square().sum(dim=1, keepdim=True)).sqrt()
    digits = 0.1 if magnitude == 1e-44 and dtype == torch.float32 else 1e-6  # a few units of it
    torch.testing.assert_close(scaled, expected.float(), rtol=digits, atol=digits)


def test_unit_norm_of_rows_of_all_magnitudes_at_once() -> None:
    magnitudes = torch.tensor([[1e20], [1.0], [1e-24], [0.0], [1e200]], dtype=torch.float64)
    x_BF = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * magnitudes
    expected = torch.tensor([[0.6, 0.8]]) * math.sqrt(2)
    expected = expected.repeat(5, 1) * (magnitudes > 0)
    scaler = fit("unit_norm", [[0.0] * 2], [2])
    torch.testing.assert_close(scaler(x_BF), expected.float())
    torch.testing.assert_close(scaler(x_BF[:4].float()), expected[:4].float())


@pytest.mark.parametrize("mode", ["standard", "minmax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e38, 3e20, 1e-24, 1e-37, 1e-42, 1e150, 1e-150])
def test_columns_of_any_magnitude_are_scaled(mode: str, dtype: type, magnitude: float) -> None:
    if dtype is np.float32 and not 1e-45 < magnitude < 3e38:
        pytest.skip("not in float32")
    shape = np.array([[-3.0], [1.0], [2.0], [3.0]])
    x_BF = (shape * magnitude).astype(dtype)
    plain = fit(mode, shape.tolist(), [1])(torch.from_numpy(shape))
    scaled = Scaler.fit(mode, Moments.of(x_BF), [1])(torch.from_numpy(x_BF))  # type: ignore[arg-type]
    digits = 1e-3 if magnitude == 1e-42 else 1e-5
    torch.testing.assert_close(scaled, plain, rtol=digits, atol=digits)


def test_moments_of_values_whose_squares_overflow() -> None:
    one = Moments.of(np.array([[1e200], [-1e200], [1e308], [1e308]]))
    assert not np.isfinite(one.merge(one).m2_F[0])  # and no warning
