"""Traits of clusters for their names, from ``cluster_profile``: its strongest differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.records import StoredFile
from pipeline.insight.explained_runs import feature_label
from pipeline.naming import Trait
from pipeline.registry.cluster_ids import OUTLIER
from pipeline.storage import Store

_COLUMNS = (
    *("cluster_id", "rows", "feature", "kind", "component", "value", "mean"),
    *("difference", "rank"),
)
_STRONGEST = 8  # features, and components, of each cluster
_COMPONENTS = 3  # shown in place of a vector


def strongest(lake: Store, profile: StoredFile) -> pa.Table:
    """The rows of a profile with the strongest differences of each cluster, without outliers."""
    wanted = (pc.field("rank") <= _STRONGEST) & (pc.field("cluster_id") != OUTLIER)
    return lake.read_table(profile.path, _COLUMNS, wanted)


def traits_of(rows: pa.Table) -> dict[int, list[Trait]]:
    """Traits of each cluster, strongest first; the strongest components stand for a vector."""
    clusters: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows.sort_by([("cluster_id", "ascending"), ("rank", "ascending")]).to_pylist():
        clusters[row["cluster_id"]].append(row)
    return {cluster: _traits(found) for cluster, found in clusters.items()}


def cluster_sizes(rows: pa.Table) -> dict[int, int]:
    """Number of rows of each cluster in a profile."""
    return dict(zip(rows["cluster_id"].to_pylist(), rows["rows"].to_pylist(), strict=True))


def _traits(rows: Sequence[dict[str, Any]]) -> list[Trait]:
    components = defaultdict(list)
    for row in rows:
        if row["kind"] == "component":
            components[row["feature"]].append(row)
    shown: list[dict[str, Any]] = []
    for row in rows:
        if row["kind"] == "vector":
            shown += components[row["feature"]][:_COMPONENTS]
        elif row["kind"] == "number" or (row["kind"] == "category" and row["value"] is not None):
            shown.append(row)
    return [Trait(feature_label(r), r["value"], r["difference"], r["mean"]) for r in shown]
