"""The map of a run: rows of the reference sample, their clusters, and coordinates in a plane."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts.inputs import Sample
from pipeline.artifacts.nights import Champion
from pipeline.clustering.projection import project
from pipeline.input.samples import FEATURES
from pipeline.model.devices import embeddings
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.labels import assignments_of
from pipeline.registry.models import load_model, settings_of
from pipeline.schema import SHARD_KEY_COLUMNS, matrix_of
from pipeline.storage import Store, parquet_bytes

# More points hide each other, and t-SNE takes seconds for these, minutes for many more.
ROWS = 2_000
# Maximum number of parts to read: the sample of a huge table has thousands, each a request.
PARTS = 64
# Maximum number of raw values kept for images of rows: 2,000 images of 28 × 28.
_KEPT_VALUES = 2_000_000
# Columns of the map, with names that no key column has.
X, Y = "dec_x", "dec_y"
_ABOUT = b"dec_map"


def map_bytes(
    lake: Store, champion: Champion, sample: Sample, keys: Sequence[str], seed: int
) -> bytes | None:
    """Draw rows of the sample, label them as ``assign`` does, and project them into the plane.

    ``sample`` is the reference sample of the champion that labelled the rows, without forgotten
    ones. Without ``keys``, shard name and row number are the keys.

    Returns:
        A Parquet file: the keys, ``dec_x`` and ``dec_y``, float32; the columns of the assignments
        from ``cluster_id`` to ``distance``; and ``dec_features``, the raw row, unless too
        wide; with the metadata that ``about`` reads. None where the sample has too few rows.
    """
    columns = list(keys) or list(SHARD_KEY_COLUMNS)
    rows = _drawn(lake, sample, [*columns, FEATURES], seed)
    if rows is None or len(rows) < 5:
        return None
    x_NF = matrix_of(rows[FEATURES])
    model = champion.model
    loaded = load_model(lake, model, settings_of(lake, model))
    raw = torch.from_numpy(np.array(x_NF))  # a copy: Arrow's memory is read-only
    found = ClusterIds.of(lake, champion.ids).rename(assignments_of(loaded, raw))
    with torch.inference_mode():
        z_ND = embeddings(loaded.clusters.encoder, loaded.scaler, raw).cpu().numpy()
    places = project(z_ND, seed)
    facts = {
        "method": "t-SNE",
        "rows": len(rows),
        "sampled_rows": sample.rows,
        "dimensions": z_ND.shape[1],
        "kept_neighbours": places.kept_neighbours,
        "distance_correlation": places.distance_correlation,
    }
    table = rows.select(columns)
    table = table.append_column(X, pa.array(places.xy_N2[:, 0]))
    table = table.append_column(Y, pa.array(places.xy_N2[:, 1]))
    for name in ("cluster_id", "confidence", "cluster_id_2", "confidence_2", "distance"):
        table = table.append_column(name, pa.array(found[name]))
    if x_NF.size <= _KEPT_VALUES:
        table = table.append_column(FEATURES, rows[FEATURES])
    table = table.replace_schema_metadata({_ABOUT: json.dumps(facts).encode()})
    return bytes(parquet_bytes(table))


def about(table: pa.Table) -> dict[str, Any]:
    """Metadata of a map: its method, numbers of rows, and fidelity; empty where there is none.

    The measures of fidelity are those of ``pipeline.clustering.projection.Projection``.
    """
    try:
        return dict(json.loads((table.schema.metadata or {})[_ABOUT]))
    except (KeyError, ValueError, TypeError):
        return {}


def _drawn(lake: Store, sample: Sample, columns: list[str], seed: int) -> pa.Table | None:
    """Rows of the sample, at most ``ROWS``, in their order there."""
    random = np.random.default_rng([seed, sample.rows])
    parts = list(sample.parts)
    some_parts = len(parts) > PARTS
    if some_parts:
        parts = [parts[n] for n in np.sort(random.choice(len(parts), PARTS, replace=False))]
    kept: list[pa.Table] = []
    for part in parts:
        table = lake.read_table(part.path, columns)
        share = 1 / PARTS if some_parts else len(table) / max(1, sample.rows)
        kept.append(table.take(_some(len(table), math.ceil(ROWS * share), random)))
    if not kept:
        return None
    rows = pa.concat_tables(kept)
    return rows.take(_some(len(rows), ROWS, random)).combine_chunks()


def _some(rows: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    if rows <= most:
        return np.arange(rows)
    return np.sort(random.choice(rows, most, replace=False))
