"""publish: let readers of this ds see this run's assignments, all at once."""

from __future__ import annotations

import contextlib
import logging

from pipeline.artifacts.assignments import Assignments, Snapshot
from pipeline.artifacts.nights import Serving
from pipeline.bill.costs import LISTED_KEYS, CostInputs
from pipeline.bill.records import StageCosts
from pipeline.config import Config, content_of
from pipeline.engine import Context, stage
from pipeline.errors import TransientError
from pipeline.insight.profiles.files import withdraw_copies
from pipeline.lake.parts import wrong_parts
from pipeline.lake.receipts import withdrawn_parts
from pipeline.lake.snapshots import Partition, read_file_list, serves
from pipeline.lake.snapshots import publish as publish_partition
from pipeline.lake.tables import commit_of, open_table
from pipeline.lake.tables.columns import check_columns
from pipeline.runs import RunFolder

log = logging.getLogger(__name__)


def _cost(run: CostInputs) -> StageCosts:
    """A listing of all part files, and the commit."""
    return StageCosts(gets=12, puts=11 + run.manifest.slice_count // LISTED_KEYS)


@stage("publish", version=2, settings=content_of("lake"), distributed=False, cost=_cost)
def publish(
    config: Config, context: Context, serving: Serving, assignments: Assignments
) -> Snapshot:
    """Add a snapshot to the commit log, after checking that all its files exist.

    An Iceberg or Delta table, where there is one, follows the log.

    Raises:
        TransientError: Files are missing; the same run id assigns again.
    """
    lake, ds = context.lake, context.ds
    listing = read_file_list(lake, assignments.files.path)
    withdrawn = withdrawn_parts(lake)  # by `dec forget`, since assign found them
    wrong = [lake.locate(file.path) for file in listing.files if file.path in withdrawn]
    if wrong := wrong or wrong_parts(lake, listing.files):
        # An empty marker counts as none; not every role may delete.
        lake.write_bytes(context.stage_path("assign", "done.json"), b"")
        raise TransientError(
            f"{len(wrong):,} of {len(listing.files):,} part files are gone or not what assign "
            f"wrote, such as {wrong[0]}; nothing is published. The same run id writes them again"
        )
    partition = Partition(
        run_id=context.run_id,
        model_id=serving.champion.model.model_id,
        rows=assignments.rows,
        files=assignments.files.path,
        quarantined_shards=len(assignments.quarantined),
        refused=serving.refused,
        source_version=_source_version(context),
    )
    commit_id = f"{context.run_id}-{assignments.fingerprint[:16]}"
    table = open_table(config, lake)
    if table:
        commit = commit_of(lake, ds, partition, commit_id)
        check_columns(config.lake.format, commit.columns)
        table.prepare(commit)
    snapshot = publish_partition(lake, ds, partition, commit_id, hold=context.hold)
    if table and not table.follow(commit, lambda: serves(lake, ds, partition)):
        log.warning("%s: ds %s is another run's by now, and is left to it", table.location, ds)
    # Copies of an earlier run's explanation; the stage explain writes this run's.
    withdraw_copies(lake, ds, context.run_id, lambda: serves(lake, ds, partition))
    return Snapshot(
        number=snapshot.snapshot,
        path=f"snapshots/{snapshot.snapshot}.json",
        table=table.location if table else None,
    )


def _source_version(context: Context) -> str | None:
    """Format and version of the lake table that the run has pinned; None for plain files."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        table = RunFolder(context.lake, context.run_id).read_manifest().table
        return f"{table.format} {table.version}" if table else None
    return None
