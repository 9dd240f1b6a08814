"""Clusters in the report: sizes, names, profiles, rules, and exemplars."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.surrogate import point_in_time
from pipeline.insight.explained_runs import (
    feature_text,
    key_text,
    of_clusters,
    registered_names,
    timestamp_columns,
)
from pipeline.report.pictures import data_uri, drawable, pixels
from pipeline.report.run_files import RunFiles
from pipeline.schema import SHARD_KEY_COLUMNS, exemplar_key

log = logging.getLogger(__name__)

# Clusters with a card; for more there are the tables.
CARDS = 24
# Bars of the chart of sizes, and rows of the table behind it.
BARS = 40
LISTED = 200
# Rows and columns of the heat map.
HEAT_CLUSTERS = 40
HEAT_FEATURES = 24
# Strongest features on a card.
FEATURES = 5
_MOST_TEXT = 120  # characters of a key, a column or a value: 5,000 of them are on a page
_EXEMPLAR_KINDS = {
    "central": "closest to the centre",
    "typical": "most confident",
    "ambiguous": "most ambiguous",
}
_PROFILE_COLUMNS = [
    *("cluster_id", "rows", "feature", "kind", "component", "value", "mean", "std"),
    *("p05", "p50", "p95", "null_share", "difference", "rank"),
]


@dataclass(frozen=True)
class Cluster:
    """A cluster, its share of all published rows, its name, which may be empty, and its firmness.

    Firmness is how far the starts of merged cells agreed on it; None: it came otherwise.
    """

    id: int
    rows: int
    share: float
    name: str
    firmness: float | None = None

    @property
    def title(self) -> str:
        """Heading of the cluster."""
        return f"{self.id} · {self.name}" if self.name else f"Cluster {self.id}"


@dataclass(frozen=True)
class Card:
    """Details of a cluster."""

    cluster: Cluster
    # Strongest features: text, difference in standard deviations, and detail.
    features: list[dict[str, Any]]
    picture: str  # mean row as an image; empty where rows are not images
    rule: str  # rule of the surrogate tree with most rows; empty without one
    rule_note: str  # precision of that rule; a rule is never shown without it
    exemplars: list[dict[str, Any]]  # exemplars of each kind: the kind, its meaning, and the rows


class Clusters:
    """Clusters of a run."""

    def __init__(self, run: RunFiles) -> None:
        self._run = run
        self.explanation = run.found("explain", Explanation)
        self.description = run.found("describe", Description)
        self._times = timestamp_columns(self.explanation) if self.explanation else {}
        self._profile_file = self.explanation.profile if self.explanation else None
        summary, names = run.summary, self._names()
        total = max(1, summary.rows_out)
        firmness = dict(zip(summary.cluster_ids, summary.firmness, strict=False))
        # Every cluster, the largest first.
        self.all = [
            Cluster(cluster, count, count / total, names.get(cluster, ""), firmness.get(cluster))
            for cluster, count in zip(summary.cluster_ids, summary.cluster_rows, strict=True)
        ]
        self.all.sort(key=lambda cluster: (-cluster.rows, cluster.id))
        self.cards = self._made_cards(self.used[:CARDS])

    @property
    def used(self) -> list[Cluster]:
        """Clusters with rows."""
        return [cluster for cluster in self.all if cluster.rows]

    def key_columns(self) -> list[str]:
        """Names of the key columns."""
        manifest = self._run.manifest
        return list((manifest.keys if manifest else ()) or SHARD_KEY_COLUMNS)

    def heat(self) -> dict[str, Any]:
        """Values of the heat map: largest clusters by features with the largest differences."""
        ids = [cluster.id for cluster in self.used[:HEAT_CLUSTERS]]
        strongest: dict[str, float] = defaultdict(float)
        cells: dict[tuple[int, str], float] = {}
        for cluster, rows in self._profile(ids).items():
            for row in rows:
                if np.isfinite(row["difference"]):
                    name = short(feature_text(row))
                    strongest[name] = max(strongest[name], abs(row["difference"]))
                    cells[cluster, name] = round(row["difference"], 3)
        names = sorted(strongest, key=lambda name: (-strongest[name], name))[:HEAT_FEATURES]
        if len(names) < 2:
            return {}
        return {
            "features": names,
            "all_features": len(strongest),
            "clusters": ids,
            "sparse": any((c, name) not in cells for c in ids for name in names),
            "cells": [[cells.get((cluster, name)) for name in names] for cluster in ids],
        }

    def hover(self, ids: Collection[int]) -> dict[int, list[str]]:
        """The strongest features of clusters, a line of text each."""
        return {
            cluster: [
                f"{feature['text']}: {feature['detail']} ({feature['sd']})"
                for feature in map(self._feature, rows[:3])
            ]
            for cluster, rows in self._profile(ids).items()
        }

    def _names(self) -> dict[int, str]:
        table = self._run.table(self.description.clusters) if self.description else None
        rows = table.select(["cluster_id", "name"]).to_pylist() if table else []
        names = {row["cluster_id"]: row["name"] for row in rows if row["name"]}
        try:  # names by people come first
            return names | registered_names(self._run.lake)
        except Exception:
            log.warning("names of clusters cannot be read", exc_info=True)
        return names

    def _made_cards(self, clusters: Sequence[Cluster]) -> list[Card]:
        ids = [cluster.id for cluster in clusters]
        profile, pictures = self._profile(ids), self._pictures(ids)
        rules, exemplars = self._rules(), self._exemplars(ids)
        return [
            Card(
                cluster,
                [self._feature(row) for row in profile.get(cluster.id, [])[:FEATURES]],
                pictures.get(cluster.id, ""),
                *rules.get(cluster.id, ("", "")),
                exemplars.get(cluster.id, []),
            )
            for cluster in clusters
        ]

    def _feature(self, row: dict[str, Any]) -> dict[str, str]:
        return {
            "text": short(feature_text(row)),
            "sd": f"{row['difference']:+.1f} sd".replace("-", "−"),
            "detail": feature_detail(row, self._times),
        }

    def _rules(self) -> dict[int, tuple[str, str]]:
        """The rule of each cluster with most rows, and its precision."""
        table = self._run.table(self.description.rules) if self.description else None
        by_cluster = defaultdict(list)
        for row in table.sort_by([("rows", "descending")]).to_pylist() if table else []:
            by_cluster[row["cluster_id"]].append(row)
        found = {}
        for cluster, (row, *others) in by_cluster.items():
            note = "no held-out row matches it"
            if row["precision"] is not None:
                note = f"correct for {row['correct']:,} of {row['held_out']:,} held-out rows"
            if others:
                note += f"; {len(others)} more of its rules in dec explain"
            found[cluster] = row["rule"], note
        return found

    def _profile(self, ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
        """Rows of cluster_profile of some clusters, largest difference first."""
        table = self._rows_of(self._profile_file, ids, _PROFILE_COLUMNS)
        if table is None:
            return {}
        # A vector's own row says only how far it is: its components say in what.
        components = pc.any(pc.equal(table["kind"], "component")).as_py()
        kinds = ["number", "category", "component" if components else "vector"]
        table = table.filter(pc.is_in(table["kind"], pa.array(kinds)))
        strength = pc.abs(table["difference"])
        order = [("cluster_id", "ascending"), ("dec_strength", "descending")]
        found = defaultdict(list)
        for row in table.append_column("dec_strength", strength).sort_by(order).to_pylist():
            found[row["cluster_id"]].append(row)
        return found

    def _rows_of(
        self, file: StoredFile | None, ids: Collection[int], columns: Sequence[str]
    ) -> pa.Table | None:
        return self._run.table(file, columns, of_clusters(ids)) if ids else None

    def _pictures(self, ids: Collection[int]) -> dict[int, str]:
        """Mean rows of clusters as images."""
        shape, width = self._shape()
        if not drawable(shape, width):
            return {}
        assert shape is not None
        table = self._rows_of(self._profile_file, ids, ["cluster_id", "mean_vector"])
        rows = table.filter(table["mean_vector"].is_valid()).to_pylist() if table else []
        means = {r["cluster_id"]: r["mean_vector"] for r in rows if len(r["mean_vector"]) == width}
        if not means:
            return {}
        drawn = pixels(np.array(list(means.values()), np.float64))
        return {
            cluster: data_uri(picture.reshape(shape))
            for cluster, picture in zip(means, drawn, strict=True)
        }

    def _exemplars(self, ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
        keys = [exemplar_key(name) for name in self.key_columns()]
        file = self.explanation.exemplars if self.explanation else None
        columns = ["cluster_id", "kind", "rank", "confidence", "cluster_id_2", *keys, "features"]
        table = self._rows_of(file, ids, columns)
        if table is None:
            return {}
        rows = table.sort_by([("cluster_id", "ascending"), ("rank", "ascending")]).to_pylist()
        shape, width = self._shape()
        images = [
            row for row in rows if drawable(shape, width) and len(row["features"] or ()) == width
        ]
        if images and shape:
            drawn = pixels(np.array([row["features"] for row in images], np.float64))
            for row, picture in zip(images, drawn, strict=True):
                row["picture"] = data_uri(picture.reshape(shape))
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for kind, meaning in _EXEMPLAR_KINDS.items():
            of_kind = defaultdict(list)
            for row in rows:
                if row["kind"] == kind:
                    of_kind[row["cluster_id"]].append(
                        {
                            "key": short(key_text({name: row[name] for name in keys})),
                            "picture": row.get("picture", ""),
                            "confidence": row["confidence"],
                            "runner_up": row["cluster_id_2"],
                        }
                    )
            for cluster, shown in of_kind.items():
                found[cluster].append({"kind": kind, "meaning": meaning, "rows": shown})
        return found

    def _shape(self) -> tuple[list[int] | None, int]:
        config, manifest = self._run.config, self._run.manifest
        width = manifest.width if manifest else 0
        return (config.source.image_shape if config else None), width


def short(text: str) -> str:
    """A user's text, cut where it would make a page of megabytes."""
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def feature_detail(row: dict[str, Any], times: Collection[str] = ()) -> str:
    """Statistics of a profile's row in the user's units; ``times``: the timestamp columns."""
    mean = row["mean"]
    if row["kind"] == "category":
        return "" if mean is None else f"{mean:.0%} of the rows"
    if mean is None:
        return "distance of the mean vector from that of all other rows"
    figure = point_in_time if row["feature"] in times else number
    text = f"mean {figure(mean)}"
    if row["p05"] is not None and row["p95"] is not None:
        text += f", 5–95 %: {figure(row['p05'])} to {figure(row['p95'])}"
    elif row["std"] is not None and figure is number:
        text += f" ± {number(row['std'])}"
    return text + (f", {row['null_share']:.0%} missing" if row["null_share"] else "")


def number(value: float) -> str:
    """A value in few digits."""
    text = f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")
