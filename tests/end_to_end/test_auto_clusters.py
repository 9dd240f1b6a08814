"""``clusters: auto`` the whole way: the number is found once, and every stage goes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL, blobs, config_of, published, write_shards
from dec_command import in_this_process

from pipeline.artifacts.models import InitialCentroids
from pipeline.engine import Context, Execution, StageReached
from pipeline.registry.models import cluster_count
from pipeline.run import run

# Enough for the embeddings to show the groups, whatever the seed.
TRAINED = {
    **SMALL,
    "pretrain": {"passes": 10, "min_updates": 0},
    "refine": {"passes": 3, "min_updates": 100, "select": "dec"},
}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_address")
def test_the_number_is_found_once_and_used_by_every_stage(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    settings |= {**TRAINED, "clusters": {"most": 10}}
    config = config_of(settings)
    for name in ("pin", "decide", "sample", "pretrain", "init_centroids"):
        first = Execution(config, context, only=name)
        with pytest.raises(StageReached):
            run(first)
    found = first.reached.artifact
    assert isinstance(found, InitialCentroids)
    assert found.choice is not None
    assert found.choice.clusters == len(found.cluster_rows) == 3
    assert found.choice.votes[7] == 3
    assert [step.clusters for step in found.choice.path] == list(range(10, 1, -1))
    marker = tmp_path / "lake/runs/test/stages/init_centroids/done.json"
    decided = marker.stat().st_mtime_ns

    summary = run(Execution(config, Context("test", "2026-01-31", context.lake)))
    assert marker.stat().st_mtime_ns == decided  # resumed: not decided again
    assert summary.choice == found.choice
    assert summary.clusters == len(summary.cluster_rows) == 3
    assert summary.scores is not None
    assert summary.scores.ari > 0.9
    assert all(candidate.empty_clusters == 0 for candidate in summary.comparison.candidates)
    assert set(published(tmp_path / "lake")["cluster_id"].to_pylist()) == {0, 1, 2}
    card = (tmp_path / "lake" / summary.model / "model_card.md").read_text()
    assert "into 3 clusters" in card
    assert cluster_count(context.lake, found.centroids) == 3

    # The same data and seed: the same number, and the same model.
    other = run(Execution(config, Context("other", "2026-01-31", context.lake)))
    assert (other.choice, other.model_id) == (summary.choice, summary.model_id)


@pytest.mark.slow
def test_a_refit_may_come_to_another_number(ray_address: str, tmp_path: Path) -> None:
    table = write_shards(tmp_path / "table", blobs(600))
    settings = {
        "source": {"path": str(table), "features": ["x"], "keys": ["id"]},
        "output": str(tmp_path / "lake"),
        "clusters": "auto",
        **TRAINED,
        "centroids": {"sample_rows": 2000, "restarts": 2, "iterations": 10},
        # A group that appears is what this is about, not whether its night may publish.
        "gate": {"max_psi": None, "max_quality_loss": None, "max_worse_than_kmeans": None},
        "schedule": {"refit": {"every_days": 2, "on_drift": False}},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))

    def night(day: int, *words: str) -> dict[str, Any]:
        ds = f"2026-03-{day:02}"
        done = in_this_process(tmp_path, "nightly", str(config), "--json", "--ds", ds, *words)
        assert done.code == 0, (done.err, done.out)
        summary: dict[str, Any] = done.json
        return summary

    first = night(1)
    assert (first["action"], first["born"], len(first["cluster_ids"])) == ("refit", 3, 3)

    # A fourth group, as far off as the others. The champion labels it, with the clusters it has.
    random = np.random.default_rng(5)
    x = random.normal(size=(200, 8)) + np.array([5, -5] * 4)
    new = pa.table(
        {
            "id": np.arange(600, 800),
            "x": pa.FixedSizeListArray.from_arrays(x.astype(np.float32).ravel(), 8),
            "label": np.full(200, 3, np.int16),
        }
    )
    pq.write_table(new, table / "shard-4.parquet")
    second = night(2)
    assert (second["action"], second["champion"]) == ("assign", first["champion"])
    assert second["cluster_ids"] == first["cluster_ids"]
    assert second["rows_out"] == 800

    third = night(3)
    assert (third["action"], third["refused"]) == ("refit", False), third["verdict"]
    assert third["challenger"] == third["champion"] != first["champion"]
    kept, number = set(first["cluster_ids"]), len(third["cluster_ids"])
    assert number > 3
    assert (third["survived"] + third["born"], third["born"] > 0) == (number, True)
    assert kept & set(third["cluster_ids"])
    assert min(set(third["cluster_ids"]) - kept) == 3  # new ids, none of them reused
    rows = published(tmp_path / "lake", "2026-03-03")
    assert set(rows["cluster_id"].to_pylist()) <= set(third["cluster_ids"])
    assert len(rows) == 800

    # A few passes more of what serves: its number, not one that is found again.
    refresh = "schedule.refresh={every_days: 1, passes: 1}"
    fourth = night(4, "--set", refresh)
    assert (fourth["action"], fourth["cluster_ids"]) == ("refresh", third["cluster_ids"])
