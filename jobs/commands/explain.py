"""``dec explain``: what distinguishes each cluster, by which rules, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.arguments import checked_run_id
from jobs.session import configured
from jobs.tables import table
from pipeline.clustering.surrogate import iso_time, point_in_time
from pipeline.errors import ConfigError, InputError
from pipeline.insight.contrasts import Contrast, contrast, contrast_tree
from pipeline.insight.explained_runs import (
    ExplainedRun,
    explained_run,
    feature_text,
    key_text,
    vectors_first,
)
from pipeline.insight.rules import rules_table
from pipeline.insight.traits import cluster_sizes, strongest, traits_of
from pipeline.storage import Store

# Limits of what is printed; the JSON has everything.
_LISTED_CLUSTERS = 20
_LISTED_FEATURES = 10
_LISTED_RULES = 6
_LISTED_EXEMPLARS = 3  # of each kind
_NAMED_FEATURES = 3
_NOTICEABLE = 0.2  # standard deviations
_ORIGIN = ("ds", "run_id", "model_id")


def show_explanation(
    config_path: str,
    overrides: Sequence[str],
    run_id: str,
    *,
    cluster: int | None,
    versus: int | None,
    as_json: bool,
) -> None:
    """Explain a run's clusters, one of them, or the contrast of two."""
    if versus is not None and cluster is None:
        raise ConfigError("--versus compares with a cluster; give that one with --cluster")
    if versus is not None and versus == cluster:
        raise ConfigError(f"--cluster and --versus are both {cluster}; give two clusters")
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    run = explained_run(lake, run_id)
    console = Console(soft_wrap=True, highlight=False)
    if cluster is None:
        content = _show_all(run, console, as_json=as_json)
    elif versus is None:
        content = _show_one(run, cluster, console, as_json=as_json)
    else:
        content = _show_two(run, cluster, versus, console, as_json=as_json)
    if as_json:
        about = run.description
        names = ("fidelity", "baseline", "held_out_rows", "no_rules_reason")
        head = {"run_id": run_id, "model_id": about.model.model_id}
        head |= {name: getattr(about, name) for name in names}
        print(json.dumps(head | content, indent=2))


def fidelity_sentence(run: ExplainedRun) -> str:
    """How far the rules can be trusted."""
    about = run.description
    if about.fidelity is None or about.baseline is None:
        return f"No rules: {about.no_rules_reason}."
    features = sum(column.width for column in about.features)
    used = f"; it used {about.considered_features:,} of {features:,} features"
    return (
        f"Rules: a tree of depth {about.depth} that agrees with the model on {about.fidelity:.1%} "
        f"of {about.held_out_rows:,} held-out rows (the largest cluster alone: "
        f"{about.baseline:.1%})" + (used if features > about.considered_features else "") + "."
    )


# ------------------------------------------------------------------------------------ all clusters


def _show_all(run: ExplainedRun, console: Console, *, as_json: bool) -> dict[str, Any]:
    rows = strongest(run.lake, run.explanation.profile)
    traits, sizes = traits_of(rows), cluster_sizes(rows)
    order = sorted(run.clusters, key=lambda i: (-sizes.get(i, 0), i))
    if as_json:
        times, rules = run.timestamps, run.rules()
        content = [
            {
                "cluster_id": i,
                "name": run.names.get(i),
                "rows": sizes.get(i),
                "top_features": [
                    with_times(dataclasses.asdict(trait), times, "mean")
                    for trait in traits.get(i, ())
                ],
                "rules": _rules_json([r for r in rules if r["cluster_id"] == i], times),
                "precision": run.clusters[i]["precision"],
                "recall": run.clusters[i]["recall"],
            }
            for i in order
        ]
        return {"clusters": content}
    features = "differs from all other rows in (standard deviations)"
    columns = ("id", "name", "rows", "share", features, "recall of the rules")
    shown = table(*columns, numbers=("id", "rows", "share", "recall of the rules"))
    for i in order[:_LISTED_CLUSTERS]:
        words = ", ".join(
            f"{feature_text(vars(trait))} {trait.difference:+.1f}"
            for trait in traits.get(i, ())[:_NAMED_FEATURES]
            if abs(trait.difference) >= _NOTICEABLE
        )
        size, recall = sizes.get(i, 0), run.clusters[i]["recall"]
        shown.add_row(
            str(i),
            Text(run.names.get(i) or ""),
            f"{size:,}",
            f"{size / max(1, run.explanation.rows):.1%}",
            Text(words),
            "–" if recall is None else f"{recall:.0%}",
        )
    console.print(shown)
    if len(order) > _LISTED_CLUSTERS:
        console.print(f"the {_LISTED_CLUSTERS} largest of {len(order):,} clusters; --json has all")
    console.print(fidelity_sentence(run), markup=False)
    console.print(
        "Recall of the rules: share of a cluster's held-out rows that its rules find. For"
    )
    console.print("rules and exemplars: dec explain … --cluster ID", markup=False)
    return {}


# ------------------------------------------------------------------------------------- one cluster


def _show_one(
    run: ExplainedRun, cluster: int, console: Console, *, as_json: bool
) -> dict[str, Any]:
    profile, times = vectors_first(run.profile([cluster])), run.timestamps
    rules, exemplars = run.rules([cluster]), run.exemplars([cluster])
    described = run.clusters[cluster]
    precision, recall = described["precision"], described["recall"]
    if as_json:
        measures = ("mean", "min", "max", "p05", "p25", "p50", "p75", "p95")
        vectors = ("mean_vector", "difference_vector")
        return {
            "cluster_id": cluster,
            "name": run.names.get(cluster),
            "precision": precision,
            "recall": recall,
            "features": [
                _without(with_times(row, times, *measures), *vectors, *_ORIGIN) for row in profile
            ],
            "rules": _rules_json(rules, times),
            "exemplars": [_without(row, *_ORIGIN) for row in exemplars],
        }
    size = profile[0]["rows"] if profile else 0
    share = size / max(1, run.explanation.rows)
    console.print(f"cluster {run.named(cluster)}: {size:,} rows, {share:.1%}", markup=False)
    console.print(_profile(profile, times))
    if len(profile) > _LISTED_FEATURES:
        console.print(f"{_LISTED_FEATURES} of {len(profile):,} features; --json has all")
    if rules:
        console.print(_rules(rules, "of all rows"))
        shares = ["–" if value is None else f"{value:.1%}" for value in (precision, recall)]
        console.print(
            f"Precision of these rules {shares[0]}, recall {shares[1]} of the cluster's "
            f"{described['held_out']:,} held-out rows.",
            markup=False,
        )
    elif run.description.rules is not None:
        console.print("No rule predicts this cluster; --versus ID fits a tree to it and another.")
    console.print(fidelity_sentence(run), markup=False)
    if exemplars:
        console.print(_exemplars(exemplars))
    return {}


def _profile(rows: Sequence[Mapping[str, Any]], times: Mapping[str, str]) -> Table:
    numbers = ("difference", "mean", "std", "5 % … 95 %", "missing")
    shown = table("feature", *numbers, numbers=numbers)
    for row in rows[:_LISTED_FEATURES]:
        mean, low, high = (_figure(row, name, times) for name in ("mean", "p05", "p95"))
        std = row["std"]
        spread = "" if std is None or row["kind"] == "category" else f"{std:.4g}"
        if row["feature"] in times and std is not None:
            spread = f"{std / 86_400:.4g} days"
        shown.add_row(
            Text(feature_text(row)),
            f"{row['difference']:+.2f}",
            mean,
            spread,
            f"{low} … {high}" if low else "",
            f"{row['null_share']:.1%}" if row["null_share"] else "",
        )
    return shown


def with_times(row: Mapping[str, Any], times: Mapping[str, str], *names: str) -> dict[str, Any]:
    """A feature's JSON with these values of a timestamp column in ISO 8601."""
    kind = times.get(row["feature"])
    if kind is None:
        return dict(row)
    return dict(row) | {n: iso_time(row[n], kind) for n in names if row.get(n) is not None}


def _rules_json(
    rules: Sequence[Mapping[str, Any]], times: Mapping[str, str]
) -> list[dict[str, Any]]:
    return [
        {**rule, "conditions": [with_times(c, times, "low", "high") for c in rule["conditions"]]}
        for rule in rules
    ]


def _figure(row: Mapping[str, Any], name: str, times: Mapping[str, str]) -> str:
    value = row[name]
    if value is None:
        return ""
    if row["kind"] == "category":
        return f"{value:.1%}"
    return point_in_time(value) if row["feature"] in times else f"{value:.4g}"


def _rules(rules: Sequence[Mapping[str, Any]], share: str, *, with_cluster: bool = False) -> Table:
    title = None
    if len(rules) > _LISTED_RULES and not with_cluster:
        title, rules = f"rules, {_LISTED_RULES} of {len(rules):,}", rules[:_LISTED_RULES]
    columns = ("cluster", share, "correct") if with_cluster else (share, "correct")
    shown = table("rule", *columns, numbers=columns, title=title)
    for rule in rules:
        cells = [str(rule["cluster_id"])] if with_cluster else []
        correct = "–"
        if rule["precision"] is not None:
            correct = f"{rule['precision']:.0%} of {rule['held_out']:,}"
        shown.add_row(Text(rule["rule"]), *cells, f"{rule['share']:.1%}", correct)
    return shown


def _exemplars(rows: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("confidence", "runner-up", "its confidence", "distance")
    shown = table("exemplars", "key", *numbers, numbers=numbers)
    for row in rows:
        if row["rank"] <= _LISTED_EXEMPLARS:
            shown.add_row(
                row["kind"],
                Text(key_text(row["keys"])),
                f"{row['confidence']:.3f}",
                str(row["cluster_id_2"]),
                f"{row['confidence_2']:.3f}",
                f"{row['distance']:.4g}",
            )
    return shown


# ------------------------------------------------------------------------------------ two clusters


def _show_two(
    run: ExplainedRun, one: int, other: int, console: Console, *, as_json: bool
) -> dict[str, Any]:
    apart, times = contrast(run.profile([one, other]), one, other), run.timestamps
    tree, no_tree = None, "the sample has too few rows of one of them"
    try:
        tree, features = contrast_tree(run, one, other)
    except InputError as error:
        no_tree = str(error)
    rules: list[dict[str, Any]] = []
    if tree is not None and len(tree.clusters) > 1:
        no_tree, rules = "", rules_table(tree, features).to_pylist()
    if as_json:
        figures = ("fidelity", "baseline", "fitted_rows", "held_out_rows")
        fitted = {name: getattr(tree, name) for name in figures} if rules else None
        return {
            "cluster_id": one,
            "name": run.names.get(one),
            "versus": other,
            "versus_name": run.names.get(other),
            "features": [
                with_times(dataclasses.asdict(c), times, "mean", "other_mean") for c in apart
            ],
            "tree": fitted and fitted | {"rules": _rules_json(rules, times)},
            "no_tree_reason": no_tree,
        }
    console.print(f"cluster {run.named(one)}, against cluster {run.named(other)}", markup=False)
    console.print(_contrast(apart, one, other, times))
    if len(apart) > _LISTED_FEATURES:
        console.print(f"{_LISTED_FEATURES} of {len(apart):,} features; --json has all")
    if tree is None or not rules:
        console.print(f"No rules: {no_tree}.", markup=False)
        return {}
    console.print(_rules(rules, "of their rows", with_cluster=True))
    console.print(
        f"The rules agree with the model on {tree.fidelity:.1%} of {tree.held_out_rows:,} held-out "
        f"rows of the two clusters (the larger one alone: {tree.baseline:.1%}).",
        markup=False,
    )
    return {}


def _contrast(apart: Sequence[Contrast], one: int, other: int, times: Mapping[str, str]) -> Table:
    numbers = (f"mean in {one}", f"mean in {other}", "difference in pooled std")
    shown = table("feature", *numbers, numbers=numbers)
    for feature in apart[:_LISTED_FEATURES]:
        means = (feature.mean, feature.other_mean)
        if feature.feature in times:
            texts = [point_in_time(mean) for mean in means]
        else:
            texts = [f"{m:.4g}" if feature.value is None else f"{m:.1%}" for m in means]
        distance = "always" if feature.difference is None else f"{feature.difference:+.2f}"
        shown.add_row(Text(feature_text(vars(feature))), *texts, distance)
    return shown


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
