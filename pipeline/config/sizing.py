"""The network that fits a table: widths where ``model.hidden`` is auto."""

from __future__ import annotations

import math

from pipeline.config.settings import Config

# Widths of the first layers; the last hidden one is four times as wide, as in Xie et al. 2016,
# section 4.3, whose 500-500-2000 a wide and long table gets. Decision 0039 has the measurements.
_LEAST, _MOST, _PER_FEATURE = 128, 500, 2
# A short table cannot train many weights: at most this many times the root of its rows, and 64.
_PER_ROOT, _LEAST_OF_ALL = 8, 64


def sized(config: Config, features: int, rows: int) -> Config:
    """The config with widths that fit the table, where it leaves them open.

    Args:
        config: The settings.
        features: F, width of a row.
        rows: Number of rows.
    """
    if config.model.hidden != "auto":
        return config
    width = min(max(_LEAST, _PER_FEATURE * features), _MOST)
    width = min(width, max(_LEAST_OF_ALL, _PER_ROOT * math.isqrt(rows)))
    width -= width % 4
    model = config.model.model_copy(update={"hidden": [width, width, 4 * width]})
    return config.model_copy(update={"model": model})
