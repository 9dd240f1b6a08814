"""``dec clusters`` and ``dec rename``: the clusters by permanent id, and their names."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from jobs.session import configured, login
from jobs.tables import table
from pipeline.registry.clusters import living, rename
from pipeline.registry.entries import some_entry
from pipeline.storage import Store

# In a row of the table; JSON has all.
_SHOWN_EXEMPLARS = 3


def show_clusters(
    config_path: str, overrides: Sequence[str], *, everything: bool, as_json: bool
) -> None:
    """Print the living clusters, or all."""
    lake = Store(configured(config_path, overrides).output)
    entry = some_entry(lake)
    clusters = lake.read_table(entry.clusters.path).drop_columns(["centroid"])
    shown = (clusters if everything else living(clusters)).to_pylist()
    if as_json:
        content = {"entry": entry.number, "model_id": entry.champion.model.model_id}
        print(json.dumps(content | {"clusters": shown}, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    dates = ("born", "died") if everything else ("born",)
    listed = table("id", "name", *dates, "parents", "size", "nearest rows", numbers=("id", "size"))
    for cluster in shown:
        listed.add_row(
            str(cluster["cluster_id"]),
            Text(cluster["name"] or ""),
            *(cluster[date] or "" for date in dates),
            ", ".join(map(str, cluster["parents"])),
            f"{cluster['size']:,}",
            Text(" ".join(map(_key, cluster["exemplars"][:_SHOWN_EXEMPLARS]))),
        )
    console.print(listed)
    died = len(clusters) - len(living(clusters))
    console.print(
        f"{len(clusters) - died:,} clusters live, {died:,} died; model "
        f"{entry.champion.model.model_id} of ds {entry.champion.ds}, entry {entry.number}",
        markup=False,
    )


def _key(exemplar: str) -> str:
    """The values of a key, without column names."""
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
