"""One attempt at a run: its lease, its folder, and orderly cleanup however it ends."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
from collections.abc import Callable

import yaml
from pydantic import ValidationError

import pipeline
from jobs import failure, tracking
from jobs.arguments import checked_ds, checked_run_id, default_run_id
from jobs.console import ProgressLog, StageBoard, StageLines
from jobs.session import Screen, connect_ray, listen, start_ray, stop_ray
from jobs.tracking import Trackers
from pipeline.artifacts.records import Artifact
from pipeline.config import Config
from pipeline.engine import Context, Execution, StageReached, Stop
from pipeline.errors import ConfigError, PipelineError
from pipeline.lake import lease
from pipeline.progress import Watchers
from pipeline.storage import Store, check_writable

log = logging.getLogger(__name__)


class Attempt:
    """One attempt at a run."""

    def __init__(
        self,
        config: Config,
        ds: str | None,
        run_id: str | None,
        screen: Screen,
        *,
        by_schedule: bool,
    ) -> None:
        # Errors in config or input show before Ray starts.
        from pipeline.input.pinning import list_shards

        self.config = config
        self.by_schedule = by_schedule
        self.ds = checked_ds(ds)
        files = list_shards(config) if run_id is None else []
        self.run_id = checked_run_id(run_id) or default_run_id(
            config, self.ds, files, by_schedule=by_schedule
        )
        self.lake = Store(config.output)
        self.context = Context(self.run_id, self.ds, self.lake)
        # Message that names the new holder, if this attempt lost its lease; else empty.
        self.lost = ""
        self._stop_asked = Stop()
        self._lease: lease.Lease | None = None
        self._named = self._begun = False
        self._screen = screen
        now = datetime.datetime.now(datetime.UTC)
        self._log_path = f"{self.context.run_path}/logs/{now:%Y%m%dT%H%M%S%f}.log"
        self._execution = Execution(config, self.context)
        self._trackers = Trackers(
            tracking.Attempt(config, self.run_id, self.ds, self.lake, now), on_failure=self._note
        )

    @property
    def stage(self) -> str:
        """Name of the stage that started last."""
        return self._execution.reached.stage

    def execute(self, only: str | None, *, in_log: bool = False) -> Artifact:
        """Run the incomplete stages; returns the artifact of the last stage."""
        from pipeline.distributed.metrics import RunMetrics
        from pipeline.lake.tables import check_table
        from pipeline.run import run, stages_of

        check_writable(self.config.output)
        check_table(self.config, self.lake)
        self._check_same_run()
        # As JSON, the log lines show the progress already.
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
                by_schedule=self.by_schedule,
                stages_of=stages_of,
            )
            listen(self._stop_asked, self.config.execution.grace_seconds)
            self._execution = Execution(self.config, self.context, only, on_first_work=self._begin)
            try:
                result: Artifact = run(self._execution)
            except StageReached:
                assert self._execution.reached.artifact is not None
                result = self._execution.reached.artifact
        with contextlib.suppress(OSError, PipelineError):  # the failure of an earlier attempt
            failure.resolve(self.lake, self.context.run_path, self.stage)
        return result

    def _hold(self) -> None:
        """Take the lease of this ds; a complete run needs none."""
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
        # Reserves the run id: another config or ds with the same id is refused from here on, even
        # if both started at the same time.
        identity = {
            "run_id": self.run_id,
            "ds": self.ds,
            "by_schedule": self.by_schedule,
            "version": pipeline.__version__,
        }
        self._named = self.lake.create_json(f"{self.context.run_path}/run.json", identity)
        if not self._named:
            self._check_same_run()
        self._trackers.begin()

    def _begin(self) -> None:
        """Save the settings, before the first file of this run that stays."""
        config = self.config.to_yaml().encode()
        self.lake.write_bytes(f"{self.context.run_path}/config.yaml", config)
        self._begun = True

    def _start_ray(self) -> None:
        try:
            start_ray(self.config, on_wait=self._note)
        finally:  # Ray has installed signal handlers of its own
            listen(self._stop_asked, self.config.execution.grace_seconds)

    def _note(self, line: str) -> None:
        with contextlib.suppress(ValueError):  # the screen is closed already
            self._screen.say(f"note: {line}")

    def _stop(self, lost: str) -> None:
        """Interrupt this attempt: another one has its lease."""
        self.lost = lost
        os.kill(os.getpid(), signal.SIGINT)

    def _check_same_run(self) -> None:
        """Refuse a run id of another ds, input or command, or (once published) other settings."""
        from pipeline.lake.snapshots import published_by

        path, another = self.context.run_path, "use another --run-id"
        try:
            before = self.lake.read_json(f"{path}/run.json")
        except FileNotFoundError:
            return
        if before["run_id"] != self.run_id:  # a file system that ignores case
            raise ConfigError(f"run {self.run_id} is another spelling of run {before['run_id']}")
        if before["ds"] != self.ds:
            raise ConfigError(
                f"run {self.run_id} is for ds {before['ds']}, not {self.ds}; {another}"
            )
        if before.get("by_schedule", self.by_schedule) != self.by_schedule:
            command = "dec run" if self.by_schedule else "dec nightly"
            raise ConfigError(f"run {self.run_id} was started by {command}; {another}")
        try:
            settings = yaml.safe_load(self.lake.read_bytes(f"{path}/config.yaml"))
        except FileNotFoundError:
            return  # no stage was completed
        self._begun = True
        published = self.lake.exists(self.context.stage_path("publish", "done.json"))
        # Killed right after its commit, it is published too.
        published = published or published_by(self.lake, self.run_id) is not None
        try:
            different = self.config.differences(settings)
        except (ValidationError, PipelineError):
            different = ["settings that this version does not read"]
        if published and different:
            raise ConfigError(
                f"run {self.run_id} is published with other settings ({', '.join(different)}); "
                f"{another}"
            )
        for name in ("path", "table", "version", "where"):
            pinned, ours = settings["source"].get(name), getattr(self.config.source, name)
            if name in settings["source"] and pinned != ours:
                raise ConfigError(
                    f"run {self.run_id} has pinned source.{name}={pinned}, not {ours}; {another}"
                )

    def close(self, error: PipelineError | None, result: Artifact | None) -> None:
        """Save the error and the log, and release the lease; Ctrl-C skips only the current step."""
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._keep_failure(error),
            lambda: self._trackers.end(error, self.stage, result),
            stop_ray,
            self.keep_log,
            lambda: signal.setitimer(signal.ITIMER_REAL, 0),  # the rest is limited already
            self._release,
        )
        for step in steps:
            with contextlib.suppress(KeyboardInterrupt):
                step()

    def _keep_failure(self, error: PipelineError | None) -> None:
        """Save the error in the run, if this attempt has begun and still has the lease."""
        if error and self._begun and self._lease is not None:
            with contextlib.suppress(OSError, PipelineError):
                self._lease.confirm()
                failure.keep(self.context, self.stage, error, self._log_path)

    def keep_log(self) -> str | None:
        """Copy the log of Ray and the libraries into the run; None before the run has begun."""
        if not self._begun:
            return None
        with contextlib.suppress(OSError, PipelineError):
            self.lake.write_bytes(self._log_path, self._screen.kept_log())
        return self.lake.locate(self._log_path)

    def _release(self) -> None:
        """Release the lease, so that the next start of this ds need not wait."""
        if self._lease is None:
            return
        if self._named and not self._begun:  # nothing was saved: the run id is free again
            with contextlib.suppress(OSError, PipelineError):
                self._lease.confirm()
                self.lake.delete([f"{self.context.run_path}/run.json"])
                self.lake.prune(self.context.run_path)
        self._lease.release()

    def served_by(self) -> str | None:
        """Id of the run that readers of this ds see."""
        from pipeline.lake.snapshots import latest_snapshot

        latest = latest_snapshot(self.lake)
        partition = latest.partitions.get(self.ds) if latest else None
        return partition.run_id if partition else None
