"""``dec tune``: try settings on a sample, without labels, and recommend a config."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import pipeline
from jobs.arguments import checked_ds, checked_run_id, of_ds
from jobs.commands.tune_results import print_result
from jobs.commands.tune_search import run_trials
from jobs.ray_address import check_ray_settings
from jobs.session import (
    Screen,
    configured,
    keep_to_this_machine,
    listen,
    own_screen,
    start_ray,
    stop_ray,
)
from pipeline import logs
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.records import fingerprint_of
from pipeline.config import Config, sized
from pipeline.engine import Context, Execution
from pipeline.errors import ConfigError, Interrupted, NumericalError, TransientError
from pipeline.input.pinning import list_shards
from pipeline.lake import lease
from pipeline.storage import Store, check_writable
from pipeline.tuning.recommendation import recommend
from pipeline.tuning.results import TuneResult
from pipeline.tuning.space import cluster_range, parsed_range
from pipeline.tuning.trials import Study, TrialFolder, Tuning


@dataclass(frozen=True)
class TuneRequest:
    """Options of ``dec tune``, as its help describes them."""

    clusters: str | None
    trials: int
    rows: int
    run_id: str | None
    ds: str | None


def tune_config(
    config_path: str, overrides: Sequence[str], request: TuneRequest, *, as_json: bool = False
) -> None:
    """Run the trials that are left, and print the result of all.

    Raises:
        PipelineError: The tuning stopped; finished trials are kept.
    """
    keep_to_this_machine()  # before anything imports Ray
    # Mistakes in config, input or range show before anything starts.
    check_ray_settings()
    given = configured(config_path, overrides)
    tuner = _Tuner(given, of_ds(given, checked_ds(request.ds)), request)
    listen()
    with own_screen() as screen:
        tuner.screen = screen
        try:
            result = tuner.result()
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a scheduler's SIGTERM
            raise Interrupted(_how_to_resume(config_path, request, tuner.id, overrides)) from None
        finally:
            stop_ray()
        if as_json:
            print(json.dumps(result.to_json(), indent=2), file=screen.out)
        else:
            print_result(result, screen.out)


class _Tuner:
    """One attempt at a tuning."""

    def __init__(self, given: Config, config: Config, request: TuneRequest) -> None:
        if request.clusters is not None:
            parsed_range(request.clusters)  # before the input is listed
        # Pin and sample see a K that the sample is never too small for: trials have their own.
        sampling = config.centroids.model_copy(update={"sample_rows": request.rows})
        self.config = config.model_copy(update={"centroids": sampling})
        # The recommended config is for every date, as the given one is.
        self._given, self._request, self.screen = given, request, Screen()
        files = [[file.url, file.bytes, file.version] for file in list_shards(config)]
        settings = self.config.fit_settings()
        settings |= {"label": config.evaluate.label, "nulls": config.source.nulls}
        bounds = cluster_range(request.clusters, request.rows)
        identity = [settings, files, request.rows, *bounds, pipeline.__version__]
        self._fingerprint = fingerprint_of(identity)
        self.id = checked_run_id(request.run_id) or f"tune-{self._fingerprint[:8]}"
        self.lake = Store(config.output)
        self.folder = TrialFolder(self.lake, self.id)
        # A tuning has no date: its id stands for the ds, and so the lease keeps others off.
        self._context = Context(self.id, self.id, self.lake, start_ray=self._start_ray)

    def result(self) -> TuneResult:
        """Run the trials that are left, and choose; under a lease.

        Raises:
            ConfigError: The output cannot be written, or the id belongs to something else.
            NumericalError: No trial may be recommended.
        """
        check_writable(self.config.output)
        logs.begin(self.id, pipeline="tune")
        known = self.folder.study()
        if known is not None and known.fingerprint != self._fingerprint:
            raise ConfigError(
                f"tuning {self.id} has other settings, input, --clusters or --rows; its trials do "
                "not apply to these. Use another --run-id"
            )
        held = lease.take(
            self.lake,
            self.id,
            f"tuning {self.id}",
            seconds=self.config.execution.lease_seconds,
            on_wait=self._say,
            on_lost=lambda _: os.kill(os.getpid(), signal.SIGINT),
        )
        try:
            return self._tune()
        finally:
            held.release()

    def _tune(self) -> TuneResult:
        manifest, sample = self._pinned_sample()
        low, high = cluster_range(self._request.clusters, sample.rows)
        study = Study(
            id=self.id,
            fingerprint=self._fingerprint,
            min_clusters=low,
            max_clusters=high,
            rows=sample.rows,
        )
        if self.folder.study() != study:
            self.folder.begin(study)
        done, wanted = self.folder.all(), self._request.trials
        requested = max(wanted, self._requested_before())
        if max(len(done), self._requested_before()) < wanted:
            note = f", {len(done)} of them finished before" if done else ""
            self._say(
                f"{wanted} trials on {sample.rows:,} rows, {low} to {high} clusters{note}; results "
                f"in {self.lake.locate(self.folder.path(''))}"
            )
            self._start_ray()
            run = self.config.execution
            threads = max(1, int(run.cpus_per_worker or 1))
            tuning = Tuning(
                sized(self.config, manifest.width, manifest.rows),
                self.folder,
                manifest,
                sample,
                threads,
                run.gpus_per_worker,
            )
            errors = run_trials(tuning, (low, high), wanted, say=self._say)
            if errors:
                self._say(f"{len(errors)} trials ended without a result: {errors[0]}")
            if not self.folder.all():
                reason = errors[0] if errors else "for an unknown reason"
                raise TransientError(
                    f"tune: no trial finished: {reason}; the same command continues"
                )
        trials = self.folder.all()
        found = recommend(trials)
        if found is None:
            reasons = sorted({trial.failure for trial in trials if trial.failure})
            raise NumericalError(
                f"tune: none of {len(trials)} trials may be recommended: "
                f"{'; '.join(reasons) or 'all break a limit on cluster sizes'}. "
                "Try another --clusters, or more --rows"
            )
        result = TuneResult(self._given, self.folder, study, tuple(trials), found, requested)
        result.write()
        return result

    def _requested_before(self) -> int:
        """Trials of a finished search, which may have suggested the same settings twice."""
        try:
            path = self.folder.path("recommendation.json")
            requested = self.lake.read_json(path)["requested_trials"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        return requested if isinstance(requested, int) else 0

    def _pinned_sample(self) -> tuple[Manifest, Sample]:
        """Pin the input and draw the sample, as a run does.

        Both are in the folder of a run of this id that is never published, where ``dec forget``
        finds the rows. ``dec gc`` removes them, and old trials by their own age.
        """
        from pipeline.stages.fit.sample import sample
        from pipeline.stages.pin import pin

        identity = {"run_id": self.id, "ds": self.id, "version": pipeline.__version__}
        path = f"{self._context.run_path}/run.json"
        if not self.lake.create_json(path, identity) and self._context.folder.ds != self.id:
            raise ConfigError(f"--run-id {self.id} is a run, not a tuning; use another --run-id")
        stages = Execution(self.config, self._context)
        manifest = stages.complete(pin)
        return manifest, stages.complete(sample, manifest)

    def _start_ray(self) -> None:
        try:
            start_ray(self.config, on_wait=self._say)
        finally:  # Ray has installed signal handlers of its own
            listen()

    def _say(self, line: str) -> None:
        self.screen.say(f"tune: {line}")


def _how_to_resume(
    config_path: str, request: TuneRequest, tuning_id: str, overrides: Sequence[str]
) -> str:
    words = ["dec", "tune", config_path, "--run-id", tuning_id]
    words += ["--trials", str(request.trials), "--rows", str(request.rows)]
    words += ["--clusters", request.clusters] if request.clusters else []
    words += ["--ds", request.ds] if request.ds else []
    for override in overrides:
        words += ["--set", override]
    return f"interrupted; finished trials are kept. Resume with: {shlex.join(words)}"
