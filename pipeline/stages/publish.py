"""publish: from now on, readers of this ds see this run's assignments, all of them at once."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import Assignments, ClusteringModel, Snapshot
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.lake.snapshots import Partition
from pipeline.lake.snapshots import publish as publish_partition


def _settings(_: Config) -> Any:
    return {}


@stage("publish", version=1, settings=_settings, distributed=False)
def publish(
    config: Config, context: Context, model: ClusteringModel, assignments: Assignments
) -> Snapshot:
    """Add a snapshot to the commit log."""
    partition = Partition(
        run_id=context.run_id,
        model_id=model.model_id,
        rows=assignments.rows,
        files=assignments.files.path,
    )
    commit_id = f"{context.run_id}-{assignments.fingerprint[:16]}"
    snapshot = publish_partition(context.lake, context.ds, partition, commit_id)
    return Snapshot(number=snapshot.snapshot, path=f"snapshots/{snapshot.snapshot}.json")
