"""Explained runs: profile, exemplars, names and rules of clusters, as a run's stages left them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.explanations import Description, Explanation
from pipeline.errors import InputError
from pipeline.insight.profiles.files import as_it_is_now
from pipeline.registry.clusters import keys_as_json, living
from pipeline.registry.entries import latest_entry
from pipeline.runs import RunFolder
from pipeline.schema import DESCRIBED_SCHEMA, EXEMPLAR_KINDS, PROFILE_SCHEMA, RULE_SCHEMA
from pipeline.storage import Store


@dataclass(frozen=True)
class ExplainedRun:
    """A run whose clusters are profiled and described."""

    lake: Store
    run_id: str
    explanation: Explanation
    description: Description
    names: dict[int, str]  # name of each cluster that has one: today's where the registry has it
    clusters: dict[int, dict[str, Any]]  # rows of ``DESCRIBED_SCHEMA`` by cluster id

    def named(self, cluster_id: int) -> str:
        """Id and name of a cluster."""
        name = self.names.get(cluster_id)
        return f"{cluster_id} {name}" if name else str(cluster_id)

    @property
    def timestamps(self) -> dict[str, str]:
        """Arrow types of the timestamp columns."""
        return timestamp_columns(self.explanation)

    def profile(self, cluster_ids: Collection[int]) -> list[dict[str, Any]]:
        """Rows of the profile of some clusters, by cluster and rank.

        Raises:
            InputError: A cluster does not exist, or the profile is gone.
        """
        known = sorted(self.clusters)
        for cluster_id in cluster_ids:
            if cluster_id not in self.clusters:
                some = ", ".join(map(str, known[:20])) + (", …" if len(known) > 20 else "")
                raise InputError(f"run {self.run_id} has no cluster {cluster_id}; it has {some}")
        path = self.explanation.profile.path
        table = _read(self.lake, path, PROFILE_SCHEMA, of_clusters(cluster_ids))
        table = table.sort_by([("cluster_id", "ascending"), ("rank", "ascending")])
        return list(table.to_pylist())

    def rules(self, cluster_ids: Collection[int] | None = None) -> list[dict[str, Any]]:
        """Rules of some clusters, or of all; never to be shown without their fidelity."""
        if self.description.rules is None:
            return []
        rows = _read(self.lake, self.description.rules.path, RULE_SCHEMA).to_pylist()
        return [r for r in rows if cluster_ids is None or r["cluster_id"] in cluster_ids]

    def exemplars(self, cluster_ids: Collection[int]) -> list[dict[str, Any]]:
        """Exemplars of some clusters, by cluster, kind and rank; ``keys``: the key by column."""
        table = read_exemplars(self, cluster_ids)
        names = key_names(table.schema)
        keys = [json.loads(text) for text in keys_as_json(table.select(names))]
        rows = table.drop_columns([*names, "features"]).to_pylist()
        rows = [row | {"keys": key} for row, key in zip(rows, keys, strict=True)]
        order = {kind: place for place, kind in enumerate(EXEMPLAR_KINDS)}
        return sorted(rows, key=lambda r: (r["cluster_id"], order.get(r["kind"], 9), r["rank"]))


def explained_run(lake: Store, run_id: str) -> ExplainedRun:
    """Read what explains the clusters of a run.

    Raises:
        InputError: The run does not exist, has not come that far, or another version explained it.
    """
    run = RunFolder(lake, run_id)
    explanation = run.artifact("explain", Explanation)
    description = run.artifact("describe", Description)
    rows = _read(lake, description.clusters.path, DESCRIBED_SCHEMA).to_pylist()
    clusters = {row["cluster_id"]: row for row in rows}
    names = {i: row["name"] for i, row in clusters.items() if row["name"] is not None}
    names |= {i: name for i, name in registered_names(lake).items() if i in clusters}
    return ExplainedRun(lake, run_id, explanation, description, names, clusters)


def registered_names(lake: Store) -> dict[int, str]:
    """Names of living clusters in the registry; none where there is no registry."""
    if (entry := latest_entry(lake)) is None:
        return {}
    table = living(lake.read_table(entry.clusters.path, ["cluster_id", "name", "died"]))
    named = table.filter(table["name"].is_valid())
    return dict(zip(named["cluster_id"].to_pylist(), named["name"].to_pylist(), strict=True))


def timestamp_columns(explanation: Explanation) -> dict[str, str]:
    """Arrow types of the profiled timestamp columns, whose statistics are seconds since 1970."""
    return {
        column.name: column.type
        for column in explanation.columns
        if column.kind == "number" and column.type.startswith(("timestamp", "date"))
    }


def feature_label(row: Mapping[str, Any]) -> str:
    """Column of a profile's row, with the index of a component."""
    at = row.get("component")
    return str(row["feature"]) if at is None else f"{row['feature']}[{at}]"


def feature_text(row: Mapping[str, Any]) -> str:
    """Column of a profile's row, with a component's index or a category's value."""
    feature = feature_label(row)
    if row.get("kind") == "category" and row["value"] is None:
        return f"{feature} = any other"
    return feature if row["value"] is None else f"{feature} = {row['value']}"


def key_text(keys: Mapping[str, Any]) -> str:
    """A row's key; of one column its value alone."""
    if len(keys) == 1:
        return str(next(iter(keys.values())))
    return ", ".join(f"{name}={value}" for name, value in keys.items())


def vectors_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order the profile of one cluster by rank, each vector followed by its components."""
    vector_ranks = {row["feature"]: row["rank"] for row in rows if row["kind"] == "vector"}

    def order(row: dict[str, Any]) -> tuple[int, int]:
        if row["kind"] == "component":
            return vector_ranks[row["feature"]], row["rank"]
        return row["rank"], 0

    return sorted(rows, key=order)


def read_exemplars(run: ExplainedRun, cluster_ids: Collection[int]) -> pa.Table:
    """The exemplars of some clusters, with their features.

    Raises:
        InputError: The table is gone.
    """
    path = as_it_is_now(run.lake, run.explanation.exemplars.path)
    return _read(run.lake, path, None, of_clusters(cluster_ids))


def key_names(exemplars: pa.Schema) -> list[str]:
    """The key columns among those of ``exemplar_schema``: between rank and cluster_id_2."""
    names: list[str] = exemplars.names
    return names[names.index("rank") + 1 : names.index("cluster_id_2")]


def of_clusters(cluster_ids: Collection[int]) -> pc.Expression:
    """Condition of the rows of some clusters."""
    return pc.field("cluster_id").isin(pa.array(sorted(cluster_ids), pa.int32()))


def _read(
    lake: Store, path: str, schema: pa.Schema | None, rows: pc.Expression | None = None
) -> pa.Table:
    try:
        return lake.read_table(path, schema.names if schema else None, rows)
    except FileNotFoundError:
        raise InputError(f"{lake.locate(path)} is gone: deleted by dec gc or by hand") from None
    except (pa.ArrowInvalid, KeyError):
        raise InputError(
            f"{lake.locate(path)} is damaged, or of a version that this one cannot read; the same "
            "run id again makes it anew"
        ) from None
