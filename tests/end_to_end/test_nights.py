"""Nights of one table, each by the command: what the simulation's events do not come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import SMALL, blobs, published, write_shards
from dec_command import Finished, in_this_process
from scipy.optimize import linear_sum_assignment

from pipeline.lake.snapshots import assignment_files, latest_snapshot
from pipeline.storage import Store

REFIT = ("--set", "schedule.refit.every_days=1")
OTHER_SEED = ("--set", "seed=5")
RUINED = ("--set", "pretrain.learning_rate=1e20", "--set", "refine.learning_rate=1e30")


class Nights:
    """A table of three clear groups, its lake, and the nights so far by their date."""

    first: dict[str, Any]
    second: dict[str, Any]

    def __init__(self, folder: Path) -> None:
        self.lake, self.config = folder / "lake", folder / "config.yaml"
        table = write_shards(folder / "table", blobs(600))
        settings = {
            "source": {"path": str(table), "features": ["x"], "keys": ["id"]},
            "output": str(self.lake),
            "clusters": 3,
            **SMALL,
            # Enough to find the groups, whatever the seed.
            "pretrain": {"passes": 10, "min_updates": 0},
            "refine": {"passes": 5, "min_updates": 200, "select": "dec"},
        }
        self.config.write_text(yaml.safe_dump(settings))

    def dec(self, *words: str) -> Finished:
        """Run a command with this config."""
        return in_this_process(self.config.parent, *words, str(self.config))

    def night(self, day: int, *words: str, code: int = 0) -> dict[str, Any]:
        """Run a night, and return its summary."""
        ended = self.dec("nightly", "--ds", f"2026-03-{day:02}", "--json", *words)
        assert ended.code == code, (ended.err, ended.out)
        summary: dict[str, Any] = ended.json
        assert summary["rows_out"] == 600
        planned = {stage["stage"] for stage in summary["estimate"]["stages"]}
        took = {stage["stage"] for stage in summary["stages"]} | {"run", "summary", "report"}
        assert took == planned or (code and took < planned)  # a fit may fail on its way
        assert len(set(published(self.lake, summary["ds"])["id"].to_pylist())) == 600
        return summary

    def files(self, day: int) -> list[str]:
        """Paths of a night's published files."""
        return assignment_files(Store(str(self.lake)), f"2026-03-{day:02}")


@pytest.fixture(scope="module")
def nights(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """A first night, and a refit with another seed."""
    made = Nights(tmp_path_factory.mktemp("nights"))
    made.first = made.night(1)
    made.second = made.night(2, *REFIT, *OTHER_SEED)
    return made


def test_two_nights_with_a_refit(nights: Nights) -> None:
    first, second = nights.first, nights.second
    assert (first["action"], first["born"], first["entry"]) == ("refit", 3, 1)
    # Another model, whose ids are aligned: no other names of its clusters would let more rows keep
    # theirs, so that whose id changed has changed its group.
    assert (second["action"], second["survived"], second["born"]) == ("refit", 3, 0)
    assert second["champion"] != first["champion"]
    before, after = (
        published(nights.lake, f"2026-03-0{day}").sort_by("id")["cluster_id"].to_numpy()
        for day in (1, 2)
    )
    counts = np.zeros((3, 3), np.int64)
    np.add.at(counts, (before, after), 1)
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    assert (before == after).sum() == best
    assert best > 500


@pytest.mark.slow
def test_nights_one_after_another(nights: Nights) -> None:
    """In one test, because each goes on from the one before."""
    # Unchanged data and settings, fitted anew: the same model, ids and files.
    again = nights.night(3, *REFIT, *OTHER_SEED)
    assert (again["action"], again["churn"], again["survived"]) == ("refit", 0, 3)
    assert again["champion"] == nights.second["champion"]
    assert again["rows_carried"] == 600
    assert nights.files(3) == nights.files(2)

    # A few passes more, from the champion's weights and centroids.
    refresh = ("--set", "schedule.refresh={every_days: 1, passes: 1}")
    refreshed = nights.night(4, *OTHER_SEED, *refresh)
    assert (refreshed["action"], refreshed["survived"]) == ("refresh", 3)
    stages = {stage["stage"] for stage in refreshed["stages"]}
    assert {"warm_start", "refine"} <= stages
    assert not {"pretrain", "init_centroids"} & stages

    # A fit that ends in no model at all.
    ruined = nights.night(5, *RUINED, code=5)
    assert (ruined["refused"], ruined["challenger"]) == (True, None)
    assert ruined["champion"] == refreshed["champion"]
    assert ruined["verdict"]["reason"]
    latest = latest_snapshot(Store(str(nights.lake)))
    assert latest is not None
    assert {ds: p.refused for ds, p in latest.partitions.items()} == {
        f"2026-03-0{day}": day == 5 for day in range(1, 6)
    }

    # Earlier dates are labelled by who serves.
    filled = nights.dec("backfill", "--from", "2026-02-27", "--to", "2026-02-28", "--json")
    assert filled.code == 0, filled.err
    summaries = [json.loads(text) for text in filled.out.replace("}\n{", "}\n\0{").split("\0")]
    assert [s["ds"] for s in summaries] == ["2026-02-27", "2026-02-28"]
    assert {(s["action"], s["champion"]) for s in summaries} == {("assign", refreshed["champion"])}

    # `dec run` fits a model of its own, which no rule of the gate refuses, with ids that last.
    run = nights.dec("run", "--ds", "2026-03-06", "--json", "--set", "gate.max_churn=0")
    assert run.code == 0, run.err
    assert (run.json["action"], run.json["survived"], run.json["verdict"]["rules"]) == (
        "refit",
        3,
        [],
    )
    entries = sorted((nights.lake / "registry").glob("*.json"))
    assert (
        nights.dec("run", "--ds", "2026-03-06", "--json", "--set", "gate.max_churn=0").json
        == run.json
    )
    assert sorted((nights.lake / "registry").glob("*.json")) == entries
