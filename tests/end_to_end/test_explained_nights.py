"""Nights whose clusters get names that last, and the commands that explain them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import SMALL, blobs, published, write_shards
from dec_command import in_this_process

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]

COLUMNS = ("amount", "age", "visits", "orders", "returns", "calls", "mails", "days")


def customers() -> pa.Table:
    """Three clear groups, in columns of their own."""
    table = blobs(600)
    values = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, len(COLUMNS))
    return pa.table({"id": table["id"], **dict(zip(COLUMNS, values.T, strict=True))})


class Lake:
    """Its nights, and commands about them."""

    def __init__(self, folder: Path) -> None:
        self.lake = folder / "lake"
        settings = {
            "source": {
                "path": str(write_shards(folder / "table", customers(), row_group_size=50)),
                "features": list(COLUMNS),
                "keys": ["id"],
            },
            "output": str(self.lake),
            "clusters": 3,
            **SMALL,
            "pretrain": {"passes": 10, "min_updates": 0},
            "refine": {"passes": 5, "min_updates": 200, "select": "dec"},
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))

    def dec(self, name: str, *words: str) -> str:
        done = in_this_process(self.config.parent, name, str(self.config), *words)
        assert done.code == 0, (done.err, done.out)
        return done.out

    def json(self, name: str, *words: str) -> Any:
        return json.loads(self.dec(name, *words, "--json"))

    def night(self, day: int, *words: str) -> Any:
        return self.json("nightly", "--ds", f"2026-03-0{day}", "--run-id", f"night-{day}", *words)

    def names(self) -> dict[int, str | None]:
        return {c["cluster_id"]: c["name"] for c in self.json("clusters")["clusters"]}


def test_names_that_last_and_rules_that_hold(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    first = lake.night(1)
    assert {"explain", "describe"} <= {stage["stage"] for stage in first["stages"]}
    names = lake.names()
    assert len({name for name in names.values() if name}) == 3

    # The rules say which rows are in which cluster: counted here once more, on all rows.
    found = lake.json("explain", "night-1")
    rows = published(lake.lake).sort_by("id")["cluster_id"].to_numpy()
    table = customers()
    told = np.full(600, -1)
    for cluster in found["clusters"]:
        assert cluster["name"] == names[cluster["cluster_id"]]
        for rule in cluster["rules"]:
            met = np.ones(600, bool)
            for c in rule["conditions"]:
                x = table[c["feature"]].to_numpy()
                met &= x > (-np.inf if c["low"] is None else c["low"])
                met &= x <= (np.inf if c["high"] is None else c["high"])
            told[met] = cluster["cluster_id"]
    assert (told >= 0).all()
    assert np.mean(told == rows) == pytest.approx(found["fidelity"], abs=0.08)
    assert found["fidelity"] > 0.9

    # One row: its cluster, and what speaks for it.
    (row,) = lake.json("locate", "night-1", "--key", "17")["rows"]
    assert row["row"]["cluster_id"] == rows[17]
    assert row["name"] == names[rows[17]]
    assert {e["feature"] for e in row["evidence"]} <= set(COLUMNS)
    by_feature = {e["feature"]: e["value"] for e in row["evidence"]}
    assert by_feature["amount"] == pytest.approx(table["amount"][17].as_py())
    assert row["near"]

    # A person's name is not touched, the others last, through a refit of another seed too.
    lake.dec("rename", str(rows[17]), "Friends of mine")
    second = lake.night(2, "--set", "seed=5", "--set", "schedule.refit.every_days=1")
    assert second["action"] == "refit"
    after = lake.names()
    assert after[rows[17]] == "Friends of mine"
    survivors = {i for i in after if i in names}
    assert len(survivors) == second["survived"] == 3
    assert {i: after[i] for i in survivors if i != rows[17]} == {
        i: names[i] for i in survivors if i != rows[17]
    }
    text = lake.dec("explain", "night-2", "--cluster", str(rows[17]))
    assert "Friends of mine" in text
    assert "agrees with the model on" in text
