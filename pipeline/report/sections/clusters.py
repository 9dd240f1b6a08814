"""What is in the clusters: sizes, names, profiles, rules, and rows that stand for them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.records import StoredFile
from pipeline.artifacts.summaries import NightSummary
from pipeline.clustering.surrogate import point_in_time
from pipeline.registry.entries import latest_entry
from pipeline.report.explained import Explained, explained
from pipeline.report.pictures import data_uri, drawable, pixels
from pipeline.report.reading import RunFiles
from pipeline.schema import SHARD_KEY_COLUMNS, exemplar_key
from pipeline.storage import open_input

log = logging.getLogger(__name__)

# Clusters with a card of their own; more are a catalogue that nobody reads, see the tables.
CARDS = 24
# Bars of the chart of sizes, and rows of the table behind it.
BARS = 40
LISTED = 200
# Rows and columns of the heat map.
HEAT_CLUSTERS = 40
HEAT_FEATURES = 24
# Strongest features that a card or a hover shows.
FEATURES = 5
_MOST_TEXT = 120  # characters of a key, a column or a value: 5,000 of them are on a page
_EXEMPLAR_KINDS = {
    "central": "nearest to the centre",
    "typical": "most confident",
    "ambiguous": "least decided",
}
_PROFILE_COLUMNS = [
    *("cluster_id", "rows", "feature", "kind", "component", "value", "mean", "std"),
    *("p05", "p50", "p95", "null_share", "difference", "rank"),
]


@dataclass(frozen=True)
class Cluster:
    """A cluster.

    Attributes:
        id: Permanent on nights, a position otherwise.
        rows: How many it has.
        share: Of all published rows.
        name: Somebody's, or made of its strongest features; may be empty.
    """

    id: int
    rows: int
    share: float
    name: str = ""

    @property
    def title(self) -> str:
        """What it is called on the page."""
        return f"{self.id} · {self.name}" if self.name else f"Cluster {self.id}"


@dataclass
class Card:
    """What there is to say of a cluster.

    Attributes:
        cluster: Which.
        features: The strongest: text, difference in standard deviations, and detail.
        picture: Its mean row as a picture; empty where rows are none.
        rule: Of the surrogate tree; empty without one.
        rule_note: How far it can be believed.
        exemplars: By kind: what kind means, and the rows.
    """

    cluster: Cluster
    features: list[dict[str, Any]] = field(default_factory=list)
    picture: str = ""
    rule: str = ""
    rule_note: str = ""
    exemplars: list[dict[str, Any]] = field(default_factory=list)


class Clusters:
    """All that a run says of its clusters.

    Attributes:
        all: Every cluster, the largest first.
        explained: What the stages explain and describe left.
    """

    def __init__(self, run: RunFiles) -> None:
        self._run = run
        self.explained: Explained = explained(run)
        summary = run.summary
        rows = summary.cluster_rows
        ids: Sequence[int] = range(len(rows))
        if isinstance(summary, NightSummary):
            ids = summary.cluster_ids
        names = self._names()
        total = max(1, summary.rows_out)
        found = [
            Cluster(cluster, count, count / total, names.get(cluster, ""))
            for cluster, count in zip(ids, rows, strict=True)
        ]
        self.all = sorted(found, key=lambda cluster: (-cluster.rows, cluster.id))
        self._cards = self._made()

    @property
    def used(self) -> list[Cluster]:
        """Those that have rows."""
        return [cluster for cluster in self.all if cluster.rows]

    @property
    def cards(self) -> list[Card]:
        """Of the largest."""
        return self._cards

    def heat(self) -> dict[str, Any]:
        """Differences of the largest clusters in the features that tell most."""
        ids = [cluster.id for cluster in self.used[:HEAT_CLUSTERS]]
        strongest: dict[str, float] = {}
        cells: dict[tuple[int, str], float] = {}
        for row in self._profile(ids):
            if row["difference"] is None or not np.isfinite(row["difference"]):
                continue
            name = feature_text(row)
            strongest[name] = max(strongest.get(name, 0.0), abs(row["difference"]))
            cells[row["cluster_id"], name] = round(row["difference"], 3)
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
        """The strongest features of clusters, as lines of text."""
        found: dict[int, list[str]] = {}
        for row in self._profile(ids, most=3):
            found.setdefault(row["cluster_id"], []).append(feature_line(row, self.explained.times))
        return found

    def _names(self) -> dict[int, str]:
        names = dict(self.explained.names)
        if not isinstance(self._run.summary, NightSummary):
            return names
        try:  # of people, who know better
            if entry := latest_entry(self._run.lake):
                table = self._run.lake.read_table(entry.clusters.path, ["cluster_id", "name"])
                names |= {
                    row["cluster_id"]: row["name"] for row in table.to_pylist() if row["name"]
                }
        except Exception:
            log.warning("names of clusters cannot be read", exc_info=True)
        return names

    def _made(self) -> list[Card]:
        cards = {cluster.id: Card(cluster) for cluster in self.used[:CARDS]}
        for row in self._profile(cards, most=FEATURES):
            cards[row["cluster_id"]].features.append(
                {
                    "text": feature_text(row),
                    "difference": row["difference"],
                    "detail": feature_detail(row, self.explained.times),
                }
            )
        for cluster, card in cards.items():
            if rule := self.explained.rules.get(cluster):
                card.rule, card.rule_note = rule.text, rule.note
                if rule.more:
                    card.rule_note += f"; {rule.more} more of its rules in dec explain"
        self._add_pictures(cards)
        self._add_exemplars(cards)
        return list(cards.values())

    def _profile(self, ids: Collection[int], most: int | None = None) -> Iterator[dict[str, Any]]:
        """Rows of cluster_profile, of these clusters, the strongest first.

        Components of a vector stand for it where it is all that there is.
        """
        table = self._rows_of(self.explained.profile, ids, _PROFILE_COLUMNS)
        if table is None:
            return
        components = pc.equal(table["kind"], "component")
        alone = pc.is_in(table["kind"], pa.array(["number", "category"]))
        # One vector says nothing but how far: its components say in what.
        table = table.filter(
            pc.or_(alone, components)
            if pc.any(components).as_py()
            else pc.or_(alone, pc.equal(table["kind"], "vector"))
        )
        difference = pc.fill_null(pc.abs(table["difference"]), -1.0)
        order = pc.sort_indices(
            table.append_column("dec_strength", difference),
            [("cluster_id", "ascending"), ("dec_strength", "descending")],
        )
        seen: dict[int, int] = {}
        for row in table.take(order).to_pylist():
            count = seen[row["cluster_id"]] = seen.get(row["cluster_id"], 0) + 1
            if most is None or count <= most:
                yield row

    def _rows_of(
        self, file: StoredFile | None, ids: Collection[int], columns: Sequence[str]
    ) -> pa.Table | None:
        """Some clusters' rows of a table, of which not more is ever in memory."""
        if file is None or not ids:
            return None
        wanted, kept = pa.array(sorted(ids), pa.int32()), []
        try:
            with open_input(self._run.lake.locate(self._run.as_left(file).path)) as source:
                parquet = pq.ParquetFile(source)
                names = [name for name in columns if name in parquet.schema_arrow.names]
                for batch in parquet.iter_batches(65_536, columns=names):
                    table = pa.Table.from_batches([batch])
                    kept.append(table.filter(pc.is_in(table["cluster_id"], wanted)))
        except (OSError, pa.ArrowInvalid):
            log.warning("%s cannot be read", file.path, exc_info=True)
            return None
        return pa.concat_tables(kept) if kept else None

    def _add_pictures(self, cards: dict[int, Card]) -> None:
        shape, width = self._shape()
        if not drawable(shape, width):
            return
        assert shape is not None
        columns = ["cluster_id", "kind", "mean_vector"]
        table = self._rows_of(self.explained.profile, cards, columns)
        if table is None or "mean_vector" not in table.column_names:
            return
        rows = table.filter(pc.is_valid(table["mean_vector"])).to_pylist()
        means = {row["cluster_id"]: row["mean_vector"] for row in rows}
        means = {cluster: mean for cluster, mean in means.items() if len(mean) == width}
        if not means:
            return
        values = np.array(list(means.values()))
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        for cluster, picture in zip(means, pixels(values, low, high), strict=True):
            cards[cluster].picture = data_uri(picture.reshape(shape))

    def _add_exemplars(self, cards: dict[int, Card]) -> None:
        keys = [exemplar_key(name) for name in self.key_columns()]
        columns = ["cluster_id", "kind", "rank", "confidence", "cluster_id_2", "distance"]
        table = self._rows_of(self.explained.exemplars, cards, [*columns, *keys, "features"])
        if table is None:
            return
        shape, width = self._shape()
        rows = table.sort_by([("cluster_id", "ascending"), ("rank", "ascending")]).to_pylist()
        drawn = [
            row["features"]
            for row in rows
            if drawable(shape, width) and row.get("features") and len(row["features"]) == width
        ]
        values = np.array(drawn) if drawn else np.zeros((1, 1))
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        found: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in rows:
            vector = row.get("features")
            picture = ""
            if shape and vector and drawable(shape, len(vector)) and len(vector) == width:
                picture = data_uri(pixels(np.array(vector), low, high).reshape(shape))
            found.setdefault((row["cluster_id"], row["kind"]), []).append(
                {
                    "key": key_text(row, keys),
                    "picture": picture,
                    "confidence": row["confidence"],
                    "runner_up": row["cluster_id_2"],
                }
            )
        for cluster, card in cards.items():
            card.exemplars = [
                {"kind": kind, "meaning": meaning, "rows": found[cluster, kind]}
                for kind, meaning in _EXEMPLAR_KINDS.items()
                if (cluster, kind) in found
            ]

    def key_columns(self) -> list[str]:
        """Names of the key columns."""
        manifest = self._run.manifest
        return list((manifest.keys if manifest else ()) or SHARD_KEY_COLUMNS)

    def _shape(self) -> tuple[list[int] | None, int]:
        config, manifest = self._run.config, self._run.manifest
        width = manifest.width if manifest else 0
        return (config.source.image_shape if config else None), width


def short(text: str) -> str:
    """A user's text, cut where it would make a page of megabytes."""
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def key_text(row: dict[str, Any], keys: Sequence[str]) -> str:
    """A row's key; of several columns each with its name."""
    named = [(key, row.get(key)) for key in keys if key in row]
    if len(named) == 1:
        return short(str(named[0][1]))
    return short(", ".join(f"{key} {value}" for key, value in named))


def feature_text(row: dict[str, Any]) -> str:
    """What a row of the profile is about: a column, a component of one, or a value in one."""
    if row["kind"] == "component" and row.get("component") is not None:
        return f"{row['feature']}[{row['component']}]"
    if row["kind"] == "category":
        return short(f"{row['feature']} = {'any other' if row['value'] is None else row['value']}")
    return short(str(row["feature"]))


def feature_detail(row: dict[str, Any], times: Collection[str] = ()) -> str:
    """Its figures in the user's units; those of columns of points in time as such."""
    mean = row.get("mean")
    if row["kind"] == "category":
        return "" if mean is None else f"{mean:.0%} of the rows"
    if mean is None:
        return "mean vector, from that of all others"
    if row["feature"] in times:
        span = [row[name] for name in ("p05", "p95") if row.get(name) is not None]
        told = f", 5–95 %: {' to '.join(map(point_in_time, span))}" if span else ""
        return f"mean {point_in_time(mean)}{told}"
    text = f"mean {number(mean)}"
    if row.get("p05") is not None and row.get("p95") is not None:
        text += f", 5–95 %: {number(row['p05'])} to {number(row['p95'])}"
    elif row.get("std") is not None:
        text += f" ± {number(row['std'])}"
    if row.get("null_share"):
        text += f", {row['null_share']:.0%} missing"
    return text


def feature_line(row: dict[str, Any], times: Collection[str] = ()) -> str:
    """All of it in one line."""
    difference = row["difference"]
    sign = "" if difference is None else f" ({difference:+.1f} sd)".replace("-", "−")
    return f"{feature_text(row)}: {feature_detail(row, times)}{sign}"


def number(value: float) -> str:
    """A value in few digits."""
    text = f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")
