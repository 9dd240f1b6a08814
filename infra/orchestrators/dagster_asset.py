"""Dagster asset with a partition for each day; submits the nightly run to a Ray cluster.

The machine that executes it needs `dec` on the PATH, the config beside this file, and
RAY_API_SERVER_ADDRESS with the URL of the cluster's dashboard.
"""

# Without `from __future__ import annotations`: Dagster reads the annotation of `context`.
import subprocess
from pathlib import Path

import dagster

CONFIG = Path(__file__).with_name("nightly.yaml")
# Temporary failures, and a start still in progress (exit codes: infra/guides/failures.md).
WORTH_A_RETRY = (6, 9)
# Published: by tonight's model, or by the champion because the gate refused tonight's model.
PUBLISHED = (0, 5)


@dagster.asset(partitions_def=dagster.DailyPartitionsDefinition("2026-01-01"), pool="dec_lake")
def assignments(context: dagster.AssetExecutionContext) -> None:
    """The cluster of every row of a day."""
    # A retry continues the run; while the job of an earlier try runs, it ends with code 9.
    command = ["dec", "submit", CONFIG, "--nightly", "--ds", context.partition_key, "--follow"]
    ended = subprocess.run(command)
    if ended.returncode in WORTH_A_RETRY:
        raise dagster.RetryRequested(max_retries=5, seconds_to_wait=600)
    if ended.returncode not in PUBLISHED:
        raise dagster.Failure(f"dec submit ended with code {ended.returncode}", allow_retries=False)


nightly = dagster.define_asset_job("dec_nightly", selection=[assignments])

definitions = dagster.Definitions(
    assets=[assignments],
    # At two o'clock, the partition of the day that has just ended.
    schedules=[dagster.build_schedule_from_partitioned_job(nightly, hour_of_day=2)],
)
