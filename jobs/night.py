"""A run from start to end, for ``dec run``, ``dec nightly``, ``dec stage`` and Ray jobs."""

from __future__ import annotations

import datetime
import json
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.arguments import checked_ds, of_ds
from jobs.attempt import Attempt
from jobs.console import print_summary
from jobs.ray_address import check_ray_settings
from jobs.session import Screen, configured, keep_to_this_machine, listen, own_screen
from pipeline import logs
from pipeline.artifacts.records import Artifact
from pipeline.artifacts.summaries import Summary
from pipeline.errors import ConfigError, GateRefused, Interrupted, LeaseHeld, PipelineError
from pipeline.storage import why

log = logging.getLogger(__name__)


def run_night(
    config_path: str,
    *,
    ds: str | None = None,
    run_id: str | None = None,
    overrides: Sequence[str] = (),
    only: str | None = None,
    by_schedule: bool = False,
    as_json: bool = False,
    in_log: bool = False,
) -> int:
    """Run the pipeline, show its progress and result, and return the exit code.

    ``only`` names the only stage to complete. ``by_schedule`` fits by ``schedule`` and applies the
    gate, as ``dec nightly`` does. ``in_log`` shows progress as log lines instead of bars.
    """
    listen()
    keep_to_this_machine()
    with own_screen() as screen:
        attempt: Attempt | None = None
        failed: PipelineError | None = None
        result: Artifact | None = None
        try:
            check_ray_settings()
            config = of_ds(configured(config_path, overrides), checked_ds(ds))
            attempt = Attempt(config, ds, run_id, screen, by_schedule=by_schedule)
            logs.begin(attempt.run_id, pipeline=Path(config_path).stem)
            result = attempt.execute(only, in_log=in_log)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            failed = _failure(error, attempt, _how_to_resume(config_path, attempt, ds, overrides))
            _report(screen, failed, as_json)
        finally:
            if attempt:
                attempt.close(failed, result)
        if failed:
            return failed.exit_code
        assert attempt is not None
        assert result is not None
        _show(attempt, result, screen, as_json)
        refused = isinstance(result, Summary) and result.refused
        return GateRefused.exit_code if refused else 0


def _failure(error: BaseException, attempt: Attempt | None, how_to_resume: str) -> PipelineError:
    """The error that ended a run, as one with an exit code."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted)):
        lost = attempt.lost if attempt else ""
        return LeaseHeld(lost) if lost else Interrupted(how_to_resume)
    if isinstance(error, PipelineError):
        log.error("the run failed", exc_info=error)
        return error
    log.error("unexpected", exc_info=error)
    return _unexpected(error, attempt.keep_log() if attempt else None)


def _show(attempt: Attempt, result: Artifact, screen: Screen, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), indent=2), file=screen.out)
    elif isinstance(result, Summary):
        print_summary(result, screen.out)
        from pipeline.report.page import page_path

        if attempt.lake.exists(page := page_path(attempt.run_id)):  # it may have failed
            print(f"{'report':<12} {attempt.lake.locate(page)}", file=screen.out)
        if (serves := attempt.served_by()) != attempt.run_id:
            screen.say(f"note: ds {attempt.ds} is now served by run {serves}")
    else:
        print(f"stage {attempt.stage} is complete in run {attempt.run_id}", file=screen.out)


def run_backfill(
    config_path: str, first: str, last: str, overrides: Sequence[str], *, as_json: bool
) -> int:
    """Run the nights of a range of dates, oldest first, until one fails.

    The exit code is that of the failed night; 5 if the gate refused a challenger; else 0.
    """
    start, end = (datetime.date.fromisoformat(checked_ds(ds)) for ds in (first, last))
    if end < start:
        raise ConfigError(f"--from {first} is after --to {last}; give the older date first")
    worst = 0
    for n in range((end - start).days + 1):
        ds = (start + datetime.timedelta(days=n)).isoformat()
        code = run_night(config_path, ds=ds, overrides=overrides, by_schedule=True, as_json=as_json)
        if code not in (0, GateRefused.exit_code):
            return code
        worst = max(worst, code)
    return worst


def _unexpected(error: BaseException, log_file: str | None = None) -> PipelineError:
    seen = f"; the log is {log_file}" if log_file else ""
    return PipelineError(
        f"{type(error).__name__}: {why(error)}; this is a defect, please report it{seen}"
    )


def _how_to_resume(
    config_path: str, attempt: Attempt | None, ds: str | None, overrides: Sequence[str]
) -> str:
    if attempt is None:
        return "interrupted before the run began"
    words = ["dec", "nightly" if attempt.by_schedule else "run", config_path]
    words += ["--run-id", attempt.run_id, *(["--ds", ds] if ds else [])]
    for override in overrides:
        words += ["--set", override]
    return f"interrupted; complete work is kept. Resume with: {shlex.join(words)}"


def _report(screen: Screen, error: PipelineError, as_json: bool) -> None:
    if isinstance(error, Interrupted):
        screen.say(str(error))
        return
    for line in str(error).splitlines():
        screen.say(f"error: {line}")
    if as_json:
        kind = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        print(json.dumps({"error": kind}), file=screen.out)


def exit_code_of(command: Callable[[], int | None], as_json: bool = False) -> int:
    """Run a command; an error becomes one message and its exit code."""
    try:
        return command() or 0
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except PipelineError as error:
        failed = error
    except (PermissionError, NotADirectoryError) as error:  # of a folder, not of an object store
        where = error.filename2 or error.filename or "the output"
        failed = ConfigError(f"{where}: {why(error)}; give a folder that you may read and write")
    except Exception as error:
        failed = _unexpected(error)
    _report(Screen(), failed, as_json)
    return failed.exit_code
