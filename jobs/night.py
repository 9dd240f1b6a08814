"""One run from start to end, the same for ``dec run`` and for a Ray job."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

import pipeline
from jobs import failure, tracking
from jobs.console import ProgressLog, StageBoard, StageLines, print_night, print_summary
from jobs.session import (
    Screen,
    configured,
    connect_ray,
    keep_to_this_machine,
    own_screen,
    start_ray,
    stop_ray,
    wanted_format,
)
from jobs.tracking import Trackers
from pipeline import logs
from pipeline.artifacts.records import Artifact, fingerprint_of
from pipeline.artifacts.summaries import NightSummary, Summary
from pipeline.config import Config
from pipeline.engine import Context, Execution, StageReached, Stop
from pipeline.errors import ConfigError, GateRefused, Interrupted, LeaseHeld, PipelineError
from pipeline.lake import lease
from pipeline.progress import Watchers
from pipeline.schema import NAME_PATTERN, UNDATED
from pipeline.storage import FoundFile, Store, check_writable, why

log = logging.getLogger(__name__)


def run_night(
    config_path: str,
    *,
    ds: str | None = None,
    run_id: str | None = None,
    overrides: Sequence[str] = (),
    only: str | None = None,
    nightly: bool = False,
    as_json: bool = False,
    in_log: bool = False,
) -> int:
    """Run the pipeline, show what it does, and turn every way to end into an exit code.

    Args:
        config_path: The YAML file.
        ds: Logical date, YYYY-MM-DD; None for a table that has no nights.
        run_id: Names the run; by default it follows from settings and input.
        overrides: ``a.b=value``.
        only: Complete this stage alone.
        nightly: One night of many: fit or not by ``schedule``, with ids that last.
        as_json: Print the result as JSON instead of tables.
        in_log: Show progress as lines of a log, instead of bars on a terminal.

    Returns:
        The exit code.
    """
    listen()
    keep_to_this_machine()
    with own_screen(wanted_format()) as screen:
        attempt: _Attempt | None = None
        failed: PipelineError | None = None
        result: Artifact | None = None
        try:
            config = of_ds(configured(config_path, overrides), checked_ds(ds))
            attempt = _Attempt(config, ds, run_id, screen, nightly=nightly)
            logs.begin(attempt.run_id, pipeline=Path(config_path).stem)
            result = attempt.execute(only, in_log=in_log)
            attempt.overcome()
        except (KeyboardInterrupt, SystemExit, Interrupted):
            if attempt and attempt.lost:
                failed = LeaseHeld(attempt.lost)
                _report(screen, failed, as_json)
            else:
                failed = Interrupted(_how_to_resume(config_path, attempt, ds, overrides))
                screen.say(str(failed))
        except PipelineError as error:
            log.exception("the run ended")
            failed = error
            _report(screen, failed, as_json)
        except Exception as error:
            log.exception("unexpected")
            failed = _unexpected(error, attempt.keep_log() if attempt else None)
            _report(screen, failed, as_json)
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                if attempt and failed:
                    attempt.keep_failure(failed)
            with contextlib.suppress(KeyboardInterrupt):
                if attempt and (failed or result):
                    attempt.tell_end(failed, result)
            with contextlib.suppress(KeyboardInterrupt):
                stop_ray()
            with contextlib.suppress(KeyboardInterrupt):
                if attempt:
                    attempt.keep_log()
            signal.setitimer(signal.ITIMER_REAL, 0)  # what follows has limits of its own
            with contextlib.suppress(KeyboardInterrupt):
                if attempt:
                    attempt.end()
        if failed:
            return failed.exit_code
        assert attempt is not None
        assert result is not None
        if as_json:
            print(json.dumps(result.model_dump(mode="json"), indent=2), file=screen.out)
        elif isinstance(result, NightSummary):
            print_night(result, screen.out)
        elif isinstance(result, Summary):
            print_summary(result, screen.out)
        else:
            print(f"stage {only} is complete in run {attempt.context.run_id}", file=screen.out)
        ended = isinstance(result, (Summary, NightSummary))
        if ended and not as_json and (page := attempt.report()):
            print(f"{'report':<12} {page}", file=screen.out)
        if ended and not as_json and (serves := attempt.served_by()) != attempt.run_id:
            screen.say(f"note: ds {attempt.ds} is served by run {serves} now")
        if isinstance(result, NightSummary) and result.refused:
            return GateRefused.exit_code
    return 0


class _Attempt:
    """One attempt at a run.

    Attributes:
        lost: Who has the lease now, where this attempt lost it; one line.
    """

    def __init__(
        self, config: Config, ds: str | None, run_id: str | None, screen: Screen, *, nightly: bool
    ) -> None:
        # Light work first: what is wrong with config or input shows before Ray starts.
        from pipeline.input.pinning import list_shards

        self.config = config
        self.nightly = nightly
        self.ds = checked_ds(ds)
        files = list_shards(config) if run_id is None else []
        self.run_id = checked_run_id(run_id) or default_run_id(
            config, self.ds, files, nightly=nightly
        )
        self.lake = Store(config.output)
        self.context = Context(self.run_id, self.ds, self.lake)
        self.lost = ""
        self._stop_asked = Stop()
        self._lease: lease.Lease | None = None
        self._named = self._begun = False
        self._screen = screen
        now = datetime.datetime.now(datetime.UTC)
        self._log_path = f"{self.context.run_path}/logs/{now:%Y%m%dT%H%M%S%f}.log"
        self._night = Execution(config, self.context)
        self._trackers = Trackers(
            tracking.Attempt(config, self.run_id, self.ds, self.lake, now),
            on_failure=self._note,
        )

    def execute(self, only: str | None, *, in_log: bool = False) -> Artifact:
        """Run the stages that are not complete."""
        from pipeline.distributed.metrics import RunMetrics
        from pipeline.lake.tables import check_table
        from pipeline.run import nightly, run, stages_of

        try:
            check_writable(self.config.output)
        except OSError as error:
            raise ConfigError(
                f"output={self.config.output} cannot be written: {why(error)}; "
                "give a folder or bucket that you may write to"
            ) from None
        check_table(self.config, self.lake)
        if not self.nightly:
            self._check_no_registry()
        self._check_same_run()
        # As JSON, the log itself is what whoever follows a job reads.
        lines = in_log and self._screen.how == "plain"
        board = StageLines(self._screen.say) if lines else StageBoard(self._screen.err)
        with board, RunMetrics(self.ds, connect_ray) as metrics:
            self.context = Context(
                self.run_id,
                self.ds,
                self.lake,
                Watchers(board, ProgressLog(), metrics, self._trackers),
                start_ray=self._start_ray,
                hold=self._hold,
                stop=self._stop_asked,
                nightly=self.nightly,
                stages_of=stages_of,
            )
            listen(self._stop_asked, self.config.execution.grace_seconds)
            self._night = night = Execution(
                self.config, self.context, only, on_first_work=self._begin
            )
            try:
                return nightly(night) if self.nightly else run(night)
            except StageReached:
                assert night.latest is not None
                return night.latest

    def _hold(self) -> None:
        """Be the only one who works on this ds; a complete run is shown without."""
        if self._lease is not None:
            self._lease.confirm()
            return
        self._lease = lease.take(
            self.lake,
            self.ds,
            f"run {self.run_id}",
            seconds=self.config.execution.lease_seconds,
            on_wait=self._note,
            on_lost=self._stop,
        )
        # From here on this run id is ours: another config or ds with the same one is refused,
        # also where both started at the same time.
        identity = {"run_id": self.run_id, "ds": self.ds, "version": pipeline.__version__}
        self._named = self.lake.create_json(f"{self.context.run_path}/run.json", identity)
        if not self._named:
            self._check_same_run()
        self._trackers.begin()

    def _note(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # the screen is closed, at the very end
            self._screen.say(f"note: {line}")

    def _stop(self, lost: str) -> None:
        """End this attempt as Ctrl-C would: somebody else does its work by now."""
        self.lost = lost
        os.kill(os.getpid(), signal.SIGINT)

    def end(self) -> None:
        """Let the next start of this ds begin at once."""
        if self._lease is None:
            return
        if self._named and not self._begun:  # nothing is there that the run id could stand for
            with contextlib.suppress(OSError, PipelineError):
                self._lease.confirm()
                self.lake.delete([f"{self.context.run_path}/run.json"])
                self.lake.prune(self.context.run_path)
        self._lease.release()

    def _start_ray(self) -> None:
        try:
            start_ray(self.config, on_wait=self._note)
        finally:  # Ray has put handlers of its own in place
            listen(self._stop_asked, self.config.execution.grace_seconds)

    def served_by(self) -> str | None:
        """The run that readers of this ds see now."""
        from pipeline.lake.snapshots import latest_snapshot

        latest = latest_snapshot(self.lake)
        partition = latest.partitions.get(self.ds) if latest else None
        return partition.run_id if partition else None

    def report(self) -> str | None:
        """Where the page for people lies; None where it could not be made."""
        from pipeline.report.making import page_path

        path = page_path(self.run_id)
        return self.lake.locate(path) if self.lake.exists(path) else None

    def _check_no_registry(self) -> None:
        """Ids that count from 0 must not get among those that last."""
        from pipeline.registry.entries import entry_numbers

        if entry_numbers(self.lake):
            raise ConfigError(
                f"output={self.config.output} has nights, whose cluster ids last; dec run numbers "
                "clusters from 0. Use dec nightly, or another output"
            )

    def _check_same_run(self) -> None:
        """A run id stands for one ds and one input, and once published for one set of settings."""
        from pipeline.lake.snapshots import published_by

        path = self.context.run_path
        try:
            before = self.lake.read_json(f"{path}/run.json")
        except FileNotFoundError:
            return
        if before["run_id"] != self.run_id:  # a folder whose names are the same in any case
            raise ConfigError(f"run {self.run_id} is another spelling of run {before['run_id']}")
        if before["ds"] != self.ds:
            raise ConfigError(
                f"run {self.run_id} is for ds {before['ds']}, not {self.ds}; use another --run-id"
            )
        try:
            settings = yaml.safe_load(self.lake.read_bytes(f"{path}/config.yaml"))
        except FileNotFoundError:
            return  # it ended before its first stage was complete
        self._begun = True
        published = self.lake.exists(self.context.stage_path("publish", "done.json"))
        # Killed right after its commit, it is published as well.
        published = published or published_by(self.lake, self.run_id) is not None
        try:
            different = self.config.differences(settings)
        except (ValidationError, PipelineError):
            different = ["settings that this version does not read"]
        if published and different:
            raise ConfigError(
                f"run {self.run_id} is published with other settings ({', '.join(different)}); "
                "use another --run-id"
            )
        if (pinned := settings["source"]["path"]) != self.config.source.path:
            raise ConfigError(
                f"run {self.run_id} has pinned source.path={pinned}, not "
                f"{self.config.source.path}; use another --run-id"
            )

    def _begin(self) -> None:
        """Something of this run is there to stay: say with which settings it was made."""
        config = self.config.to_yaml().encode()
        self.lake.write_bytes(f"{self.context.run_path}/config.yaml", config)
        self._begun = True

    def keep_failure(self, error: PipelineError) -> None:
        """Leave in the run why this attempt failed, if it had begun and the run is its own."""
        if self._begun and self._lease is not None:
            # Exit code and log say it too, and the end is no other where this cannot be written.
            with contextlib.suppress(OSError, PipelineError):
                self._lease.confirm()
                failure.keep(self.context, self._night.stage, error, self._log_path)

    def tell_end(self, error: PipelineError | None, result: Artifact | None) -> None:
        """Let the trackers know how it ended."""
        self._trackers.end(error, self._night.stage, result)

    def overcome(self) -> None:
        """Mark what an earlier attempt failed at as resolved."""
        with contextlib.suppress(OSError, PipelineError):
            failure.resolve(self.lake, self.context.run_path, self._night.stage)

    def keep_log(self) -> str | None:
        """Copy what Ray and the libraries printed into the run; None before the run has begun."""
        if not self._begun:
            return None
        # The run has ended: that its log can't be kept is no news beside that.
        with contextlib.suppress(OSError, PipelineError):
            self.lake.write_bytes(self._log_path, self._screen.kept_log())
        return self.lake.locate(self._log_path)


def run_backfill(
    config_path: str, first: str, last: str, overrides: Sequence[str], *, as_json: bool
) -> int:
    """Do the nights of a range of dates, the oldest first, until one fails.

    Returns:
        The exit code of the night that failed; that of the gate, where it refused a challenger on
        one of them; else 0.
    """
    days: list[str] = []

    def check() -> None:
        start, end = (datetime.date.fromisoformat(checked_ds(ds)) for ds in (first, last))
        if end < start:
            raise ConfigError(f"--from {first} is after --to {last}; give the older date first")
        days.extend(
            (start + datetime.timedelta(days=n)).isoformat() for n in range((end - start).days + 1)
        )

    worst = guarded(check, as_json)
    for ds in days:
        code = run_night(config_path, ds=ds, overrides=overrides, nightly=True, as_json=as_json)
        if code not in (0, GateRefused.exit_code):
            return code
        worst = max(worst, code)
    return worst


def of_ds(config: Config, ds: str) -> Config:
    """The settings of one night: ``{ds}`` in the locations of the source is its date.

    Raises:
        ConfigError: There is a place for a date, and none was given.
    """
    path = config.source.path
    if not any("{ds}" in location for location in ([path] if isinstance(path, str) else path)):
        return config
    if ds == UNDATED:
        raise ConfigError(f"source.path={path} has a place for the date; give --ds YYYY-MM-DD")
    if isinstance(path, str):
        dated: str | list[str] = path.replace("{ds}", ds)
    else:
        dated = [location.replace("{ds}", ds) for location in path]
    return config.model_copy(update={"source": config.source.model_copy(update={"path": dated})})


def checked_ds(ds: str | None) -> str:
    """A logical date, or the name that stands for none.

    Raises:
        ConfigError: It is no date.
    """
    if ds is None:
        return UNDATED
    try:
        if datetime.date.fromisoformat(ds).isoformat() != ds:  # 2026-W05-6 is a date as well
            raise ValueError
    except ValueError:
        raise ConfigError(f"--ds {ds!r} must be a date such as 2026-01-31") from None
    return ds


def checked_run_id(run_id: str | None) -> str | None:
    """A run id that is safe as a folder name.

    Raises:
        ConfigError: It is not.
    """
    if run_id is not None and not re.fullmatch(NAME_PATTERN, run_id):
        raise ConfigError(
            f"--run-id {run_id!r} must be letters, digits, '.', '_' and '-', at most 100 of them, "
            "and start with a letter or digit"
        )
    return run_id


def default_run_id(
    config: Config, ds: str, files: Sequence[FoundFile], *, nightly: bool = False
) -> str:
    """The same for the same settings and input: running again resumes, new data runs anew."""
    listing = [[file.url, file.bytes, file.version] for file in files]
    identity = fingerprint_of([config.result_settings(), ds, listing])[:8]
    return f"{ds}-night-{identity}" if nightly else f"{ds}-{identity}"


def listen(stop: Stop | None = None, grace_seconds: int = 0) -> None:
    """Let Ctrl-C and a scheduler's SIGTERM end the run in the same orderly way.

    Ctrl-C does at once. After SIGTERM, work that heeds ``stop`` has ``grace_seconds`` to end by
    itself; a second signal interrupts it, as it does all other work.
    """

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def leave(*_: object) -> None:
        if stop is None or stop.requested or not stop.heeded:
            interrupt()
        else:
            stop.requested = True
            signal.setitimer(signal.ITIMER_REAL, grace_seconds)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGTERM, leave)


def _unexpected(error: Exception, log_file: str | None = None) -> PipelineError:
    seen = f"; the log is {log_file}" if log_file else ""
    return PipelineError(
        f"{type(error).__name__}: {why(error)}; this is a defect, please report it{seen}"
    )


def _how_to_resume(
    config_path: str, attempt: _Attempt | None, ds: str | None, overrides: Sequence[str]
) -> str:
    if attempt is None:
        return "interrupted before the run began"
    command = "nightly" if attempt.nightly else "run"
    words = [f"dec {command} {config_path} --run-id {attempt.run_id}"]
    words += [f"--ds {ds}"] if ds else []
    words += [f"--set {override!r}" for override in overrides]
    return f"interrupted; what is complete is kept. Resume with: {' '.join(words)}"


def _report(screen: Screen, error: PipelineError, as_json: bool) -> None:
    for line in str(error).splitlines():
        screen.say(f"error: {line}")
    if as_json:
        kind = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        print(json.dumps({"error": kind}), file=screen.out)


def guarded(action: Callable[[], None], as_json: bool = False) -> int:
    """Run a command that needs no Ray; a PipelineError becomes its line and its exit code."""
    try:
        action()
    except PipelineError as error:
        _report(Screen(how=wanted_format()), error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except (
        PermissionError,
        NotADirectoryError,
    ) as error:  # of a folder; a store's are ours already
        where = error.filename2 or error.filename
        refused = ConfigError(
            f"{where or 'the output'}: {why(error)}; give a folder that you may read and write"
        )
        _report(Screen(how=wanted_format()), refused, as_json)
        return refused.exit_code
    except Exception as error:
        _report(Screen(how=wanted_format()), _unexpected(error), as_json)
        return PipelineError.exit_code
    return 0
