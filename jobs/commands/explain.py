"""``dec explain``: what each cluster is, by which rules, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.night import checked_run_id
from jobs.session import configured
from pipeline.clustering.surrogate import Asked, Surrogate, iso_time, point_in_time
from pipeline.errors import ConfigError, InputError
from pipeline.insight.explanations import (
    Apart,
    Explained,
    contrast,
    exemplars_of,
    explained,
    profile_of,
    rules_of,
    strongest_of,
    tell_apart,
)
from pipeline.insight.traits import label_of, rows_of, strongest, times_of, traits_of
from pipeline.storage import Store

# What a person reads; all of it is in the JSON.
_LISTED_CLUSTERS = 20
_LISTED_FEATURES = 10
_LISTED_RULES = 6
_LISTED_EXEMPLARS = 3  # of each kind
_NAMED_FEATURES = 3
_NOTICEABLE = 0.2  # standard deviations


def show_explanation(
    config_path: str,
    overrides: Sequence[str],
    run_id: str,
    *,
    cluster: int | None,
    versus: int | None,
    as_json: bool,
) -> None:
    """Explain a run's clusters, one of them, or one against another."""
    if versus is not None and cluster is None:
        raise ConfigError("--versus compares with a cluster; give that one with --cluster")
    if versus is not None and versus == cluster:
        raise ConfigError(f"--cluster and --versus are both {cluster}; give two clusters")
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    found = explained(lake, run_id)
    console = Console(soft_wrap=True, highlight=False)
    if cluster is None:
        _show_all(found, console, as_json)
    elif versus is None:
        _show_one(found, cluster, console, as_json)
    else:
        _show_two(found, cluster, versus, console, as_json)


def fidelity_of(found: Explained) -> str:
    """How far the rules can be trusted: one sentence."""
    description = found.description
    if description.fidelity is None or description.baseline is None:
        return f"No rules: {description.why_no_rules}."
    looked = sum(column.width for column in description.features)
    of = (
        f"{description.looked_at:,} of {looked:,} features"
        if looked > description.looked_at
        else ""
    )
    return (
        f"Rules: a tree of at most {description.depth} levels; it agrees with the model on "
        f"{description.fidelity:.1%} of {description.held_back_rows:,} rows held back (always "
        f"saying the largest cluster: {description.baseline:.1%})"
        + (f"; it looked at {of}." if of else ".")
    )


# ------------------------------------------------------------------------------------ all clusters


def _show_all(found: Explained, console: Console, as_json: bool) -> None:
    rows = strongest(found.lake, found.explanation.profile)
    traits, sizes = traits_of(rows), rows_of(rows)
    rules, times = rules_of(found), times_of(found.explanation)
    order = sorted(found.clusters, key=lambda i: (-sizes.get(i, 0), i))
    if as_json:
        content = [
            {
                "cluster_id": i,
                "name": found.names.get(i),
                "rows": sizes.get(i),
                "strongest": [
                    with_times(dataclasses.asdict(trait), times, "mean")
                    for trait in traits.get(i, ())
                ],
                "rules": [_rule_with_times(r, times) for r in rules if r["cluster_id"] == i],
                "precision": found.clusters[i]["precision"],
                "recall": found.clusters[i]["recall"],
            }
            for i in order
        ]
        print(json.dumps(_head(found) | {"clusters": content}, indent=2))
        return
    table = Table(box=box.SIMPLE)
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("name")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("differs from all other rows in (standard deviations)")
    table.add_column("told by rules", justify="right", no_wrap=True)
    for i in order[:_LISTED_CLUSTERS]:
        words = ", ".join(
            f"{_label(trait.feature, trait.value)} {trait.difference:+.1f}"
            for trait in traits.get(i, ())[:_NAMED_FEATURES]
            if abs(trait.difference) >= _NOTICEABLE
        )
        share = sizes.get(i, 0) / max(1, found.explanation.rows)
        recall = found.clusters[i]["recall"]
        table.add_row(
            str(i),
            Text(found.names.get(i) or ""),
            f"{sizes.get(i, 0):,}",
            f"{share:.1%}",
            Text(words),
            "–" if recall is None else f"{recall:.0%}",
        )
    console.print(table)
    if len(order) > _LISTED_CLUSTERS:
        console.print(f"the {_LISTED_CLUSTERS} largest of {len(order):,} clusters; --json has all")
    console.print(fidelity_of(found), markup=False)
    console.print("`told by rules`: share of a cluster's held-back rows that its rules find; rules")
    console.print("and more: dec explain … --cluster ID", markup=False)


def _head(found: Explained) -> dict[str, Any]:
    described = found.description
    return {
        "run_id": found.run_id,
        "model_id": described.model.model_id,
        "fidelity": described.fidelity,
        "baseline": described.baseline,
        "held_back_rows": described.held_back_rows,
        "why_no_rules": described.why_no_rules,
    }


# ------------------------------------------------------------------------------------- one cluster


def _show_one(found: Explained, cluster: int, console: Console, as_json: bool) -> None:
    profile = strongest_of(profile_of(found, [cluster]), cluster)
    rules, exemplars = rules_of(found, [cluster]), exemplars_of(found, [cluster])
    described = found.clusters[cluster]
    if as_json:
        times = times_of(found.explanation)
        measures = ("mean", "min", "max", "p05", "p25", "p50", "p75", "p95")
        rows = [
            _without(
                with_times(row, times, *measures),
                *("mean_vector", "difference_vector", "ds", "run_id", "model_id"),
            )
            for row in profile
        ]
        content = {
            "cluster_id": cluster,
            "name": found.names.get(cluster),
            "precision": described["precision"],
            "recall": described["recall"],
            "features": rows,
            "rules": [_rule_with_times(rule, times) for rule in rules],
            "exemplars": [_without(row, "ds", "run_id", "model_id") for row in exemplars],
        }
        print(json.dumps(_head(found) | content, indent=2))
        return
    size = profile[0]["rows"] if profile else 0
    share = size / max(1, found.explanation.rows)
    console.print(f"cluster {found.named(cluster)}: {size:,} rows, {share:.1%}", markup=False)
    console.print(_profile(found, profile))
    if len(profile) > _LISTED_FEATURES:
        console.print(f"{_LISTED_FEATURES} of {len(profile):,} features; --json has all")
    if rules:
        console.print(_rules([_rule_cells(rule) for rule in rules], len(rules)))
        told = (described["precision"], described["recall"])
        precision, recall = ("–" if v is None else f"{v:.1%}" for v in told)
        console.print(
            f"Of the held-back rows that these rules put here the model puts {precision} here too; "
            f"they find {recall} of the cluster's {described['held_back']:,}.",
            markup=False,
        )
    elif found.description.rules is not None:
        console.print("No rule leads to this cluster: --versus another one fits a tree of the two.")
    console.print(fidelity_of(found), markup=False)
    if exemplars:
        console.print(_exemplars(exemplars))


def _profile(found: Explained, rows: Sequence[Mapping[str, Any]]) -> Table:
    times = times_of(found.explanation)
    table = Table(box=box.SIMPLE)
    table.add_column("feature")
    table.add_column("differs by", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("std", justify="right", no_wrap=True)
    table.add_column("5 % … 95 %", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    for row in rows[:_LISTED_FEATURES]:
        cells = [_figure(row, name, times) for name in ("mean", "p05", "p95")]
        span = f"{cells[1]} … {cells[2]}" if row["p05"] is not None else ""
        spread = "" if row["std"] is None else _spread(row, times)
        label = _label(label_of(dict(row)), row["value"], row["kind"])
        missing = f"{row['null_share']:.1%}" if row["null_share"] else ""
        table.add_row(Text(label), f"{row['difference']:+.2f}", cells[0], spread, span, missing)
    return table


def with_times(row: Mapping[str, Any], times: Mapping[str, str], *names: str) -> dict[str, Any]:
    """What is told of a feature, as JSON has it: points in time as ISO 8601, all else as it is."""
    kind = times.get(row["feature"])
    if kind is None:
        return dict(row)
    told = {n: iso_time(row[n], kind) for n in names if row.get(n) is not None}
    return dict(row) | told


def _rule_with_times(rule: Mapping[str, Any], times: Mapping[str, str]) -> dict[str, Any]:
    conditions = [with_times(c, times, "low", "high") for c in rule["conditions"]]
    return dict(rule) | {"conditions": conditions}


def _figure(row: Mapping[str, Any], name: str, times: Mapping[str, str]) -> str:
    value = row[name]
    if value is None:
        return ""
    if row["kind"] == "category":
        return f"{value:.1%}"
    if row["feature"] in times:
        return point_in_time(value)
    return f"{value:.4g}"


def _spread(row: Mapping[str, Any], times: Mapping[str, str]) -> str:
    if row["feature"] in times:
        return f"{row['std'] / 86_400:.4g} days"
    return "" if row["kind"] == "category" else f"{row['std']:.4g}"


def _rule_cells(rule: Mapping[str, Any]) -> tuple[str, str, str]:
    precision = rule["precision"]
    told = "–" if precision is None else f"{precision:.0%} of {rule['held_back']:,}"
    return rule["rule"], f"{rule['share']:.1%}", told


def _rules(rules: Sequence[tuple[str, str, str]], count: int) -> Table:
    title = f"rules, {_LISTED_RULES} of {count:,}" if count > _LISTED_RULES else None
    table = Table(box=box.SIMPLE, title=title)
    table.add_column("rule")
    table.add_column("of all rows", justify="right", no_wrap=True)
    table.add_column("right", justify="right", no_wrap=True)
    for rule, share, told in rules[:_LISTED_RULES]:
        table.add_row(Text(rule), share, told)
    return table


def _exemplars(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("exemplars")
    table.add_column("key")
    for name in ("confidence", "runner-up", "its confidence", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row["rank"] <= _LISTED_EXEMPLARS:
            table.add_row(
                row["kind"],
                Text(key_text(row["keys"])),
                f"{row['confidence']:.3f}",
                str(row["cluster_id_2"]),
                f"{row['confidence_2']:.3f}",
                f"{row['distance']:.4g}",
            )
    return table


# ------------------------------------------------------------------------------------ two clusters


def _show_two(found: Explained, one: int, other: int, console: Console, as_json: bool) -> None:
    apart = contrast(profile_of(found, [one, other]), one, other)
    tree, asked, why_none = _tree(found, one, other)
    times = times_of(found.explanation)
    if as_json:
        content = {
            "cluster_id": one,
            "name": found.names.get(one),
            "versus": other,
            "versus_name": found.names.get(other),
            "features": [
                with_times(dataclasses.asdict(feature), times, "mean", "other_mean")
                for feature in apart
            ],
            "tree": _tree_json(tree, asked) if tree else None,
            "why_no_tree": why_none,
        }
        print(json.dumps(_head(found) | content, indent=2))
        return
    names = (f"cluster {found.named(one)}", f"cluster {found.named(other)}")
    console.print(f"{names[0]}, against {names[1]}", markup=False)
    console.print(_contrast(apart, one, other, times_of(found.explanation)))
    if len(apart) > _LISTED_FEATURES:
        console.print(f"{_LISTED_FEATURES} of {len(apart):,} features; --json has all")
    if tree is None:
        console.print(f"No rules: {why_none}.", markup=False)
        return
    table = Table(box=box.SIMPLE)
    table.add_column("rule, for rows of these two clusters")
    table.add_column("cluster", justify="right", no_wrap=True)
    table.add_column("of their rows", justify="right", no_wrap=True)
    table.add_column("right", justify="right", no_wrap=True)
    for rule in tree.rules:
        told = "–" if rule.precision is None else f"{rule.precision:.0%} of {rule.held_back:,}"
        share = f"{rule.rows / tree.fitted_rows:.1%}"
        table.add_row(Text(rule.text(asked)), str(rule.cluster_id), share, told)
    console.print(table)
    console.print(
        f"The rules agree with the model on {tree.fidelity:.1%} of {tree.held_back_rows:,} rows of "
        f"the two that were held back (always saying the larger one: {tree.baseline:.1%}).",
        markup=False,
    )


def _tree(found: Explained, one: int, other: int) -> tuple[Surrogate | None, list[Asked], str]:
    """A tree of the two clusters, and what it asks about; or None, and why."""
    try:
        tree, asked = tell_apart(found, one, other)
    except InputError as error:
        return None, [], str(error)
    if tree is None or len(tree.clusters) < 2:
        return None, [], "the sample has too few rows of one of them"
    return tree, asked, ""


def _tree_json(tree: Surrogate, asked: Sequence[Asked]) -> dict[str, Any]:
    rules = [
        {
            "cluster_id": rule.cluster_id,
            "rule": rule.text(asked),
            "rows": rule.rows,
            "held_back": rule.held_back,
            "right": rule.right,
        }
        for rule in tree.rules
    ]
    figures = ("fidelity", "baseline", "fitted_rows", "held_back_rows")
    return {name: getattr(tree, name) for name in figures} | {"rules": rules}


def _contrast(apart: Sequence[Apart], one: int, other: int, times: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("feature")
    table.add_column(f"mean in {one}", justify="right", no_wrap=True)
    table.add_column(f"mean in {other}", justify="right", no_wrap=True)
    table.add_column("apart, in pooled std", justify="right", no_wrap=True)
    for feature in apart[:_LISTED_FEATURES]:
        distance = "always" if feature.difference is None else f"{feature.difference:+.2f}"
        means = (feature.mean, feature.other_mean)
        shown = [f"{mean:.1%}" if feature.value is not None else f"{mean:.4g}" for mean in means]
        if feature.feature in times:
            shown = [point_in_time(mean) for mean in means]
        table.add_row(Text(_label(feature.feature, feature.value)), *shown, distance)
    return table


def key_text(keys: Mapping[str, Any]) -> str:
    """A key of one column as its value alone."""
    if len(keys) == 1:
        return str(next(iter(keys.values())))
    return ", ".join(f"{name}={value}" for name, value in keys.items())


def _label(feature: str, value: str | None, kind: str = "") -> str:
    if kind == "category" and value is None:
        return f"{feature} = any other"
    return feature if value is None else f"{feature} = {value}"


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
