"""``dec locate``: the cluster of one row, and the evidence for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.arguments import checked_run_id
from jobs.commands.explain import with_times
from jobs.session import configured
from jobs.tables import facts_table, table
from pipeline.clustering.surrogate import point_in_time
from pipeline.errors import ConfigError, InputError
from pipeline.insight.explained_runs import ExplainedRun, explained_run, key_text
from pipeline.operations.locating import (
    MOST_ROWS,
    Evidence,
    Near,
    asked_key,
    evidence,
    find_rows,
    key_schema,
    nearest_exemplars,
    parts_of_run,
    raw_rows,
    why_none_near,
)
from pipeline.registry.clusters import keys_as_json
from pipeline.storage import Store

_LISTED_FEATURES = 10
_NEAREST = 5
_SHOWN = (
    *("cluster_id", "confidence", "cluster_id_2", "confidence_2", "distance", "is_outlier"),
    *("model_id", "run_id", "ds"),
)


@dataclasses.dataclass(frozen=True)
class _Located:
    """One row and the evidence for its cluster."""

    keys: dict[str, Any]
    row: dict[str, Any]
    evidence: list[Evidence]
    near: list[Near]
    why_none_near: str
    why_no_features: str


def locate(
    config_path: str, overrides: Sequence[str], run_id: str, keys: Sequence[str], *, as_json: bool
) -> None:
    """Find the rows of a run that have a key, and show the evidence for their clusters."""
    if not keys:
        raise ConfigError("--key is missing; give column=value of each key column")
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    files = parts_of_run(lake, run_id)
    key = asked_key(keys, schema := key_schema(lake, files))
    found, more = find_rows(lake, files, key)
    if not len(found):
        raise InputError(
            f"run {run_id} has no row with key {' '.join(keys)}; its key columns are "
            f"{', '.join(schema.names)}, and values must match exactly"
        )
    run = explained_run(lake, run_id)
    texts = keys_as_json(found.select(schema.names))
    raw = raw_rows(lake, run_id, found)
    rows = found.select(list(_SHOWN)).to_pylist()
    located = [
        _located(run, json.loads(text), row, x_F)
        for text, row, x_F in zip(texts, rows, raw, strict=True)
    ]
    if as_json:
        times = run.timestamps
        shown = [dataclasses.asdict(one) for one in located]
        for one, row in zip(located, shown, strict=True):
            for feature, found_evidence in zip(row["evidence"], one.evidence, strict=True):
                feature["weight"] = found_evidence.weight
            names = ("value", "mean", "other_mean")
            row["evidence"] = [with_times(f, times, *names) for f in row["evidence"]]
            row["name"] = run.names.get(one.row["cluster_id"])
            row["name_2"] = run.names.get(one.row["cluster_id_2"])
        print(json.dumps({"run_id": run_id, "rows": shown, "more": more}, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    for one in located:
        _show(run, one, console)
    if more:
        console.print(f"more than {MOST_ROWS} rows have this key; these are the first")


def _located(
    run: ExplainedRun, keys: dict[str, Any], row: dict[str, Any], x_F: NDArray[np.float64] | str
) -> _Located:
    # An outlier has no cluster to compare with the runner-up.
    pair = [i for i in (row["cluster_id"], row["cluster_id_2"]) if i in run.clusters]
    if isinstance(x_F, str):
        return _Located(keys, row, [], [], "the raw row could not be read", x_F)
    weighed = evidence(run, run.profile(pair), x_F, *pair) if len(pair) == 2 else []
    near = nearest_exemplars(run, x_F, pair, _NEAREST)
    return _Located(keys, row, weighed, near, "" if near else why_none_near(run, pair), "")


def _show(run: ExplainedRun, one: _Located, console: Console) -> None:
    row = one.row
    facts = facts_table()
    where = "none: an outlier" if row["is_outlier"] else run.named(row["cluster_id"])
    for name, value in (
        ("key", key_text(one.keys)),
        ("cluster", where),
        ("confidence", f"{row['confidence']:.3f}, at distance {row['distance']:.4g}"),
        ("runner-up", f"{run.named(row['cluster_id_2'])}, confidence {row['confidence_2']:.3f}"),
        ("labelled", f"by run {row['run_id']} of ds {row['ds']}, model {row['model_id']}"),
    ):
        facts.add_row(name, Text(value))
    console.print(facts)
    if one.why_no_features:
        console.print(
            f"No evidence, because the raw row could not be read: {one.why_no_features}",
            markup=False,
        )
    if one.evidence:
        console.print(_evidence(run, one))
    if one.near:
        console.print(_near(run, one.near))
    elif not one.why_no_features:
        console.print(f"No nearest exemplars: {one.why_none_near}.", markup=False)


def _evidence(run: ExplainedRun, one: _Located) -> Table:
    mine, other = one.row["cluster_id"], one.row["cluster_id_2"]
    means = [name for i in (mine, other) for name in (f"mean in {i}", "std away")]
    numbers = ("value", *means, "speaks for")
    listed = table("feature", *numbers, numbers=numbers)
    times = run.timestamps
    for feature in one.evidence[:_LISTED_FEATURES]:
        shown = point_in_time if feature.feature in times else "{:.4g}".format
        listed.add_row(
            Text(feature.feature),
            shown(feature.value),
            shown(feature.mean),
            f"{feature.away:.1f}",
            shown(feature.other_mean),
            f"{feature.other_away:.1f}",
            str(mine if feature.weight >= 0 else other),
        )
    return listed


def _near(run: ExplainedRun, near: Sequence[Near]) -> Table:
    listed = table("nearest exemplars", "cluster", "kind", "distance", numbers=("distance",))
    for one in near:
        key, cluster = Text(key_text(one.keys)), Text(run.named(one.cluster_id))
        listed.add_row(key, cluster, one.kind, f"{one.distance:.4g}")
    return listed
