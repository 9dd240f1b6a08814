"""Example dataset that needs no network."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.schema import vectors
from pipeline.storage import Store, why

_DIGITS_SHARDS = 6


def write_digits_once(folder: str) -> None:
    """Write the digits unless all of them exist; see ``write_digits``."""
    last = f"digits-{_DIGITS_SHARDS - 1}.parquet"
    try:
        complete = Store(folder).exists(last)
    except OSError:
        complete = False  # writing reports the problem
    if not complete:
        write_digits(folder)


def write_digits(folder: str) -> int:
    """Write scikit-learn's 1,797 handwritten digits as Parquet shards; returns the number of rows.

    Columns: ``id`` int64, ``x`` 8 × 8 pixels from 0 to 16 as fixed_size_list<uint8>[64], and
    ``label`` int16, the true digit (Alpaydin & Kaynak 1998, UCI).

    Raises:
        ConfigError: The folder cannot be written.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.data.astype(np.uint8)
    table = pa.table(
        {
            "id": np.arange(len(pixels)),
            "x": vectors(pixels),
            "label": digits.target.astype(np.int16),
        }
    )
    store = Store(folder)
    edges = np.linspace(0, len(table), _DIGITS_SHARDS + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        try:
            store.write_table(f"digits-{number}.parquet", table.slice(start, stop - start))
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written: {why(error)}; give a folder that you may write to"
            ) from None
    return len(table)
