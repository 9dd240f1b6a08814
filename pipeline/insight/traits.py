"""What is peculiar to each cluster, from ``cluster_profile``, strongest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.explanations import Explanation
from pipeline.artifacts.records import StoredFile
from pipeline.naming import Trait
from pipeline.registry.cluster_ids import OUTLIER
from pipeline.storage import Store, open_input

_COLUMNS = (
    *("cluster_id", "rows", "feature", "kind", "component", "value", "mean"),
    *("difference", "rank"),
)
_STRONGEST = 8
_COMPONENTS = 3  # that stand for a vector


def strongest(lake: Store, profile: StoredFile, most: int = _STRONGEST) -> pa.Table:
    """The rows of a profile that say most of each cluster; a batch at a time, whatever its size.

    Args:
        lake: The output folder.
        profile: Of ``PROFILE_SCHEMA``.
        most: Features, and components, of each cluster.
    """
    kept = []
    with open_input(lake.locate(profile.path)) as source:
        parquet = pq.ParquetFile(source)
        for batch in parquet.iter_batches(columns=list(_COLUMNS)):
            wanted = pc.and_(
                pc.less_equal(batch.column("rank"), most),
                pc.not_equal(batch.column("cluster_id"), OUTLIER),
            )
            kept.append(pa.table(batch).filter(wanted))
        schema = parquet.schema_arrow
    if not kept:
        return pa.schema([schema.field(name) for name in _COLUMNS]).empty_table()
    return pa.concat_tables(kept)


def traits_of(rows: pa.Table) -> dict[int, list[Trait]]:
    """The traits of each cluster, strongest first; a vector is told by its strongest components."""
    of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.sort_by([("cluster_id", "ascending"), ("rank", "ascending")]).to_pylist():
        of[row["cluster_id"]].append(row)
    return {cluster: _traits(found) for cluster, found in of.items()}


def times_of(explanation: Explanation) -> dict[str, str]:
    """Columns of points in time, and their types."""
    return {
        column.name: column.type
        for column in explanation.columns
        if column.kind == "number" and column.type.startswith(("timestamp", "date"))
    }


def rows_of(rows: pa.Table) -> dict[int, int]:
    """Rows of each cluster."""
    return dict(zip(rows["cluster_id"].to_pylist(), rows["rows"].to_pylist(), strict=True))


def label_of(row: dict[str, Any]) -> str:
    """What a row of a profile is about, without its category."""
    at = row["component"]
    return row["feature"] if at is None else f"{row['feature']}[{at}]"


def _traits(rows: Sequence[dict[str, Any]]) -> list[Trait]:
    components = defaultdict(list)
    for row in rows:
        if row["kind"] == "component":
            components[row["feature"]].append(row)
    found: list[Trait] = []
    for row in rows:
        if row["kind"] == "vector":
            found += map(_trait, components[row["feature"]][:_COMPONENTS])
        elif row["kind"] == "number" or (row["kind"] == "category" and row["value"] is not None):
            found.append(_trait(row))
    return found


def _trait(row: dict[str, Any]) -> Trait:
    return Trait(label_of(row), row["value"], row["difference"], row["mean"])
