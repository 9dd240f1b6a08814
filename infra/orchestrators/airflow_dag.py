"""Airflow 3 DAG that submits the nightly run to a Ray cluster and ends with its outcome.

The workers need `dec` on their PATH, the config beside this file, and RAY_API_SERVER_ADDRESS with
the URL of the cluster's dashboard.
"""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException
from airflow.timetables.interval import CronDataIntervalTimetable

CONFIG = Path(__file__).with_name("nightly.yaml")
# Temporary failures, and a start still in progress (exit codes: infra/guides/failures.md).
WORTH_A_RETRY = (6, 9)
# Published: by tonight's model, or by the champion because the gate refused tonight's model.
PUBLISHED = (0, 5)


# At two o'clock for the day before: ds is the start of the interval, whenever the task runs.
@dag(
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
)
def dec_nightly() -> None:
    """Cluster the table of a day and publish the cluster of every row."""

    @task(retries=5, retry_delay=timedelta(minutes=10))
    def submit(ds: str | None = None) -> None:
        # A retry continues the run; while the job of an earlier try runs, it ends with code 9.
        command = ["dec", "submit", CONFIG, "--nightly", "--ds", str(ds), "--follow"]
        ended = subprocess.run(command)
        if ended.returncode in WORTH_A_RETRY:
            raise RuntimeError(f"dec submit ended with code {ended.returncode}: retry later")
        if ended.returncode not in PUBLISHED:
            raise AirflowFailException(f"dec submit ended with code {ended.returncode}")

    submit()


dec_nightly()
