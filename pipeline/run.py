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
from pipeline.artifacts.summaries import NightSummary, Summary
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
from pipeline.stages.night_summary import night_summary
from pipeline.stages.pin import pin
from pipeline.stages.publish import publish
from pipeline.stages.report import report
from pipeline.stages.summary import summary

log = logging.getLogger(__name__)

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

STAGES = (
    pin,
    sample,
    pretrain,
    init_centroids,
    refine,
    evaluate,
    select,
    assign,
    publish,
    explain,
    describe,
    summary,
    report,
)
_SHARPENED_AND_JUDGED = (refine, evaluate, select, identify, gate, promote)
# What a night does between its decision and assign.
FIT_STAGES: dict[Action, tuple[Stage[..., Any], ...]] = {
    "refit": (sample, pretrain, init_centroids, *_SHARPENED_AND_JUDGED),
    "refresh": (sample, warm_start, *_SHARPENED_AND_JUDGED),
    "assign": (),
}
NIGHT_STAGES = (
    *(pin, decide, sample, pretrain, init_centroids, warm_start, *_SHARPENED_AND_JUDGED),
    *(assign, publish, explain, describe, night_summary, report),
)


def stages_of(action: Action | None) -> tuple[Stage[..., Any], ...]:
    """Stages of a night that does this, in their order; None: of ``run``."""
    if action is None:
        return STAGES
    return (pin, decide, *FIT_STAGES[action], *NIGHT_STAGES[-6:])


def run(night: Execution) -> Summary:
    """Cluster the table and publish the cluster of every row.

    Each line completes a stage, or loads what it left when an earlier attempt completed it.
    """
    manifest = night.complete(pin)  # which shards, which version of them, which slices
    fit = fit_anew(night, manifest)
    assignments = night.complete(assign, manifest, fit.model)  # every row, once
    snapshot = night.complete(publish, fit.model, assignments)  # visible to readers, all at once
    about = after_publish(night, explain, manifest, fit.model, assignments)  # what clusters are
    told = after_publish(night, describe, manifest, fit.trained[1], fit.model, assignments, about)
    result = night.complete(summary, *fit.trained, fit.comparison, fit.model, assignments, snapshot)
    after_publish(night, report, result, about, told)  # a page for people
    return result


def after_publish(
    night: Execution, stage: Stage[P, A], *inputs: P.args, **named: P.kwargs
) -> A | None:
    """Complete a stage that only says more of what readers have by now; None where it fails.

    A night that is published is a success without it; the same run id tries it again.
    """
    try:
        return night.complete(stage, *inputs, **named)
    except (StageReached, Interrupted, LeaseHeld):
        raise
    except Exception as error:
        if night.only is not None:
            raise
        log.warning("stage %s failed, and the run goes on without: %s", stage.name, error)
        log.debug("stage %s", stage.name, exc_info=True)
        return None


@dataclass(frozen=True)
class Fit:
    """A model, and how it came about."""

    trained: tuple[Manifest, Sample, PretrainedAutoencoder, InitialCentroids, RefinedModel]
    comparison: Comparison
    model: ClusteringModel


def fit_anew(night: Execution, manifest: Manifest) -> Fit:
    """Deep Embedded Clustering from random weights (Xie et al. 2016)."""
    reference = night.complete(sample, manifest)  # scaler statistics, the reference sample
    autoencoder = night.complete(pretrain, manifest, reference)  # learns to reconstruct the rows
    centroids = night.complete(init_centroids, manifest, reference, autoencoder)  # k-means
    return _refined(night, manifest, reference, autoencoder, centroids)


def fit_on(night: Execution, manifest: Manifest, decision: NightDecision) -> Fit:
    """A few passes of refinement more, from the champion's encoder and centroids."""
    night.config = refreshed(night.config)
    reference = night.complete(sample, manifest)
    warm = night.complete(warm_start, decision, reference)
    return _refined(night, manifest, warm.sample, warm.autoencoder, warm.centroids)


def _refined(
    night: Execution,
    manifest: Manifest,
    reference: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
) -> Fit:
    dec = night.complete(refine, manifest, reference, autoencoder, centroids)  # DEC
    trained = (manifest, reference, autoencoder, centroids, dec)
    comparison = night.complete(evaluate, *trained)  # with k-means, by the same rule
    return Fit(trained, comparison, night.complete(select, *trained, comparison))


def nightly(night: Execution) -> NightSummary:
    """One night of many: most label what is new with the champion, some fit a challenger.

    Cluster ids mean what they meant last night, and the table gets its partition also where the
    challenger is refused.
    """
    manifest = night.complete(pin)  # what did not change keeps its slices
    decision = night.complete(decide, manifest)  # refit, refresh or assign
    _check_only(night, decision)
    challenge = _challenge(night, manifest, decision)
    serving, champion = challenge.serving, challenge.serving.champion
    assignments = night.complete(assign, manifest, champion.model, champion)
    snapshot = night.complete(publish, champion.model, assignments, serving)
    about = after_publish(night, explain, manifest, champion.model, assignments)
    of_model = (manifest, champion.reference.sample, champion.model)
    told = after_publish(night, describe, *of_model, assignments, about, champion)
    result = night.complete(
        night_summary,
        manifest,
        decision,
        serving,
        assignments,
        snapshot,
        challenge.fit.comparison if challenge.fit else None,
        challenge.identity,
        challenge.verdict,
        *(challenge.fit.trained[2:] if challenge.fit else ()),
    )
    after_publish(night, report, result, about, told)
    return result


def _check_only(night: Execution, decision: NightDecision) -> None:
    """Refuse to do one stage alone that this night does not have."""
    of_fits = {stage.name for stages in FIT_STAGES.values() for stage in stages}
    own = {stage.name for stage in FIT_STAGES[decision.action]}
    if night.only in of_fits - own:
        raise InputError(
            f"stage {night.only} is none of night {night.context.ds}: what it does is "
            f"{decision.action}, since {decision.why}"
        )


@dataclass(frozen=True)
class Challenge:
    """Who serves, and what became of the challenger, where there was one."""

    serving: Serving
    fit: Fit | None = None
    identity: Identity | None = None
    verdict: Verdict | None = None


def _challenge(night: Execution, manifest: Manifest, decision: NightDecision) -> Challenge:
    champion = decision.champion
    if decision.action == "assign":
        assert champion is not None
        return Challenge(Serving(champion=champion, entry=decision.entry, refused=False))
    try:
        if decision.action == "refit":
            fit = fit_anew(night, manifest)
        else:
            fit = fit_on(night, manifest, decision)
        reference = fit.trained[1]
        identity = night.complete(identify, decision, manifest, reference, fit.model)  # lasting ids
    except (NumericalError, TransientError) as error:
        if champion is None or not decision.usable or night.only is not None:
            raise  # nothing else can label these rows, or nobody asked for that
        log.warning("the %s failed, and the champion serves: %s", decision.action, error)
        verdict = Verdict(passed=False, rules=(), reason=str(error))
        serving = Serving(champion=champion, entry=decision.entry, refused=True)
        return Challenge(serving, verdict=verdict)
    verdict = night.complete(
        gate, decision, manifest, reference, fit.comparison, fit.model, identity
    )
    serving = night.complete(promote, decision, identity, verdict)  # or the champion stays
    return Challenge(serving, fit, identity, verdict)
