"""The pipeline, from a pinned table to published assignments: its table of contents."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    ClusteringModel,
    Comparison,
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.nights import Action, Identity, NightDecision, Serving, Verdict
from pipeline.artifacts.records import Artifact
from pipeline.artifacts.summaries import Summary
from pipeline.config import sized
from pipeline.engine import Execution, Stage, StageReached
from pipeline.errors import InputError, Interrupted, LeaseHeld, NumericalError, TransientError
from pipeline.stages.assign import assign
from pipeline.stages.decide import decide
from pipeline.stages.describe import describe
from pipeline.stages.explain import explain
from pipeline.stages.fit.evaluate import evaluate
from pipeline.stages.fit.gate import gate
from pipeline.stages.fit.identify import identify
from pipeline.stages.fit.init_centroids import init_centroids
from pipeline.stages.fit.pretrain import pretrain
from pipeline.stages.fit.promote import promote
from pipeline.stages.fit.refine import refine
from pipeline.stages.fit.sample import sample
from pipeline.stages.fit.select import select
from pipeline.stages.fit.warm_start import refreshed, warm_start
from pipeline.stages.pin import pin
from pipeline.stages.publish import publish
from pipeline.stages.report import report
from pipeline.stages.summary import summary

log = logging.getLogger(__name__)

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

_FROM_SCRATCH = (pretrain, init_centroids)
_FIT = (
    *(sample, *_FROM_SCRATCH, warm_start),
    *(refine, evaluate, select, identify, gate, promote),
)
STAGES: tuple[Stage[..., Any], ...] = (
    *(pin, decide, *_FIT),
    *(assign, publish, explain, describe, summary, report),
)
# Stages that a run skips, by its action.
_LEFT_OUT: dict[Action, tuple[Stage[..., Any], ...]] = {
    "refit": (warm_start,),
    "refresh": _FROM_SCRATCH,
    "assign": _FIT,
}


def stages_of(action: Action) -> tuple[Stage[..., Any], ...]:
    """Stages of a run that takes this action, in order."""
    return tuple(stage for stage in STAGES if stage not in _LEFT_OUT[action])


def run(execution: Execution) -> Summary:
    """Publish the cluster of every row, by a new model or by the champion.

    Each line completes a stage, or loads its artifact where an earlier attempt completed it.
    """
    manifest = execution.complete(pin)  # which shards, which version of them, which slices
    decision = execution.complete(decide, manifest)  # refit, refresh, or assign
    _check_only(execution, decision)
    outcome = _outcome(execution, manifest, decision)  # which model labels the rows
    serving, fit = outcome.serving, outcome.fit
    assignments = execution.complete(assign, manifest, serving.champion)  # every row, once
    snapshot = execution.complete(publish, serving, assignments)  # visible, all at once
    explanation = _optional(execution, explain, manifest, serving.champion, assignments)
    description = _optional(execution, describe, serving.champion, assignments, explanation)
    result = execution.complete(
        summary,
        manifest,
        decision,
        serving,
        assignments,
        snapshot,
        fit.autoencoder if fit else None,
        fit.centroids if fit else None,
        fit.refined if fit else None,
        fit.comparison if fit else None,
        outcome.identity,
        outcome.verdict,
    )
    _optional(execution, report, result, explanation, description)  # a page for people
    return result


@dataclass(frozen=True)
class Fit:
    """A new model, with the artifacts that it was made from."""

    sample: Sample
    autoencoder: PretrainedAutoencoder
    centroids: InitialCentroids
    refined: RefinedModel
    comparison: Comparison
    model: ClusteringModel


@dataclass(frozen=True)
class Outcome:
    """The model that labels the rows, and how the fit of a new one ended, if there was one."""

    serving: Serving
    fit: Fit | None = None
    identity: Identity | None = None
    verdict: Verdict | None = None


def _outcome(execution: Execution, manifest: Manifest, decision: NightDecision) -> Outcome:
    champion = decision.champion
    if decision.action == "assign":
        assert champion is not None
        return Outcome(Serving(champion=champion, entry=decision.entry, refused=False))
    try:
        if decision.action == "refit":
            fit = _refit(execution, manifest)
        else:
            fit = _refresh(execution, manifest, decision)
        identity = execution.complete(identify, decision, manifest, fit.sample, fit.model)
    except (NumericalError, TransientError) as error:
        by_schedule = execution.context.by_schedule and execution.only is None
        if champion is None or not decision.usable or not by_schedule:
            raise  # nothing else can label these rows, or a new model was asked for
        log.warning("the %s failed, and the champion serves: %s", decision.action, error)
        return Outcome(
            Serving(champion=champion, entry=decision.entry, refused=True),
            verdict=Verdict(passed=False, rules=(), reason=str(error)),
        )
    verdict = execution.complete(
        gate, decision, manifest, fit.sample, fit.comparison, fit.model, identity
    )
    serving = execution.complete(promote, decision, identity, verdict)  # or the champion stays
    return Outcome(serving, fit, identity, verdict)


def _refit(execution: Execution, manifest: Manifest) -> Fit:
    """Deep Embedded Clustering from random weights (Xie et al. 2016)."""
    execution = execution.under(sized(execution.config, manifest.width, manifest.rows))
    reference = execution.complete(sample, manifest)  # scaler statistics, the reference sample
    autoencoder = execution.complete(pretrain, manifest, reference)  # learns to reconstruct rows
    centroids = execution.complete(init_centroids, manifest, reference, autoencoder)  # k-means
    return _refined(execution, manifest, reference, autoencoder, centroids)


def _refresh(execution: Execution, manifest: Manifest, decision: NightDecision) -> Fit:
    """A few more passes of refinement, from the champion's encoder and centroids."""
    execution = execution.under(refreshed(execution.config))
    reference = execution.complete(sample, manifest)
    warm = execution.complete(warm_start, decision, reference)
    return _refined(execution, manifest, warm.sample, warm.autoencoder, warm.centroids)


def _refined(
    execution: Execution,
    manifest: Manifest,
    reference: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
) -> Fit:
    start = (reference, autoencoder, centroids)
    refined = execution.complete(refine, manifest, *start)  # DEC
    comparison = execution.complete(evaluate, manifest, *start, refined)  # with k-means
    model = execution.complete(select, manifest, *start, refined, comparison)
    return Fit(*start, refined, comparison, model)


def _optional(
    execution: Execution, stage: Stage[P, A], *inputs: P.args, **named: P.kwargs
) -> A | None:
    """Complete a stage after publishing; None where it fails.

    A published run is a success without it; the same run id tries it again.
    """
    try:
        return execution.complete(stage, *inputs, **named)
    except (StageReached, Interrupted, LeaseHeld):
        raise
    except Exception as error:
        if execution.only is not None:
            raise
        log.warning("stage %s failed, and the run goes on without: %s", stage.name, error)
        log.debug("stage %s", stage.name, exc_info=True)
        return None


def _check_only(execution: Execution, decision: NightDecision) -> None:
    """Raise InputError where the one stage to run is none of this run's."""
    if execution.only not in (None, *(stage.name for stage in stages_of(decision.action))):
        raise InputError(
            f"stage {execution.only} does not run in {execution.context.run_id}; its action is "
            f"{decision.action}, because {decision.why}"
        )
