"""What a run left that explains its clusters: profile, exemplars, names, rules, contrasts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.records import Artifact, StoredFile
from pipeline.clustering.surrogate import Asked, Surrogate, imitate
from pipeline.engine import Marker
from pipeline.errors import InputError
from pipeline.insight.profiles import read_exemplars as exemplars_now
from pipeline.insight.surrogates import as_asked, labelled_sample
from pipeline.registry.clusters import keys_as_json, living
from pipeline.registry.entries import latest_entry, sample_without_forgotten
from pipeline.schema import EXEMPLAR_KINDS, PROFILE_SCHEMA
from pipeline.storage import Store, open_input, why

A = TypeVar("A", bound=Artifact)
# Conditions that part two clusters; a few are what people remember.
_CONTRAST_DEPTH = 3


@dataclass(frozen=True)
class Explained:
    """A run that is explained.

    Attributes:
        lake: The output folder.
        run_id: The run.
        explanation: Its profile and exemplars.
        description: Its names and rules.
        names: Of its clusters, today's where they are in the registry.
        clusters: Rows of ``DESCRIBED_SCHEMA`` by cluster id.
    """

    lake: Store
    run_id: str
    explanation: Explanation
    description: Description
    names: dict[int, str]
    clusters: dict[int, dict[str, Any]]

    def named(self, cluster_id: int) -> str:
        """Id and name."""
        name = self.names.get(cluster_id)
        return f"{cluster_id} {name}" if name else str(cluster_id)


def explained(lake: Store, run_id: str) -> Explained:
    """What explains the clusters of a run.

    Raises:
        InputError: There is no such run, it has not come that far, or it is of a version that did
            not explain.
    """
    explanation = stage_artifact(lake, run_id, "explain", Explanation)
    description = stage_artifact(lake, run_id, "describe", Description)
    clusters = {row["cluster_id"]: row for row in _table(lake, description.clusters).to_pylist()}
    names = {i: row["name"] for i, row in clusters.items() if row["name"] is not None}
    if description.ids is not None and (entry := latest_entry(lake)) is not None:
        alive = living(lake.read_table(entry.clusters.path, ["cluster_id", "name", "died"]))
        now = zip(alive["cluster_id"].to_pylist(), alive["name"].to_pylist(), strict=True)
        names |= {i: name for i, name in now if name is not None and i in clusters}
    return Explained(lake, run_id, explanation, description, names, clusters)


def stage_artifact(lake: Store, run_id: str, stage: str, kind: type[A]) -> A:
    """What a stage of a run left.

    Raises:
        InputError: There is no such run, it did not come so far, or another version wrote it.
    """
    if not lake.exists(f"runs/{run_id}/run.json"):
        raise InputError(
            f"run {run_id} is not there; give one from {lake.locate('runs')}, for example the "
            "run id that `dec run` and `dec nightly` show"
        )
    path = f"runs/{run_id}/stages/{stage}/done.json"
    try:
        return kind.model_validate(Marker.model_validate(lake.read_json(path)).artifact)
    except FileNotFoundError:
        raise InputError(
            f"run {run_id} is not explained: {lake.locate(path)} is not there. It has not come "
            "that far, or an earlier version made it; the same run id again adds what is missing"
        ) from None
    except (ValueError, ValidationError):  # of JSON and of pydantic
        raise InputError(
            f"run {run_id}: {lake.locate(path)} is not whole, or of a version that this one cannot "
            "read; the same run id again makes it anew"
        ) from None


def profile_of(found: Explained, cluster_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the profile about some clusters, strongest first; a batch at a time.

    Raises:
        InputError: One of them is not there, or the profile is gone.
    """
    known = sorted(found.clusters)
    for cluster_id in cluster_ids:
        if cluster_id not in found.clusters:
            some = ", ".join(map(str, known[:20])) + (", …" if len(known) > 20 else "")
            raise InputError(f"run {found.run_id} has no cluster {cluster_id}; it has {some}")
    wanted = pa.array(list(cluster_ids), pa.int32())
    kept = [PROFILE_SCHEMA.empty_table()]
    try:
        with open_input(found.lake.locate(found.explanation.profile.path)) as source:
            for batch in pq.ParquetFile(source).iter_batches():
                mask = pc.is_in(batch.column("cluster_id"), value_set=wanted)
                rows = pa.table(batch).filter(mask)
                for field in PROFILE_SCHEMA:
                    if field.name not in rows.column_names:  # of an earlier version
                        rows = rows.append_column(field, pa.nulls(len(rows), field.type))
                kept.append(rows.select(PROFILE_SCHEMA.names).cast(PROFILE_SCHEMA))
    except FileNotFoundError:
        raise _gone(found.lake, found.explanation.profile) from None
    rows = pa.concat_tables(kept).sort_by([("cluster_id", "ascending"), ("rank", "ascending")])
    return list(rows.to_pylist())


def strongest_of(rows: Sequence[dict[str, Any]], cluster_id: int) -> list[dict[str, Any]]:
    """What a cluster is about: its features by rank, a vector followed by its components."""
    own = [row for row in rows if row["cluster_id"] == cluster_id]
    found: list[dict[str, Any]] = []
    for row in own:
        if row["kind"] != "component":
            found.append(row)
        if row["kind"] == "vector":
            parts = (r for r in own if r["kind"] == "component" and r["feature"] == row["feature"])
            found += parts
    return found


def rules_of(found: Explained, cluster_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Rules of the tree about some clusters, or all of them; never to be shown without fidelity."""
    if found.description.rules is None:
        return []
    rows = _table(found.lake, found.description.rules).to_pylist()
    return [r for r in rows if cluster_ids is None or r["cluster_id"] in cluster_ids]


def exemplars_of(found: Explained, cluster_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Exemplars of some clusters, by cluster, kind and rank; ``keys`` has their keys by column."""
    table = read_exemplars(found, cluster_ids)
    keys = [json.loads(text) for text in keys_as_json(table.select(key_names(table.schema)))]
    rows = table.drop_columns([*key_names(table.schema), "features"]).to_pylist()
    rows = [row | {"keys": key} for row, key in zip(rows, keys, strict=True)]
    order = {kind: place for place, kind in enumerate(EXEMPLAR_KINDS)}
    return sorted(rows, key=lambda r: (r["cluster_id"], order.get(r["kind"], 9), r["rank"]))


def read_exemplars(found: Explained, cluster_ids: Sequence[int]) -> pa.Table:
    """The exemplars of some clusters, with their features."""
    try:
        table = exemplars_now(found.lake, found.explanation)
    except FileNotFoundError:
        raise _gone(found.lake, found.explanation.exemplars) from None
    wanted = pa.array(list(cluster_ids), pa.int32())
    return table.filter(pc.is_in(table["cluster_id"], value_set=wanted))


def key_names(exemplars: pa.Schema) -> list[str]:
    """The key columns among those of ``exemplar_schema``: between rank and cluster_id_2."""
    names: list[str] = exemplars.names
    return names[names.index("rank") + 1 : names.index("cluster_id_2")]


# ------------------------------------------------------------------------------------- contrasts


@dataclass(frozen=True)
class Apart:
    """How two clusters differ in one feature.

    Attributes:
        feature: The user's column, with its place where it is a component.
        value: The category, where the column has some.
        mean: Of the one cluster, in the user's units.
        other_mean: Of the other.
        difference: Of the means, in pooled standard deviations of the two; None: neither has any
            spread, and they differ for certain.
    """

    feature: str
    value: str | None
    mean: float
    other_mean: float
    difference: float | None


def contrast(rows: Sequence[dict[str, Any]], one: int, other: int) -> list[Apart]:
    """The features in which two clusters differ, most first.

    Args:
        rows: Of the profile, about both.
        one: A cluster.
        other: Another one.
    """
    by_key: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = {one: {}, other: {}}
    for row in rows:
        key = (row["feature"], row["component"], row["value"])
        if row["cluster_id"] in by_key and row["kind"] != "vector":
            by_key[row["cluster_id"]][key] = row
    vectors = {
        (row["cluster_id"], row["feature"]): row["mean_vector"]
        for row in rows
        if row["mean_vector"] is not None
    }
    found = []
    for key in {**by_key[one], **by_key[other]}:
        rows_2 = [by_key[cluster].get(key) for cluster in (one, other)]
        mean, other_mean = (
            row["mean"] if row else _component(vectors.get((cluster, key[0])), key)
            for row, cluster in zip(rows_2, (one, other), strict=True)
        )
        if mean is None or other_mean is None:
            continue
        spread = pooled([row for row in rows_2 if row])
        if spread is None and mean == other_mean:
            continue
        apart = (mean - other_mean) / spread if spread else None
        feature = key[0] if key[1] is None else f"{key[0]}[{key[1]}]"
        found.append(Apart(feature, key[2], mean, other_mean, apart))
    return sorted(found, key=lambda a: -(math.inf if a.difference is None else abs(a.difference)))


def pooled(rows: Sequence[dict[str, Any]]) -> float | None:
    """Pooled standard deviation of a feature in some clusters; None without any spread."""
    known = [(row["rows"], row["std"]) for row in rows if row["std"] is not None]
    total = sum(n for n, _ in known)
    variance = sum(n * std**2 for n, std in known) / total if total else 0.0
    return math.sqrt(variance) or None


def tell_apart(found: Explained, one: int, other: int) -> tuple[Surrogate | None, list[Asked]]:
    """A small tree of the sample's rows in two clusters alone, and what it asks about.

    No tree where there are too few rows.

    Raises:
        InputError: The sample or the model is gone.
    """
    description = found.description
    try:
        x_NF, label_N = labelled_sample(
            found.lake,
            description.model,
            description.features,
            sample_without_forgotten(found.lake, description.sample),
            description.ids,
            clusters=(one, other),
        )
    except (FileNotFoundError, pa.ArrowException, ValueError) as error:
        raise InputError(
            f"run {found.run_id}: sample or model {description.model.model_id} is gone or "
            f"damaged: {why(error)}"
        ) from None
    x_NQ, asked = as_asked(found.lake, description.model, description.features, x_NF)
    return imitate(x_NQ, label_N, depth=_CONTRAST_DEPTH, seed=0), asked


def _component(vector: Sequence[float] | None, key: tuple[Any, ...]) -> float | None:
    return None if vector is None or key[1] is None else vector[key[1]]


def _table(lake: Store, file: StoredFile) -> pa.Table:
    try:
        return lake.read_table(file.path)
    except FileNotFoundError:
        raise _gone(lake, file) from None


def _gone(lake: Store, file: StoredFile) -> InputError:
    return InputError(f"{lake.locate(file.path)} is gone, by dec gc or by hand")
