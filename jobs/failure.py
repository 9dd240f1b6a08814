"""``runs/<run_id>/failure.json``: why the last attempt that failed did, for schedulers."""

from __future__ import annotations

import datetime

from pydantic import ValidationError

import pipeline
from pipeline.artifacts.records import Record
from pipeline.engine import Context
from pipeline.errors import PipelineError
from pipeline.storage import Store

NAME = "failure.json"


class Failure(Record):
    """The last attempt of a run that did not end well.

    Attributes:
        run_id: The run.
        ds: What it was to publish.
        stage: Which stage was under way.
        kind: Class of the error, as in the table of exit codes.
        message: What was printed: what, got, expected, next step.
        exit_code: Of the process.
        retryable: Whether the same run id, unchanged, may succeed.
        at: When, UTC.
        log: The attempt's log, below the output.
        version: Of this package.
        resolved_at: When an attempt got beyond that stage, UTC; None: it is how things stand.
    """

    run_id: str
    ds: str
    stage: str
    kind: str
    message: str
    exit_code: int
    retryable: bool
    at: str
    log: str
    version: str
    resolved_at: str | None = None


def keep(context: Context, stage: str, error: PipelineError, log: str) -> None:
    """Write it, in place of an older one.

    Raises:
        OSError: The storage does not answer.
    """
    failure = Failure(
        run_id=context.run_id,
        ds=context.ds,
        stage=stage,
        kind=type(error).__name__,
        message=str(error),
        exit_code=error.exit_code,
        retryable=error.retryable,
        at=_now(),
        log=log,
        version=pipeline.__version__,
    )
    context.lake.write_json(f"{context.run_path}/{NAME}", failure.model_dump(mode="json"))


def resolve(lake: Store, run_path: str, stage: str) -> None:
    """Mark it as resolved where it is of this stage or one before; runs have no right to delete.

    Args:
        lake: The output folder.
        run_path: The run's folder, below it.
        stage: The last one that is complete.

    Raises:
        OSError: The storage does not answer.
    """
    from pipeline.run import STAGES

    path = f"{run_path}/{NAME}"
    try:
        failure = Failure.model_validate(lake.read_json(path))
    except (FileNotFoundError, ValueError, ValidationError):
        return  # there is none, or one of another version
    order = [known.name for known in STAGES]
    reached = failure.stage not in order or order.index(failure.stage) <= order.index(stage)
    if failure.resolved_at is None and reached:
        resolved = failure.model_copy(update={"resolved_at": _now()})
        lake.write_json(path, resolved.model_dump(mode="json"))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
