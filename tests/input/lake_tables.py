"""What the tests of lake tables share: pin a table, and read its keys as a run does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts.records import StoredFile
from pipeline.config import Config
from pipeline.input.pinning import PinnedInput, list_shards, pin
from pipeline.input.reading import Reader, manifest_of, pieces_of_shards

_NOWHERE = StoredFile(path="unwritten", sha256="", bytes=0)


def rows(n: int = 100, start: int = 0) -> pa.Table:
    """Rows with a key, two features and a category."""
    numbers = np.arange(start, start + n)
    country = pa.array([["nl", "de", None, "b r/%"][i % 4] for i in numbers.tolist()])
    return pa.table(
        {"id": numbers, "x": numbers * 0.5, "y": numbers % 7 + 0.25, "country": country}
    )


def config_of(**source: Any) -> Config:
    settings = {"features": ["x", "y"], "keys": ["id"]} | source
    return Config.model_validate({"source": settings, "output": "/nowhere", "clusters": 2})


def pinned(config: Config, known: pa.Table | None = None) -> PinnedInput:
    return pin(config, list_shards(config), known=known)


def read(config: Config) -> dict[Any, tuple[float, ...]]:
    """The features of each row by its key; a key that is read twice fails."""
    found = pinned(config)
    manifest = manifest_of(config, found, _NOWHERE)
    reader = Reader.of(config, manifest, carry=True)
    table: dict[Any, tuple[float, ...]] = {}
    count = 0
    for block in reader.blocks(pieces_of_shards(found.shards, 256)):
        assert block.carried is not None
        keys = zip(*block.carried.to_pydict().values(), strict=True)
        for key, x_F in zip(keys, block.x_BF.tolist(), strict=True):
            table[key if len(key) > 1 else key[0]] = tuple(x_F)
            count += 1
    assert count == len(table) == manifest.rows
    return table
