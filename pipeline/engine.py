"""The one mechanism behind every stage: run it once, leave a marker, skip it next time.

A stage's marker is written last and holds the stage's fingerprint: its version, the settings that
change its result and the fingerprints of the artifacts it consumed. Work is skipped only while
that fingerprint matches, never because a file merely exists.
"""

from __future__ import annotations

import logging
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pydantic import ValidationError

from pipeline import logs
from pipeline.artifacts.nights import Action
from pipeline.artifacts.records import Artifact, StoredFile, fingerprint_of, store_file, utc_now
from pipeline.artifacts.summaries import StageTime
from pipeline.bill.records import StageCosts
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.progress import Progress, Watchers, figures
from pipeline.runs import Marker, RunFolder
from pipeline.storage import Store

log = logging.getLogger(__name__)

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)


@dataclass
class Stop:
    """Request to checkpoint and exit, and whether the running work heeds it."""

    requested: bool = False  # whether this attempt should save a checkpoint and end
    # Whether the running work checks ``requested`` about every second; other work has nothing to
    # save and may be interrupted at once.
    heeded: bool = False


@dataclass(frozen=True)
class Context:
    """A run's ids, its output, and its callbacks."""

    run_id: str  # id of the run; a retry keeps it
    ds: str  # logical date that the assignments are published for
    lake: Store
    progress: Progress = field(default_factory=Watchers)
    start_ray: Callable[[], None] = lambda: None  # called before the first stage that works on Ray
    # Called before each stage that has work to do, and before its result becomes visible; raises
    # where another attempt works on the same ds.
    hold: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)
    # Whether ``config.schedule`` decides on a fit and the gate judges the new model (``dec
    # nightly``); else a new model is always fitted and serves (``dec run``).
    by_schedule: bool = False
    # Returns the stages of a run that takes this action; for its cost estimate.
    stages_of: Callable[[Action], Sequence[Stage[..., Any]]] = lambda _: ()
    # Duration of each completed stage, in order.
    times: list[StageTime] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, with readers of its records."""
        return RunFolder(self.lake, self.run_id)

    @property
    def run_path(self) -> str:
        """Path of the run's folder, below the output."""
        return self.folder.path

    def stage_path(self, stage: str, name: str = "") -> str:
        """Path of a stage's folder, or of a file in it, below the output."""
        return self.folder.stage_path(stage, name)

    def store(self, path: str, content: bytes) -> StoredFile:
        """Write a file of an artifact."""
        return store_file(self.lake, path, content)


@dataclass(frozen=True)
class Stage(Generic[P, A]):
    """A step of the pipeline."""

    name: str
    version: int  # number that is raised when the same inputs give another result than before
    settings: Callable[[Config], Any]  # settings that change its result, as JSON values
    distributed: bool  # whether it works on Ray, which is started only for work to do there
    # ``run(config, context, *inputs) -> artifact``.
    run: Callable[Concatenate[Config, Context, P], A]
    cost: Callable[[Any], StageCosts] = lambda _: StageCosts()

    @property
    def artifact_type(self) -> type[A]:
        """Type of its artifact, from the return annotation."""
        return typing.cast(type[A], typing.get_type_hints(self.run)["return"])

    def fingerprint(self, config: Config, inputs: tuple[Artifact | None, ...]) -> str:
        """Digest of the work: with an equal fingerprint it need not be done again."""
        return fingerprint_of(
            {
                "stage": self.name,
                "version": self.version,
                "settings": self.settings(config),
                "inputs": [artifact and artifact.fingerprint for artifact in inputs],
            }
        )


def stage(
    name: str,
    *,
    version: int,
    settings: Callable[[Config], Any] = lambda _: {},
    distributed: bool,
    cost: Callable[[Any], StageCosts] = lambda _: StageCosts(),
) -> Callable[[Callable[Concatenate[Config, Context, P], A]], Stage[P, A]]:
    """Make a function ``run(config, context, *inputs) -> artifact`` a stage."""
    return lambda run: Stage(name, version, settings, distributed, run, cost)


class StageReached(Exception):
    """Internal: the one stage to run is complete."""


@dataclass
class Reached:
    """How far an execution has come."""

    stage: str = ""  # name of the latest stage that began
    artifact: Artifact | None = None  # artifact of the latest stage that completed
    worked: bool = False  # whether any stage had work to do and completed it


@dataclass(frozen=True)
class Execution:
    """One attempt at a run."""

    config: Config
    context: Context
    only: str | None = None  # name of the one stage to run; those before it must be complete
    # Called when the first stage with work to do is done, before its marker.
    on_first_work: Callable[[], None] = lambda: None
    # Progress; executions under other settings share it.
    reached: Reached = field(default_factory=Reached)

    def under(self, config: Config) -> Execution:
        """The same attempt, with other settings for some of its stages."""
        return replace(self, config=config)

    def complete(self, stage: Stage[P, A], *inputs: P.args, **named: P.kwargs) -> A:
        """The stage's artifact: loaded where its marker matches, else made and marked.

        Raises:
            InputError: ``only`` names a later stage and this one is not complete.
            TypeError: An input has a name. Only those by position are part of the fingerprint.
        """
        if named:
            raise TypeError(f"stage {stage.name}: give {', '.join(named)} by position")
        self.reached.stage = stage.name
        artifacts = typing.cast(tuple[Artifact | None, ...], inputs)
        fingerprint = stage.fingerprint(self.config, artifacts)
        done = self._done(stage, fingerprint)
        logs.enter_stage(stage.name)
        self.context.progress.stage_started(stage.name)
        if done is None and self.only not in (None, stage.name):
            again = " --nightly" * self.context.by_schedule
            raise InputError(
                f"stage {self.only} needs stage {stage.name}, which is not complete in run "
                f"{self.context.run_id} with these settings; run "
                f"`dec stage {stage.name}{again}` first"
            )
        marker, artifact = done or self._work(stage, fingerprint, *inputs, **named)
        self.context.progress.measured(stage.name, 0, figures(vars(artifact)))
        self.context.progress.stage_finished(stage.name, marker.seconds, reused=done is not None)
        self.context.times.append(StageTime(stage=stage.name, seconds=marker.seconds))
        self.reached.artifact = artifact
        if self.only == stage.name:
            raise StageReached
        return artifact

    def _work(
        self, stage: Stage[P, A], fingerprint: str, *inputs: P.args, **named: P.kwargs
    ) -> tuple[Marker, A]:
        self.context.hold()
        log.info("run %s stage %s: started", self.context.run_id, stage.name)
        if stage.distributed:
            self.context.start_ray()
        started = time.monotonic()
        artifact = stage.run(self.config, self.context, *inputs, **named)
        if not self.reached.worked:
            self.on_first_work()
            self.reached.worked = True
        marker = Marker(
            stage=stage.name,
            fingerprint=fingerprint,
            seconds=round(time.monotonic() - started, 3),
            finished_at=utc_now(),
            artifact=artifact.model_dump(mode="json"),
        )
        path = self.context.stage_path(stage.name, "done.json")
        self.context.lake.write_json(path, marker.model_dump(mode="json"))
        log.info(
            "run %s stage %s: complete in %.1f s", self.context.run_id, stage.name, marker.seconds
        )
        return marker, artifact

    def _done(self, stage: Stage[P, A], fingerprint: str) -> tuple[Marker, A] | None:
        marker = self.context.folder.marker(stage.name)
        if marker is None or marker.fingerprint != fingerprint:
            return None
        try:
            return marker, stage.artifact_type.model_validate(marker.artifact)
        except ValidationError:  # of another version: do the work again
            log.warning("run %s stage %s: marker cannot be read", self.context.run_id, stage.name)
            return None
