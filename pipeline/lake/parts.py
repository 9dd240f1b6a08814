"""Part files: the assignments of one slice, in one file, written once.

Name and content are a function of slice, model and run alone, and the footer carries the part's
statistics. So a part that is already there with the right identity is done: that is all the state
that resuming an interrupted assignment needs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import fingerprint_of
from pipeline.storage import Store, open_input, parquet_bytes

_METADATA_KEY = b"dec_pipeline"
# Engines skip row groups by the range of cluster_id; small enough to skip, big enough to scan.
_ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True)
class PartStatistics:
    """What one part holds.

    Attributes:
        identity: Fingerprint of slice, model, run and ds.
        rows_in: Rows of the slice.
        rows: Rows written; fewer than rows_in only under ``source.nulls: drop``.
        cluster_rows: (cluster_id, rows) of each cluster that occurs.
        confidence_sum: Σ confidence.
        contingency: (cluster_id, class, rows) where the table has a label; the class as JSON value.
    """

    identity: str
    rows_in: int
    rows: int
    cluster_rows: list[list[int]]
    confidence_sum: float
    contingency: list[list[Any]]


def part_identity(pieces: pa.Table, **of: str) -> str:
    """Identity of the part that holds these pieces' assignments.

    Args:
        pieces: A slice.
        of: Whatever else decides the content: model, run, ds, schema.
    """
    content = pieces.select(["name", "version", "row_group", "row_start", "rows"]).to_pydict()
    return fingerprint_of({"pieces": content, **of})


def part_path(folder: str, identity: str) -> str:
    """Where that part lies, below the output."""
    return f"{folder}/part-{identity[:20]}.parquet"


def statistics_of(
    identity: str, rows_in: int, table: pa.Table, label: pa.Array | None
) -> PartStatistics:
    """Statistics of a part, to be stored with it.

    Args:
        identity: From ``part_identity``.
        rows_in: Rows of the slice.
        table: The assignments.
        label: The true classes of the same rows, where there are any; nulls do not count.
    """
    cluster = table["cluster_id"]
    ids, counts = np.unique(cluster.to_numpy(), return_counts=True)
    contingency: list[list[Any]] = []
    if label is not None:
        if pa.types.is_dictionary(label.type):
            label = label.cast(label.type.value_type)
        pairs = pa.table({"cluster": cluster, "label": label}).drop_null()
        groups = pairs.group_by(["cluster", "label"]).aggregate([([], "count_all")])
        order = [("cluster", "ascending"), ("label", "ascending")]
        contingency = [
            [row["cluster"], _json_value(row["label"]), row["count_all"]]
            for row in groups.sort_by(order).to_pylist()
        ]
    return PartStatistics(
        identity=identity,
        rows_in=rows_in,
        rows=len(table),
        cluster_rows=np.stack([ids, counts], axis=1).tolist(),
        confidence_sum=float(np.sum(table["confidence"].to_numpy(), dtype=np.float64)),
        contingency=contingency,
    )


def write_part(lake: Store, path: str, table: pa.Table, statistics: PartStatistics) -> int:
    """Write a part in one completed upload; returns its size in bytes."""
    metadata = {_METADATA_KEY: json.dumps(asdict(statistics)).encode()}
    table = table.replace_schema_metadata(metadata)
    content = parquet_bytes(table, _ROW_GROUP_ROWS)
    lake.write_bytes(path, content)
    return len(content)


def read_statistics(lake: Store, path: str, identity: str) -> tuple[PartStatistics, int] | None:
    """Statistics and size of the part at this path; None unless it is whole and the right one."""
    try:
        with open_input(lake.locate(path)) as source:
            size = source.size()
            footer = pq.read_metadata(source)
        content = json.loads((footer.metadata or {})[_METADATA_KEY])
        statistics = PartStatistics(**content)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None  # absent, cut short, or not ours: to be written (again)
    right = statistics.identity == identity and footer.num_rows == statistics.rows
    return (statistics, size) if right else None


def _json_value(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
