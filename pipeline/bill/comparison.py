"""The estimate beside what a run took, and what the next estimate learns from that."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from pipeline.artifacts.estimates import Estimate, StageFactor
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.summaries import NightSummary, StageTime, Summary
from pipeline.bill.estimate import Tonight, estimate, most_passes
from pipeline.bill.measuring import Measured
from pipeline.bill.rates import Cluster, InputFacts
from pipeline.config import Config
from pipeline.errors import InputError, PipelineError
from pipeline.lake.snapshots import read_snapshot, snapshot_files
from pipeline.model.autoencoder import products_here
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Below this, a stage's time says more about the machine's mood than about a rate.
_LEAST_SECONDS = 0.5
# A factor beyond this is a run that was disturbed, or resumed: no rate.
_MOST = 20.0
_LOOKED_AT = 5  # snapshots, from the newest, for one whose run left its figures


@dataclass(frozen=True)
class Calibration:
    """What an earlier run of the same output tells.

    Attributes:
        run_id: Of that run.
        factors: See ``Estimate``.
        refine_passes: That its refinement made; None on a night that refined nothing.
    """

    run_id: str
    factors: dict[str, StageFactor]
    refine_passes: int | None


@dataclass(frozen=True)
class Comparison:
    """A run's stages as planned, and as they were.

    Attributes:
        run_id: Of the run.
        planned: Before the work.
        took: By the markers of its stages.
        refine_passes: That it made, as above; the plan has those that it may make.
        factors: That would have made the plan right.
        stored: Whether the run itself kept its plan; else it was made now, with today's rates.
    """

    run_id: str
    planned: Estimate
    took: tuple[StageTime, ...]
    refine_passes: int | None
    factors: dict[str, StageFactor]
    stored: bool


def planned(
    config: Config,
    cluster: Cluster,
    facts: InputFacts,
    products: str,
    last: Calibration | None,
    measured: Measured | None = None,
    tonight: Tonight | None = None,
) -> Estimate:
    """The estimate, with what the last run told and what was measured here, which comes first."""
    factors, words = dict(last.factors) if last else {}, []
    if measured:
        words.append(f"measured here on {measured.rows:,} rows")
        for stage, found in measured.factors.items():
            factors[stage] = factors.get(stage, StageFactor()).model_copy(
                update={"work": found.work}
            )
    if last:
        words.append(f"calibrated by run {last.run_id}")
    words.append("defaults, not measured here" if not words else "defaults for the rest")
    return estimate(
        config,
        facts,
        cluster,
        products=products,
        factors=factors,
        rates_from=", ".join(words),
        tonight=tonight,
    )


def planned_before(
    config: Config,
    lake: Store,
    run_id: str,
    manifest: Manifest,
    products: str,
    tonight: Tonight | None = None,
) -> Estimate | None:
    """What a run that is over was thought to take; None where that cannot be said.

    Its own figures do not count; what the runs before it told does.
    """
    try:
        last, cluster = last_calibration(lake, before=run_id), Cluster.running(config.execution)
        facts = InputFacts.of(manifest)
        return planned(config, cluster, facts, products, last, tonight=tonight)
    except Exception:  # it is published: that it has no bill is no reason to fail
        log.warning("no estimate", exc_info=True)
        return None


def last_calibration(lake: Store, *, before: str | None = None) -> Calibration | None:
    """What the newest published run of an output tells; None where there is none.

    Args:
        lake: The output.
        before: A run that does not count.
    """
    try:
        numbers = sorted(snapshot_files(lake), reverse=True)[:_LOOKED_AT]
    except (OSError, PipelineError):
        return None
    for number in numbers:
        try:
            run_id = read_snapshot(lake, number).run_id
            if run_id != before:
                found = compare(lake, run_id)
                return Calibration(run_id, found.factors, found.refine_passes)
        except (OSError, PipelineError):  # removed by now, or of another version
            continue
    return None


def compare(lake: Store, run_id: str) -> Comparison:
    """A run's plan and what it took.

    Raises:
        InputError: The run is not complete, or of a version that this one cannot read.
    """
    path = f"runs/{run_id}"
    try:
        content = lake.read_json(f"{path}/metrics.json")
        summary: Summary | NightSummary
        if "action" in content:
            summary = NightSummary.model_validate(content)
        else:
            summary = Summary.model_validate(content)
        manifest = Manifest.model_validate(lake.read_json(f"{path}/manifest.json"))
        config = Config.model_validate(yaml.safe_load(lake.read_bytes(f"{path}/config.yaml")))
    except FileNotFoundError as error:
        raise InputError(
            f"run {run_id}: {error.filename or lake.locate(path)} is not there; give a run that is "
            "complete, from the folder runs/ of the output"
        ) from None
    except (ValueError, yaml.YAMLError):  # of JSON and of pydantic too
        raise InputError(
            f"run {run_id} in {lake.url} is of a version that this one cannot read"
        ) from None
    facts = InputFacts.of(manifest)
    plan, tonight = summary.estimate, tonight_of(summary)
    products: str = products_here(config.model.precision)
    if isinstance(summary, Summary):
        products = summary.products
    made = None
    if summary.refine_updates is not None:
        most = most_passes(config, tonight)
        made = passes_made(config, facts.rows, summary.refine_updates, most)
    if plan is None:
        cluster = Cluster.of(config.execution)
        plan = estimate(config, facts, cluster, products=products, tonight=tonight)
    done = estimate(
        config,
        facts,
        Cluster.of(
            config.execution,
            nodes=plan.nodes,
            cpus_per_node=plan.cpus_per_node,
            gpus_per_node=plan.gpus_per_node,
        ),
        products=plan.products,
        factors=plan.factors,
        refine_passes=made,
        tonight=tonight,
    )
    return Comparison(
        run_id=run_id,
        planned=plan,
        took=summary.stages,
        refine_passes=made,
        factors=calibrated(done, {time.stage: time.seconds for time in summary.stages}),
        stored=summary.estimate is not None,
    )


def tonight_of(summary: Summary | NightSummary) -> Tonight | None:
    """What a night did; None of a run of its own."""
    if isinstance(summary, Summary):
        return None
    rows = summary.rows_labelled + summary.rows_carried
    return Tonight(summary.action, summary.rows_labelled / rows if rows else 1.0)


def passes_made(config: Config, rows: int, updates: int, most: int) -> int:
    """Passes, of the most that it may make, of a refinement that updated its target so often."""
    fit_rows = min(rows, config.source.fit_rows or rows)
    every = config.refine.update_interval_rows or fit_rows
    return min(most, math.ceil(updates * every / max(1, fit_rows)))


def calibrated(done: Estimate, took: Mapping[str, float]) -> dict[str, StageFactor]:
    """Factors that would have made an estimate right.

    The difference goes to the larger part of a stage, and to both where the stage took less than
    its fixed part: one figure cannot tell two.

    Args:
        done: Of the work that was done.
        took: Seconds of each stage.
    """
    factors = dict(done.factors)
    for stage in done.stages:
        seconds = took.get(stage.stage, 0.0)
        if max(seconds, stage.seconds) < _LEAST_SECONDS or not seconds or not stage.seconds:
            continue  # no factor makes something of nothing
        old = factors.get(stage.stage, StageFactor())
        fixed, work = stage.fixed_seconds, stage.work_seconds
        if seconds < fixed:  # both parts were too large
            share = seconds / (fixed + work)
            change = {"fixed": _within(old.fixed * share), "work": _within(old.work * share)}
        elif work >= fixed:
            change = {"work": _within(old.work * max(seconds - fixed, seconds / 10) / work)}
        else:
            change = {"fixed": _within(old.fixed * max(seconds - work, seconds / 10) / fixed)}
        factors[stage.stage] = old.model_copy(update=change)
    return factors


def _within(factor: float) -> float:
    return round(min(_MOST, max(1 / _MOST, factor)), 4)
