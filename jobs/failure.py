"""``runs/<run_id>/failure.json``: the last error of a run, for schedulers."""

from __future__ import annotations

import pipeline
from pipeline.artifacts.records import Record, utc_now
from pipeline.engine import Context
from pipeline.errors import PipelineError
from pipeline.storage import Store

NAME = "failure.json"


class Failure(Record):
    """The last failed attempt of a run."""

    run_id: str
    ds: str
    stage: str
    kind: str  # class of the error, as in the table of exit codes
    message: str
    exit_code: int
    retryable: bool  # whether the same run id, unchanged, may succeed
    at: str  # time of the failure, UTC
    log: str  # path of the attempt's log, below the output
    version: str
    # Time at which a later attempt completed that stage, UTC; None: unresolved.
    resolved_at: str | None = None


def keep(context: Context, stage: str, error: PipelineError, log: str) -> None:
    """Write the failure, in place of an older one."""
    failure = Failure(
        run_id=context.run_id,
        ds=context.ds,
        stage=stage,
        kind=type(error).__name__,
        message=str(error),
        exit_code=error.exit_code,
        retryable=error.retryable,
        at=utc_now(),
        log=log,
        version=pipeline.__version__,
    )
    context.lake.write_json(f"{context.run_path}/{NAME}", failure.model_dump(mode="json"))


def resolve(lake: Store, run_path: str, stage: str) -> None:
    """Mark a failure of this stage or an earlier one as resolved; runs need no right to delete."""
    from pipeline.run import STAGES

    path = f"{run_path}/{NAME}"
    try:
        failure = Failure.model_validate(lake.read_json(path))
    except (FileNotFoundError, ValueError):
        return  # none, or of another version
    order = [known.name for known in STAGES]
    reached = failure.stage not in order or order.index(failure.stage) <= order.index(stage)
    if failure.resolved_at is None and reached:
        resolved = failure.model_copy(update={"resolved_at": utc_now()})
        lake.write_json(path, resolved.model_dump(mode="json"))
