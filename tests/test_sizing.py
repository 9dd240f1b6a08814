"""Networks that fit the table."""

from __future__ import annotations

import pytest

from pipeline.config import Config, sized

LEAST = {"source": {"path": "in", "features": ["x"]}, "output": "out", "clusters": 3}


@pytest.mark.parametrize(
    ("features", "rows", "widths"),
    [
        (16, 10_000, (64, 64, 256)),
        (36, 6_435, (128, 128, 512)),
        (64, 1_797, (192, 192, 768)),
        (784, 70_000, (500, 500, 2000)),  # Xie et al. 2016
        (768, 429, (128, 128, 512)),  # few rows
        (2000, 10, (64, 64, 256)),
    ],
)
def test_widths_follow_features_and_rows(features: int, rows: int, widths: tuple[int, ...]) -> None:
    assert sized(Config.model_validate(LEAST), features, rows).model.widths == widths


def test_widths_that_are_given_stay() -> None:
    config = Config.model_validate(LEAST | {"model": {"hidden": [7, 5]}})
    assert sized(config, 16, 10_000) is config
