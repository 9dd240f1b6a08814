"""Values that float64 cannot square, or not tell apart: scaled, or refused by their column."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.pinning import list_shards, pin
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.input.statistics import RowStatistics, fit_scaler

SHAPE = np.array([-1.0, 0.0, 0.5, 1.0])


def scaled(path: Path, column: Any, feature: Any = "x", scaling: str = "standard") -> np.ndarray:
    """The column x, scaled, beside a harmless one."""
    pq.write_table(pa.table({"x": column, "y": SHAPE}), path / "a.parquet")
    source = {"path": str(path), "features": ["y", feature], "scaling": scaling, "nulls": "mean"}
    config = Config.model_validate({"source": source, "output": "unused", "clusters": 2})
    found = pin(config, list_shards(config))
    reader = Reader(found.features, found.dtype, "mean", found.carried, False)
    blocks = list(reader.blocks(pieces_of_shards(found.shards, 1)))
    statistics = RowStatistics.merged([RowStatistics.of(b, found.features) for b in blocks])
    scaler = fit_scaler(config, found.features, statistics)
    x_BF = np.concatenate([block.x_BF for block in blocks])
    return scaler(torch.from_numpy(x_BF)).numpy()[:, 1:]


@pytest.mark.parametrize("feature", ["x", {"column": "x"}, {"column": "x", "type": "number"}])
@pytest.mark.parametrize("magnitude", [1e100, 1e38, 1e20, 1e-24, 1e-40, 1e-140])
@pytest.mark.parametrize("vector", [False, True])
def test_extreme_values_are_scaled(
    tmp_path: Path, feature: Any, magnitude: float, vector: bool
) -> None:
    if vector and feature != "x":
        feature = {"column": "x"}
    values = SHAPE * magnitude
    column = [[value, 0.0] for value in values] if vector else values
    found = scaled(tmp_path, column, feature)[:, 0]
    assert np.isfinite(found).all()
    apart = found - found[1]
    np.testing.assert_allclose(apart / apart[3], SHAPE, rtol=1e-5)
    assert 0.5 < apart[3] < 5


@pytest.mark.parametrize(
    ("magnitude", "scaling", "what"),
    [
        (1e200, "standard", "too large"),
        (1.7e308, "standard", "too large"),
        (1.7e308, "minmax", "too large"),
        (1e39, "none", "too large"),
        (1e-170, "standard", "too close to each other"),
        (5e-324, "standard", "too close to each other"),
        (5e-324, "minmax", "too close to each other"),
    ],
)
@pytest.mark.parametrize("vector", [False, True])
def test_values_that_cannot_be_scaled_are_an_error(
    tmp_path: Path, magnitude: float, scaling: str, what: str, vector: bool
) -> None:
    values = np.where(SHAPE > 0, magnitude, -magnitude)
    column = [[value, 0.0] for value in values] if vector else values
    match = (
        rf"^column x: values from -\S+ to \S+ in the sample are {what} for source.scaling={scaling}"
    )
    with pytest.raises(InputError, match=match):
        scaled(tmp_path, column, scaling=scaling)
    if scaling == "standard":
        with pytest.raises(InputError, match=match):
            scaled(tmp_path, column, {"column": "x"})


@pytest.mark.parametrize("value", [0.0, 1e-170, 5e-324, 1e200, 1.7e308, -1e300])
@pytest.mark.parametrize("feature", ["x", {"column": "x"}])
def test_columns_of_one_value(tmp_path: Path, value: float, feature: Any) -> None:
    if value == 1.7e308:  # of which not even the sum is finite
        with pytest.raises(InputError, match=r"^column x: values from .* are too large"):
            scaled(tmp_path, [value] * 4, feature)
        return
    assert not scaled(tmp_path, [value] * 4, feature).any()


def test_one_extreme_value_among_missing_ones(tmp_path: Path) -> None:
    found = scaled(tmp_path, [1e100, None, float("nan"), float("inf")])
    np.testing.assert_array_equal(found.ravel(), 0)
