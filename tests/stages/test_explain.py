"""Stage explain on a real Ray: a tree of tasks, and what becomes of a run that it fails in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import config_of, published

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.explanations import Explanation
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Serving
from pipeline.engine import Context, Execution, StageReached
from pipeline.errors import PipelineError
from pipeline.insight.profiles.files import as_it_is_now
from pipeline.run import run
from pipeline.stages.assign import assign
from pipeline.stages.explain import explain
from pipeline.stages.fit.promote import promote
from pipeline.stages.pin import pin
from pipeline.storage import Store

pytestmark = pytest.mark.usefixtures("ray_address")


def left_by(context: Context, stage: Any) -> Any:
    marker = context.lake.read_json(context.stage_path(stage.name, "done.json"))
    return stage.artifact_type.model_validate(marker["artifact"])


@pytest.mark.slow
def test_a_tree_of_tasks_and_a_stage_that_fails(
    settings: dict[str, Any], context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.input.slices.MOST_PIECES", 1)  # a slice for each of four shards
    settings["explain"] = {"columns": ["label"]}
    config = config_of(settings)

    def fails(*_: Any) -> Explanation:
        raise PipelineError("no")

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.run.explain", replace(explain, run=fails))
        summary = run(Execution(config, context))
    assert (summary.rows_out, published(tmp_path / "lake").num_rows) == (600, 600)
    assert not context.lake.exists(context.stage_path("explain", "done.json"))

    # Alone, it is what was asked for, and fails as anything does.
    again = Context("test", context.ds, Store(context.lake.url))
    alone = Execution(config, again, only="explain")
    with monkeypatch.context() as broken:
        broken.setattr("pipeline.run.explain", replace(explain, run=fails))
        with pytest.raises(PipelineError, match="no"):
            run(alone)
    with pytest.raises(StageReached):
        run(Execution(config, again, only="explain"))
    found: Explanation = left_by(context, explain)
    assert (found.rows, found.clusters, found.left_out) == (600, 3, ())
    assert [column.name for column in found.columns] == ["x", "label"]
    table = context.lake.read_table(found.profile.path)
    rows = published(tmp_path / "lake")
    source = pq.read_table(settings["source"]["path"], columns=["id", "label"]).sort_by("id")
    assert source["id"].to_pylist() == [*range(600)]
    for cluster in range(3):
        own = table.filter(np.array(table["cluster_id"]) == cluster).to_pylist()
        (told,) = (row for row in own if row["feature"] == "label")
        ids = rows.filter(np.array(rows["cluster_id"]) == cluster)["id"].to_numpy()
        labels = source["label"].to_numpy()[ids]
        assert (told["rows"], told["min"], told["max"]) == (len(ids), labels.min(), labels.max())
        np.testing.assert_allclose(told["mean"], labels.mean())

    manifest: Manifest = left_by(context, pin)
    serving: Serving = left_by(context, promote)
    assigned: Assignments = left_by(context, assign)
    assert assigned.file_count == 4
    monkeypatch.setattr("pipeline.stages.explain._TOGETHER", 2)
    tree = explain.run(config, context, manifest, serving.champion, assigned)
    exemplars, again = (
        context.lake.read_table(as_it_is_now(context.lake, each.exemplars.path))
        for each in (tree, found)
    )
    assert exemplars.equals(again)
    again_table = context.lake.read_table(tree.profile.path)
    for name in ("cluster_id", "rows", "feature", "kind", "min", "max"):
        assert again_table[name].equals(table[name])
    for name in ("mean", "std", "difference"):
        left, right = (t[name].fill_null(0).to_numpy() for t in (again_table, table))
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
