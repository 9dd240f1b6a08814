"""Runs the nights one by one: the table changes, ``dec nightly`` runs, its output is read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults.nights
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from dec_command import in_this_process
from numpy.typing import NDArray

from pipeline.lake.snapshots import Partition, assignment_files, latest_snapshot
from pipeline.registry.entries import latest_entry
from pipeline.storage import Store

from .nights import (
    EVENTS,
    KILLED,
    NIGHTS,
    REFIT_EVERY_DAYS,
    Change,
    Dataset,
    Table,
    World,
    ds_of,
)

# The stage during which a night is killed.
KILLS: Mapping[int, str] = {KILLED: "pretrain", 10: "assign"}

SMALL: Mapping[str, Mapping[str, object]] = {
    "model": {"hidden": [64, 64], "embedding": 8, "precision": "float32"},
    "pretrain": {"passes": 15},
    "refine": {"passes": 5},
    "centroids": {"sample_rows": 5000, "restarts": 10},
    # Both models are scored on rows of before the drift, where the old one is at home.
    # Who was killed cannot give its lease back.
    "execution": {"workers": 1, "lease_seconds": 1},
}


def settings_of(dataset: Dataset, table: Path, lake: Path) -> dict[str, Any]:
    """The config of all nights; it never changes."""
    return {
        "source": {
            "path": str(table),
            "features": ["x"],
            "keys": ["id"],
            "on_bad_shard": "quarantine",
        },
        "output": str(lake),
        "clusters": dataset.cast.clusters,
        "evaluate": {"label": "label"},
        "schedule": {"refit": {"every_days": REFIT_EVERY_DAYS, "on_drift": False}},
        **SMALL,
        **dataset.settings,
    }


@dataclass(frozen=True)
class Night:
    """A finished night and its output.

    Attributes:
        day: Number of the night, from 1.
        code: Exit code of the command.
        summary: What it printed as JSON.
        changes: Changes of the table's shards before the night, by name.
        changed_rows: Number of rows of new and replaced shards, and of shards packed with them.
        keys_N: Keys of all published rows, ascending, shape (rows,).
        ids_N: The cluster of each, shape (rows,).
        known_N: True class of each row; empty where the table has no such row.
        expected_N: Keys that the table has, ascending.
        files: Paths of the published files.
        partition: Entry of the night's ds in the snapshot.
        transitions: The whole ``cluster_transitions`` table, as it stands after the night.
        trained_passes: Number of passes of pretraining and refinement.
        seconds: Duration of the command; of both where the first was killed.
    """

    day: int
    code: int
    summary: dict[str, Any]
    changes: dict[str, Change]
    changed_rows: int
    keys_N: NDArray[np.int64]
    ids_N: NDArray[np.int32]
    known_N: NDArray[np.str_]
    expected_N: NDArray[np.int64]
    files: tuple[str, ...]
    partition: Partition
    transitions: pa.Table
    trained_passes: int
    seconds: float

    def happened(self) -> dict[str, set[tuple[int | None, int | None]]]:
        """From which id to which, by kind, as this night's run has it in the registry."""
        kinds = ("survival", "birth", "death", "merge", "split")
        found: dict[str, set[tuple[int | None, int | None]]] = {kind: set() for kind in kinds}
        for row in self.transitions.to_pylist():
            if row["run_id"] == self.summary["run_id"]:
                found[row["kind"]].add((row["from_id"], row["to_id"]))
        return found

    def cluster_of(self, group: str) -> int:
        """The cluster that has most rows of a class."""
        ids, rows = np.unique(self.ids_N[self.known_N == group], return_counts=True)
        return int(ids[rows.argmax()])

    def found(self, group: str) -> float:
        """How well it is that class: F1 of the cluster that has most of its rows."""
        mine_N, its_N = self.ids_N == self.cluster_of(group), self.known_N == group
        return float(2 * (mine_N & its_N).sum() / (mine_N.sum() + its_N.sum()))


def live(
    dataset: Dataset, folder: Path, address: str, kills: Mapping[int, str] = KILLS
) -> Iterator[Night]:
    """All nights of a dataset, one after the other, on the Ray of this process.

    Args:
        dataset: The dataset and what happens to it.
        folder: Folder for the table, the lake and logs.
        address: Address of that Ray, for nights that are killed: processes of their own.
        kills: Stage during which a night is killed before it is run again, by day.
    """
    world = World(dataset)
    table = Table(world, folder / "table")
    lake = folder / "lake"
    config = folder / "config.yaml"
    settings = settings_of(dataset, table.folder, lake)
    config.write_text(yaml.safe_dump(settings))
    for day in NIGHTS:
        changes = table.become(day)
        started = time.monotonic()
        if day in kills:
            _kill(folder / "killed", settings, address, day, kills[day])
        ended = in_this_process(folder, "nightly", config.name, *_words(day), "--json")
        seconds = time.monotonic() - started
        if not ended.out:
            raise RuntimeError(f"night {day} ended with {ended.code}:\n{ended.err}")
        known = world.known(day)
        rows = published(lake, day)
        keys_N = rows["id"].to_numpy()
        store = Store(str(lake))
        yield Night(
            day=day,
            code=ended.code,
            summary=ended.json,
            changes=changes,
            changed_rows=table.changed_rows,
            keys_N=keys_N,
            ids_N=rows["cluster_id"].to_numpy(),
            known_N=np.array([known.get(key, "") for key in keys_N.tolist()]),
            expected_N=np.array(sorted(known)),
            files=tuple(assignment_files(store, ds_of(day))),
            partition=latest_snapshot(store).partitions[ds_of(day)],
            transitions=transitions(store),
            trained_passes=_trained_passes(lake, day),
            seconds=seconds,
        )


def difference(folder: Path, before: int, after: int) -> dict[str, Any]:
    """Output of ``dec diff`` for two nights."""
    words = ("diff", "config.yaml", ds_of(before), ds_of(after), "--json")
    found: dict[str, Any] = in_this_process(folder, *words).json
    return found


def run_id_of(day: int) -> str:
    """The run of a night."""
    return f"night-{day:02}"


def published(lake: Path, day: int) -> pa.Table:
    """The published rows of a night, by key, as a reader finds them."""
    files = assignment_files(Store(str(lake)), ds_of(day))
    return pa.concat_tables([pq.read_table(path) for path in files]).sort_by("id")


def transitions(lake: Store) -> pa.Table:
    """Everything that ever happened to clusters, by the registry."""
    entry = latest_entry(lake)
    return pa.concat_tables([lake.read_table(file.path) for file in entry.transitions])


def _words(day: int) -> tuple[str, ...]:
    return ("--ds", ds_of(day), "--run-id", run_id_of(day))


def _kill(folder: Path, settings: dict[str, Any], address: str, day: int, stage: str) -> None:
    """Start a night in a process of its own, and kill it during this stage."""
    command = ("nightly", "--ds", ds_of(day))
    run = faults.nights.Night(folder, settings, address, run_id_of(day), command)
    run.start()
    run.wait_for_stage(stage)
    run.kill()
    if run.complete(stage):
        raise RuntimeError(f"night {day}: {stage} was complete before it was killed")


def _trained_passes(lake: Path, day: int) -> int:
    """Passes over the training rows that the stages of a night left a record of."""
    stages = lake / f"runs/{run_id_of(day)}/stages"
    passes = 0
    for stage, field in (("pretrain", "losses"), ("refine", "updates")):
        if (marker := stages / stage / "done.json").exists():
            done = len(json.loads(marker.read_text())["artifact"][field])
            passes += done - (stage == "refine")  # the first update is before any pass
    return passes


_COLUMNS = "| night | what befell the table | action | why | rows | labelled | carried | passes |"
_COLUMNS += " s | churn | transitions | verdict |"


def cost_table(nights: list[Night]) -> str:
    """Actions and cost of each night, as Markdown."""
    lines = [_COLUMNS, "|--:|---|---|---|--:|--:|--:|--:|--:|--:|---|---|"]
    for night in nights:
        summary, churn = night.summary, night.summary["churn"]
        cells = (
            night.day,
            EVENTS[night.day],
            summary["action"],
            summary["why"],
            f"{summary['rows_out']:,}",
            f"{summary['rows_labelled']:,}",
            f"{summary['rows_carried']:,}",
            night.trained_passes,
            f"{night.seconds:.0f}",
            "" if churn is None else f"{churn:.1%}",
            _in_words(night),
            _verdict(night),
        )
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _in_words(night: Night) -> str:
    """Births, deaths, merges and splits of clusters, in words."""
    words = {
        "birth": "{1} born",
        "death": "{0} died",
        "merge": "{0} into {1}",
        "split": "{1} of {0}",
    }
    happened = night.happened()
    pairs = ((words[kind], pair) for kind in words for pair in sorted(happened[kind], key=str))
    return ", ".join(word.format(*pair) for word, pair in pairs)


def _verdict(night: Night) -> str:
    verdict = night.summary["verdict"]
    if night.summary["rows_quarantined"] or night.summary["quarantined"]:
        return f"{len(night.summary['quarantined'])} shard in quarantine"
    if verdict is None:
        return ""
    broken = [rule["name"] for rule in verdict["rules"] if not rule["passed"]]
    return f"refused: {', '.join(broken)}" if night.summary["refused"] else "passed"
