"""``dec diff``: compare two published nights, key by key."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.session import configured
from jobs.tables import facts_table, table
from pipeline.operations.difference import Difference, Flow, Moved, Transition, difference
from pipeline.storage import Store

# Rows of each table; the JSON has all.
_LISTED = 10


def show_difference(
    config_path: str, overrides: Sequence[str], before: str, after: str, as_json: bool
) -> None:
    """Print the difference between two nights."""
    found = difference(Store(configured(config_path, overrides).output), before, after)
    if as_json:
        content = found.model_dump(mode="json")
        for cluster, shown in zip(found.moved, content["moved"], strict=True):
            shown["left_share"] = cluster.left_share
            shown["arrived_share"] = cluster.arrived_share
        print(json.dumps(content, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_figures(found))
    if found.transitions:
        console.print(_transitions(found.transitions))
    if found.flows:
        console.print(_flows(found.flows, found.flow_count, found.changed))
    moved = [c for c in found.moved if c.left or c.arrived or c.gone or c.new]
    if moved:
        console.print(_moved(moved))
    if found.repeated_keys:
        console.print(
            f"note: {found.repeated_keys:,} keys occur more than once in a night "
            f"({found.repeated_rows:,} rows of both); they are in none of these figures",
            markup=False,
        )


def _figures(found: Difference) -> Table:
    before, after = found.before, found.after
    shown = facts_table()
    shown.add_row("nights", f"{before.ds} → {after.ds}")
    shown.add_row("runs", f"{before.run_id} → {after.run_id}")
    same = before.model_id == after.model_id
    shown.add_row("model", after.model_id if same else f"{before.model_id} → {after.model_id}")
    shown.add_row("rows", f"{before.rows:,} → {after.rows:,}")
    of = f"{found.changed:,} of {found.in_both:,} keys that both have"
    churn = "–" if found.churn is None else f"{found.churn:.3%}"
    shown.add_row("churn", f"{churn}: {of} changed their cluster")
    shown.add_row("new keys", f"{found.new:,}")
    shown.add_row("gone keys", f"{found.gone:,}")
    if found.shared_files:
        shared = f"{found.shared_files:,} files, {found.shared_rows:,} rows"
        shown.add_row("carried over", shared)
    return shown


def _transitions(transitions: Sequence[Transition]) -> Table:
    numbers, title = ("rows in both", "of", "and of"), _title("transitions", len(transitions))
    shown = table("ds", "transition", "from", "to", *numbers, numbers=numbers, title=title)
    for row in transitions[:_LISTED]:
        ends = ("–" if end is None else str(end) for end in (row.from_id, row.to_id))
        counts = (f"{count:,}" for count in (row.rows, row.from_rows, row.to_rows))
        shown.add_row(row.ds, row.kind, *ends, *counts)
    return shown


def _flows(flows: Sequence[Flow], count: int, changed: int) -> Table:
    numbers = ("keys", "of all that changed")
    title = _title("where keys went", count)
    shown = table("from", "to", *numbers, numbers=numbers, title=title)
    for flow in flows[:_LISTED]:
        ends = (_named(flow.from_id, flow.from_name), _named(flow.to_id, flow.to_name))
        shown.add_row(*ends, f"{flow.keys:,}", f"{flow.keys / changed:.1%}")
    return shown


def _moved(moved: Sequence[Moved]) -> Table:
    numbers = ("before", "after", "size", "left", "arrived", "gone", "new")
    title = _title("clusters that moved most", len(moved))
    shown = table("cluster", *numbers, numbers=numbers, title=title)
    for cluster in moved[:_LISTED]:
        size = f"{cluster.after / cluster.before - 1:+.1%}" if cluster.before else "new"
        shown.add_row(
            _named(cluster.cluster_id, cluster.name),
            f"{cluster.before:,}",
            f"{cluster.after:,}",
            size,
            f"{cluster.left:,} ({cluster.left_share:.1%})",
            f"{cluster.arrived:,} ({cluster.arrived_share:.1%})",
            f"{cluster.gone:,}",
            f"{cluster.new:,}",
        )
    return shown


def _title(what: str, count: int) -> str:
    return f"{what}, {_LISTED} of {count:,}" if count > _LISTED else what


def _named(cluster_id: int, name: str | None) -> str:
    return f"{cluster_id} {escape(name)}" if name else str(cluster_id)
