"""One run from start to end, the same for ``dec run`` and for a Ray job."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

import pipeline
from jobs.console import StageBoard, print_summary
from jobs.session import Screen, own_screen, start_ray, stop_ray
from pipeline.artifacts import Artifact, Summary, fingerprint_of
from pipeline.config import Config, load_config
from pipeline.engine import Context, Execution, StageReached
from pipeline.errors import ConfigError, PipelineError
from pipeline.schema import UNDATED
from pipeline.storage import FoundFile, Store, check_writable, why

log = logging.getLogger(__name__)

_SLICE_SIZE = "execution.target_slice_mib"  # decides which rows share a part file

INTERRUPTED = 130  # the shell's code for a process that SIGINT ended


def run_night(
    config_path: str,
    *,
    ds: str | None = None,
    run_id: str | None = None,
    overrides: Sequence[str] = (),
    only: str | None = None,
    as_json: bool = False,
) -> int:
    """Run the pipeline, show what it does, and turn every way to end into an exit code.

    Args:
        config_path: The YAML file.
        ds: Logical date, YYYY-MM-DD; None for a table that has no nights.
        run_id: Names the run; by default it follows from settings and input.
        overrides: ``a.b=value``.
        only: Complete this stage alone.
        as_json: Print the result as JSON instead of tables.

    Returns:
        The exit code.
    """
    listen()
    with own_screen() as screen:
        attempt: _Attempt | None = None
        try:
            config = load_config(config_path, overrides)
            attempt = _Attempt(config, ds, run_id)
            result = attempt.execute(screen, only)
        except (KeyboardInterrupt, SystemExit):
            _say(screen, _how_to_resume(config_path, attempt, ds, overrides))
            return INTERRUPTED
        except PipelineError as error:
            log.exception("the run ended")
            _report(screen, error, as_json)
            return error.exit_code
        except Exception as error:
            log.exception("unexpected")
            kept = attempt.keep_log(screen) if attempt else None
            _report(screen, _unexpected(error, kept), as_json)
            return PipelineError.exit_code
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                stop_ray()
            if attempt:
                attempt.keep_log(screen)
        if as_json:
            print(json.dumps(result.model_dump(mode="json"), indent=2), file=screen.out)
        elif isinstance(result, Summary):
            print_summary(result, screen.out)
            if (serves := attempt.served_by()) != attempt.run_id:
                _say(screen, f"note: ds {attempt.ds} is served by run {serves} now")
        else:
            print(f"stage {only} is complete in run {attempt.context.run_id}", file=screen.out)
    return 0


class _Attempt:
    """One attempt at a run."""

    def __init__(self, config: Config, ds: str | None, run_id: str | None) -> None:
        # Light work first: what is wrong with config or input shows before Ray starts.
        from pipeline.lake.pinning import list_shards

        self.config = config
        self.ds = checked_ds(ds)
        files = list_shards(config) if run_id is None else []
        self.run_id = checked_run_id(run_id) or default_run_id(config, self.ds, files)
        self.lake = Store(config.output)
        self.context = Context(self.run_id, self.ds, self.lake)
        self._begun = False
        self._log_path = ""

    def execute(self, screen: Screen, only: str | None) -> Artifact:
        """Run the stages that are not complete."""
        from pipeline.run import run

        try:
            check_writable(self.config.output)
        except OSError as error:
            raise ConfigError(
                f"output={self.config.output} cannot be written: {why(error)}; "
                "give a folder or bucket that you may write to"
            ) from None
        self._check_same_run()
        with StageBoard(screen.err) as board:
            self.context = Context(
                self.run_id, self.ds, self.lake, board, start_ray=self._start_ray
            )
            night = Execution(self.config, self.context, only, on_first_work=self._begin)
            try:
                return run(night)
            except StageReached:
                assert night.latest is not None
                return night.latest

    def _start_ray(self) -> None:
        start_ray(self.config)
        listen()  # Ray has put handlers of its own in place

    def served_by(self) -> str | None:
        """The run that readers of this ds see now."""
        from pipeline.lake.snapshots import latest_snapshot

        latest = latest_snapshot(self.lake)
        partition = latest.partitions.get(self.ds) if latest else None
        return partition.run_id if partition else None

    def _check_same_run(self) -> None:
        """A run id stands for one ds, and once published for one set of settings."""
        try:
            before = self.lake.read_json(f"{self.context.run_path}/run.json")
            settings = yaml.safe_load(self.lake.read_bytes(f"{self.context.run_path}/config.yaml"))
        except FileNotFoundError:
            return
        self._begun = True
        if before["ds"] != self.ds:
            raise ConfigError(
                f"run {self.run_id} is for ds {before['ds']}, not {self.ds}; use another --run-id"
            )
        published = self.lake.exists(self.context.stage_path("publish", "done.json"))
        now = self.config.model_dump(mode="json")
        if published and (different := sorted(_differences(settings, now))):
            raise ConfigError(
                f"run {self.run_id} is published with other settings ({', '.join(different)}); "
                "use another --run-id"
            )

    def _begin(self) -> None:
        """Leave the first trace of this run: who it is and with which settings."""
        path = self.context.run_path
        identity = {"run_id": self.run_id, "ds": self.ds, "version": pipeline.__version__}
        self.lake.write_bytes(f"{path}/config.yaml", self.config.to_yaml().encode())
        self.lake.write_json(f"{path}/run.json", identity)
        self._begun = True

    def keep_log(self, screen: Screen) -> str | None:
        """Copy what Ray and the libraries printed into the run; None before the run has begun."""
        if not self._begun:
            return None
        if not self._log_path:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")
            self._log_path = f"{self.context.run_path}/logs/{now}.log"
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError), open(screen.log, "rb") as file:
            self.lake.write_bytes(self._log_path, file.read())
        return self.lake.locate(self._log_path)


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
    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
        raise ConfigError(
            f"--run-id {run_id!r} must be letters, digits, '.', '_' and '-', at most 100 of them, "
            "and start with a letter or digit"
        )
    return run_id


def default_run_id(config: Config, ds: str, files: Sequence[FoundFile]) -> str:
    """The same for the same settings and input: running again resumes, new data runs anew."""
    listing = [[file.url, file.bytes, file.version] for file in files]
    return f"{ds}-{fingerprint_of([config.result_settings(), ds, listing])[:8]}"


def _differences(before: Any, now: Any, path: str = "") -> Sequence[str]:
    """Result-changing settings whose values differ."""
    if path == "output" or (path.startswith("execution.") and path != _SLICE_SIZE):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        names = {*before, *now}
        deeper = (
            _differences(before.get(n), now.get(n), f"{path}.{n}" if path else n) for n in names
        )
        return [name for names in deeper for name in names]
    return [path] if before != now else []


def listen() -> None:
    """Let Ctrl-C and a scheduler's SIGTERM end the run in the same orderly way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


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
    words = [f"dec run {config_path} --run-id {attempt.run_id}"]
    words += [f"--ds {ds}"] if ds else []
    words += [f"--set {override!r}" for override in overrides]
    return f"interrupted; what is complete is kept. Resume with: {' '.join(words)}"


def _report(screen: Screen, error: PipelineError, as_json: bool) -> None:
    for line in str(error).splitlines():
        _say(screen, f"error: {line}")
    if as_json:
        kind = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        print(json.dumps({"error": kind}), file=screen.out)


def _say(screen: Screen, line: str) -> None:
    print(line, file=screen.err)


def guarded(action: Callable[[], None], as_json: bool = False) -> int:
    """Run a command that needs no Ray; a PipelineError becomes its line and its exit code."""
    try:
        action()
    except PipelineError as error:
        _report(Screen(), error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        _report(Screen(), _unexpected(error), as_json)
        return PipelineError.exit_code
    return 0
