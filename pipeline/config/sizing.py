"""The network that fits a table: widths where ``model.hidden`` is auto."""

from __future__ import annotations

import math

from pipeline.config.settings import Config

# Widths of the first layers: about three times the features, in steps of 64; the last hidden one is
# four times as wide, as in Xie et al. 2016, section 4.3, whose 500-500-2000 a wide and long table
# gets. A short table cannot train many weights. Decision 0039 has the measurements.
_PER_FEATURE, _PER_ROOT_OF_ROWS, _STEP, _MOST = 3, 8, 64, 500


def sized(config: Config, features: int, rows: int) -> Config:
    """The config with widths that fit the table, where it leaves them open.

    Args:
        config: The settings.
        features: F, width of a row.
        rows: Number of rows.
    """
    if config.model.hidden != "auto":
        return config
    width = min(_MOST, -(-_PER_FEATURE * features // _STEP) * _STEP)
    if width > (trained := _PER_ROOT_OF_ROWS * math.isqrt(rows)):
        width = max(_STEP, trained - trained % _STEP)
    model = config.model.model_copy(update={"hidden": [width, width, 4 * width]})
    return config.model_copy(update={"model": model})
