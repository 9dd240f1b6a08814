"""Entry point of Ray jobs: ``python -m jobs.nightly --config night.yaml --ds 2026-01-31``."""

from __future__ import annotations

import argparse

from jobs.ending import end_process
from jobs.night import run_night


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="python -m jobs.nightly", description=__doc__)
    command.add_argument("--config", required=True, help="a YAML file; see configs/nightly.yaml")
    command.add_argument("--ds", help="logical date, YYYY-MM-DD; without it, a run without a date")
    command.add_argument("--run-id", help="id of the run; the same id resumes it")
    command.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    command.add_argument(
        "--by-schedule", action="store_true", help="run dec nightly instead of dec run"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    given = parser().parse_args(arguments)
    if given.by_schedule and given.ds is None:
        parser().error("--by-schedule needs --ds, the date of the night")
    return run_night(
        given.config,
        ds=given.ds,
        run_id=given.run_id,
        overrides=given.set,
        by_schedule=given.by_schedule,
        as_json=given.json,
        in_log=True,
    )


if __name__ == "__main__":
    end_process(main)
