"""Search of ``dec tune``: Ray Tune runs trials in parallel, Optuna suggests their settings."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from jobs.commands.tune_results import trial_line
from pipeline import logs
from pipeline.errors import ConfigError
from pipeline.tuning.recommendation import search_score
from pipeline.tuning.space import TrialSettings, choices, first_trials, from_parameters
from pipeline.tuning.trials import Tuning, run_trial


def run_trials(
    tuning: Tuning, clusters: tuple[int, int], wanted: int, *, say: Callable[[str], None]
) -> list[str]:
    """Run trials, as many at a time as fit, until ``wanted`` of them and of earlier ones ended.

    Returns the errors of those without a result.

    Raises:
        ConfigError: Ray Tune or Optuna is not installed.
    """
    # Signals are handled here, and trials keep their own results.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    optuna, OptunaSearch = _optuna()
    from ray import tune

    config, done, run = tuning.config, tuning.folder.all(), tuning.config.execution
    allowed = choices(config, typed=any(c.type for c in tuning.manifest.features))
    searched = {name: values for name, values in allowed.items() if len(values) > 1}
    space = {
        "clusters": optuna.distributions.IntDistribution(*clusters, log=True),
        **{n: optuna.distributions.CategoricalDistribution(v) for n, v in searched.items()},
    }

    def parameters(settings: TrialSettings) -> dict[str, Any]:
        return {name: getattr(settings, name) for name in space}

    known = {trial.settings.key for trial in done}
    first = first_trials(config, *clusters, wanted)
    search = OptunaSearch(
        space=space,
        metric="score",
        mode="max",
        points_to_evaluate=[parameters(s) for s in first if s.key not in known],
        sampler=optuna.samplers.TPESampler(
            # A resumed search would otherwise repeat its first random suggestions.
            seed=(config.seed + len(done)) % 2**32,
            n_startup_trials=len(first),
            constant_liar=True,  # parallel trials: running ones are not suggested again
        ),
    )
    for trial in done:
        search.add_evaluated_point(parameters(trial.settings), search_score(trial))
    where = logs.here()

    def attempt(parameters: dict[str, Any]) -> dict[str, float]:
        from pipeline.distributed.workers import enter

        enter(where)
        trial = run_trial(tuning, from_parameters(parameters, config))
        return {"score": search_score(trial)}

    claim = {"CPU": run.cpus_per_worker or 1}
    if tuning.gpus:
        claim["GPU"] = tuning.gpus
    # Tune's own files are temporary: the trials keep what a resumed search needs.
    with tempfile.TemporaryDirectory(prefix="dec-tune-") as scratch:
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
                failure_config=tune.FailureConfig(max_failures=run.retries),
                callbacks=[_reporter(tuning, len(done), wanted, say)],
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


def _reporter(tuning: Tuning, done: int, wanted: int, say: Callable[[str], None]) -> Any:
    """A callback of Ray Tune that reports each trial when it ends."""
    from ray import tune

    class Reporter(tune.Callback):
        def __init__(self) -> None:
            self.ended = done

        def __reduce__(self) -> Any:  # Tune pickles it for a restore that never happens
            return tune.Callback, ()

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self.ended += 1
            settings = from_parameters(trial.config, tuning.config)
            found = tuning.folder.find(settings)
            text = trial_line(found) if found else f"{settings.clusters} clusters: no result"
            say(f"trial {self.ended} of {wanted}: {text}")

        on_trial_error = on_trial_complete

    return Reporter()
