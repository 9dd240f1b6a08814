"""``dec tune``: try settings on a sample, without labels, and recommend a config."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pipeline
from jobs.commands.tune_results import Outcome, print_outcome, write_outcome
from jobs.night import checked_ds, checked_run_id, listen, of_ds
from jobs.session import (
    Screen,
    configured,
    keep_to_this_machine,
    own_screen,
    start_ray,
    stop_ray,
    wanted_format,
)
from pipeline import logs
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.records import fingerprint_of
from pipeline.config import Config
from pipeline.engine import Context, Execution
from pipeline.errors import ConfigError, Interrupted, NumericalError, TransientError
from pipeline.lake import lease
from pipeline.storage import Store, check_writable, why


@dataclass(frozen=True)
class Wish:
    """What the command line asks for.

    Attributes:
        clusters: The range, "5:50"; None for the default.
        trials: To do in all, those of earlier attempts included.
        rows: Of the sample, at most.
        run_id: Names the tuning; None: after what it is of.
        ds: Logical date, where the source has a place for one.
    """

    clusters: str | None
    trials: int
    rows: int
    run_id: str | None
    ds: str | None


def tune_config(
    config_path: str, overrides: Sequence[str], wish: Wish, *, as_json: bool = False
) -> None:
    """Do the trials that are left, and print what all of them say.

    Raises:
        PipelineError: What stopped it; what is done is kept.
    """
    keep_to_this_machine()  # before anything imports Ray
    # Light work first: what is wrong with config, input or range shows before anything starts.
    given = configured(config_path, overrides)
    tuner = _Tuner(given, of_ds(given, checked_ds(wish.ds)), wish)
    listen()
    with own_screen(wanted_format()) as screen:
        tuner.screen = screen
        try:
            outcome = tuner.outcome()
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a scheduler's SIGTERM
            raise Interrupted(_how_to_resume(config_path, wish, tuner.id, overrides)) from None
        finally:
            stop_ray()
        if as_json:
            print(json.dumps(outcome.to_json(), indent=2), file=screen.out)
        else:
            print_outcome(outcome, screen.out)


class _Tuner:
    """One attempt at a tuning.

    Attributes:
        id: Of the tuning.
        screen: Where it tells how it goes on.
    """

    def __init__(self, given: Config, config: Config, wish: Wish) -> None:
        from pipeline.input.pinning import list_shards
        from pipeline.tuning.space import cluster_range, parsed_range
        from pipeline.tuning.trials import TrialFolder

        if wish.clusters is not None:
            parsed_range(wish.clusters)  # before the input is listed
        # As large as the range may be, whatever the config's own K is; pin and sample do not care.
        rows = wish.rows
        self._range: Callable[[int], tuple[int, int]] = lambda n: cluster_range(wish.clusters, n)
        fewest, most = self._range(rows)
        self.config = _sampled(config, rows)
        # What is recommended is for every date, as what was given is.
        self._given, self._wish, self.screen = given, wish, Screen()
        files = [[file.url, file.bytes, file.version] for file in list_shards(config)]
        identity = [_searched(self.config), files, rows, fewest, most, pipeline.__version__]
        self._fingerprint = fingerprint_of(identity)
        self.id = checked_run_id(wish.run_id) or f"tune-{self._fingerprint[:8]}"
        self.lake = Store(config.output)
        self.folder = TrialFolder(self.lake, self.id)
        # Of no date: the ds is the tuning, and so is the lease that keeps others off.
        self._context = Context(self.id, self.id, self.lake, start_ray=self._start_ray)

    def outcome(self) -> Outcome:
        """Do what is left, and choose; nobody else does the same meanwhile."""
        try:
            check_writable(self.config.output)
        except OSError as error:
            raise ConfigError(
                f"output={self.config.output} cannot be written: {why(error)}; "
                "give a folder or bucket that you may write to"
            ) from None
        logs.begin(self.id, pipeline="tune")
        self._check_same()
        held = lease.take(
            self.lake,
            self.id,
            f"tuning {self.id}",
            seconds=self.config.execution.lease_seconds,
            on_wait=self._say,
            on_lost=lambda _: os.kill(os.getpid(), signal.SIGINT),
        )
        try:
            return self._tuned()
        finally:
            held.release()

    def _tuned(self) -> Outcome:
        from pipeline.tuning.recommendation import recommend

        manifest, sample = self._sampled()
        fewest, most = self._range(sample.rows)
        self._begin(sample, fewest, most)
        done = self.folder.all()
        if max(len(done), self._asked_before()) < self._wish.trials:
            note = f", {len(done)} of them done before" if done else ""
            self._say(
                f"{self._wish.trials} trials on {sample.rows:,} rows, {fewest} to {most} clusters"
                f"{note}; results in {self.lake.locate(self.folder.path(''))}"
            )
            self._start_ray()
            self._search(manifest, sample, fewest, most)
        trials = self.folder.all()
        found = recommend(trials)
        if found is None:
            reasons = {trial.failed for trial in trials if trial.failed}
            raise NumericalError(
                f"tune: none of {len(trials)} trials may be recommended: "
                f"{'; '.join(sorted(reasons)) or 'all break a limit on cluster sizes'}. "
                "Try another --clusters, or more --rows"
            )
        outcome = Outcome(
            config=self._given,
            folder=self.folder,
            rows=sample.rows,
            fewest=fewest,
            most=most,
            trials=tuple(trials),
            found=found,
            asked=max(self._wish.trials, self._asked_before()),
        )
        write_outcome(outcome)
        return outcome

    def _asked_before(self) -> int:
        """Trials of a search that came to its end: a suggestion that came twice is there once."""
        try:
            asked = self.lake.read_json(self.folder.path("recommendation.json"))["asked"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        return asked if isinstance(asked, int) else 0

    def _check_same(self) -> None:
        """An id that was given by hand stands for one question."""
        study = self.folder.study()
        if study is not None and study.fingerprint != self._fingerprint:
            raise ConfigError(
                f"tuning {self.id} is of other settings, input, --clusters or --rows; its trials "
                "say nothing about these. Use another --run-id"
            )

    def _begin(self, sample: Sample, fewest: int, most: int) -> None:
        from pipeline.tuning.trials import Study

        study = Study(
            id=self.id,
            fingerprint=self._fingerprint,
            fewest=fewest,
            most=most,
            rows=sample.rows,
        )
        if self.folder.study() != study:
            self.folder.begin(study)

    def _sampled(self) -> tuple[Manifest, Sample]:
        """Pin the input and draw the sample, as a run does; read once, whatever is tried.

        Both lie in the folder of a run of this id that is never published, where ``dec forget``
        finds the rows, and ``dec gc`` removes them; it removes old trials by their own age.
        """
        from pipeline.stages.fit.sample import sample
        from pipeline.stages.pin import pin

        identity = {"run_id": self.id, "ds": self.id, "version": pipeline.__version__}
        path = f"{self._context.run_path}/run.json"
        if not self.lake.create_json(path, identity) and self.lake.read_json(path)["ds"] != self.id:
            raise ConfigError(f"--run-id {self.id} is a run, not a tuning; use another --run-id")
        night = Execution(self.config, self._context)
        manifest = night.complete(pin)
        return manifest, night.complete(sample, manifest)

    def _start_ray(self) -> None:
        try:
            start_ray(self.config, on_wait=self._say)
        finally:  # Ray has put handlers of its own in place
            listen()

    def _say(self, line: str) -> None:
        self.screen.say(f"tune: {line}")

    def _search(self, manifest: Manifest, sample: Sample, fewest: int, most: int) -> None:
        """Ray Tune runs the trials that are left, as many at a time as fit; Optuna suggests."""
        from pipeline.tuning.trials import Tuning

        run = self.config.execution
        cpus = run.cpus_per_worker or 1
        tuning = Tuning(
            self.config, self.folder, manifest, sample, max(1, int(cpus)), run.gpus_per_worker
        )
        with tempfile.TemporaryDirectory(prefix="dec-tune-") as scratch:
            errors = _search(
                tuning,
                (fewest, most),
                self._wish.trials,
                claim={"CPU": cpus, **({"GPU": run.gpus_per_worker} if tuning.gpus else {})},
                scratch=scratch,
                say=self._say,
            )
        if errors:
            self._say(f"{len(errors)} trials ended without a result: {errors[0]}")
        if not self.folder.all():
            raise TransientError(
                f"tune: no trial came to an end: {errors[0] if errors else 'no reason is known'}; "
                "the same command continues"
            )


def _search(
    tuning: Any,
    clusters: tuple[int, int],
    wanted: int,
    *,
    claim: dict[str, float],
    scratch: str,
    say: Callable[[str], None],
) -> list[str]:
    """Run trials until so many have ended, those from before included.

    Ray Tune's own files go to ``scratch``: what is needed to go on, the trials keep themselves.

    Returns:
        What went wrong with those that left no result.
    """
    # Ctrl-C and SIGTERM are ours; and what Tune would log, trials log themselves.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    optuna, OptunaSearch = _optuna()
    from ray import tune

    from pipeline.tuning.recommendation import searched_score
    from pipeline.tuning.space import choices, first_trials, from_parameters
    from pipeline.tuning.trials import run_trial

    config, done = tuning.config, tuning.folder.all()
    of_each = choices(config, typed=any(c.type for c in tuning.manifest.features))
    searched = {name: values for name, values in of_each.items() if len(values) > 1}
    space = {
        "clusters": optuna.distributions.IntDistribution(*clusters, log=True),
        **{n: optuna.distributions.CategoricalDistribution(v) for n, v in searched.items()},
    }

    def parameters(settings: Any) -> dict[str, Any]:
        return {name: getattr(settings, name) for name in space}

    known = {trial.settings.key for trial in done}
    first = first_trials(config, *clusters, wanted)
    search = OptunaSearch(
        space=space,
        metric="score",
        mode="max",
        points_to_evaluate=[parameters(s) for s in first if s.key not in known],
        sampler=optuna.samplers.TPESampler(
            # Resumed, it would begin with the random suggestions that it has made already.
            seed=(config.seed + len(done)) % 2**32,
            n_startup_trials=len(first),
            constant_liar=True,  # several at a time: what is under way is not suggested again
        ),
    )
    for trial in done:
        search.add_evaluated_point(parameters(trial.settings), searched_score(trial))
    where = logs.here()

    def attempt(parameters: dict[str, Any]) -> dict[str, float]:
        from pipeline.distributed.workers import enter

        enter(where)
        trial = run_trial(tuning, from_parameters(parameters, config))
        return {"score": searched_score(trial)}

    watch = _watch(tuning, len(done), wanted, say)
    results = tune.Tuner(
        tune.with_resources(attempt, claim),
        tune_config=tune.TuneConfig(
            search_alg=search,
            metric="score",
            mode="max",
            num_samples=wanted - len(done),
            reuse_actors=True,  # else each trial would import torch again
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.execution.retries),
            callbacks=[watch],
        ),
    ).fit()
    return [" ".join(str(error).split())[-300:] for error in results.errors]


def _optuna() -> tuple[Any, Any]:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise ConfigError(
            f'dec tune needs Ray Tune and Optuna: {error}; pip install "dec-pipeline[tune]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna, OptunaSearch


def _watch(tuning: Any, done: int, wanted: int, say: Callable[[str], None]) -> Any:
    """Tells of each trial when it ends."""
    from ray import tune

    from jobs.commands.tune_results import line_of
    from pipeline.tuning.space import from_parameters

    class Watch(tune.Callback):
        def __init__(self) -> None:
            self.ended = done

        def __reduce__(self) -> Any:  # Tune pickles it for a restore that never comes
            return tune.Callback, ()

        def _tell(self, parameters: dict[str, Any]) -> None:
            self.ended += 1
            settings = from_parameters(parameters, tuning.config)
            trial = tuning.folder.find(settings)
            text = line_of(trial) if trial else f"{settings.clusters} clusters: no result"
            say(f"trial {self.ended} of {wanted}: {text}")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._tell(trial.config)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self._tell(trial.config)

    return Watch()


def _sampled(config: Config, rows: int) -> Config:
    """The config that pin and sample see: so many rows, and no K that they could be too few for."""
    centroids = config.centroids.model_copy(update={"sample_rows": rows})
    return config.model_copy(update={"centroids": centroids})


def _searched(config: Config) -> dict[str, Any]:
    """What decides a trial's result beside its own settings."""
    settings = config.fit_settings()
    return settings | {"label": config.evaluate.label, "nulls": config.source.nulls}


def _how_to_resume(config_path: str, wish: Wish, tuning_id: str, overrides: Sequence[str]) -> str:
    words = [f"dec tune {config_path} --run-id {tuning_id} --trials {wish.trials}"]
    words += [f"--rows {wish.rows}"]
    words += [f"--clusters {wish.clusters}"] if wish.clusters else []
    words += [f"--ds {wish.ds}"] if wish.ds else []
    words += [f"--set {override!r}" for override in overrides]
    return f"interrupted; finished trials are kept. Resume with: {' '.join(words)}"
