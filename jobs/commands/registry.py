"""``dec clusters`` and ``dec rename``: what the permanent ids stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.session import configured, login
from pipeline.errors import InputError
from pipeline.registry.clusters import living, rename
from pipeline.registry.entries import FOLDER, latest_entry
from pipeline.storage import Store

# Exemplars that a row of the table shows; JSON has them all.
_SHOWN_EXEMPLARS = 3


def show_clusters(
    config_path: str, overrides: Sequence[str], *, everything: bool, as_json: bool
) -> None:
    """Print the clusters that live, or all that ever did."""
    lake = Store(configured(config_path, overrides).output)
    entry = latest_entry(lake)
    if entry is None:
        raise InputError(
            f"{lake.locate(FOLDER)} has no clusters with permanent ids; `dec nightly` makes them"
        )
    clusters = lake.read_table(entry.clusters.path).drop_columns(["centroid"])
    shown = (clusters if everything else living(clusters)).to_pylist()
    if as_json:
        content = {"entry": entry.number, "model_id": entry.champion.model.model_id}
        print(json.dumps(content | {"clusters": shown}, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    table = Table(box=box.SIMPLE)
    table.add_column("id", justify="right", no_wrap=True)
    for name in ("name", "born", *(["died"] if everything else []), "parents"):
        table.add_column(name, no_wrap=name in ("born", "died"))
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("nearest rows")
    for cluster in shown:
        table.add_row(*(Text(cell) for cell in _cells(cluster, everything)))
    console.print(table)
    died = len(clusters) - len(living(clusters))
    console.print(
        f"{len(clusters) - died:,} clusters live, {died:,} died; model "
        f"{entry.champion.model.model_id} of ds {entry.champion.ds}, entry {entry.number}",
        markup=False,
    )


def _cells(cluster: dict[str, Any], everything: bool) -> list[str]:
    return [
        str(cluster["cluster_id"]),
        cluster["name"] or "",
        cluster["born"],
        *([cluster["died"] or ""] if everything else []),
        ", ".join(map(str, cluster["parents"])),
        f"{cluster['size']:,}",
        " ".join(map(_key, cluster["exemplars"][:_SHOWN_EXEMPLARS])),
    ]


def _key(exemplar: str) -> str:
    """A key of one column as its value alone."""
    values = [str(value) for value in json.loads(exemplar).values()]
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def rename_cluster(
    config_path: str, overrides: Sequence[str], cluster_id: int, name: str, *, as_json: bool
) -> None:
    """Give a cluster a name that stays with it."""
    lake = Store(configured(config_path, overrides).output)
    entry = rename(lake, cluster_id, name, who=login())
    if as_json:
        print(json.dumps(entry.model_dump(mode="json"), indent=2))
        return
    print(f"cluster {cluster_id} is called {name.strip()}: entry {entry.number} of the registry")
