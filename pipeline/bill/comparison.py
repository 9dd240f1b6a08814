"""The estimate of a run beside its measured times, and what the next estimate learns from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Action
from pipeline.artifacts.records import Record
from pipeline.artifacts.summaries import StageTime
from pipeline.bill.cluster import running_cluster
from pipeline.bill.costs import CostInputs
from pipeline.bill.estimate import DEFAULTS, estimate
from pipeline.bill.measuring import Measured
from pipeline.bill.records import Estimate, StageFactor
from pipeline.config import Config
from pipeline.engine import Context, Stage
from pipeline.errors import InputError, PipelineError
from pipeline.lake.snapshots import read_snapshot, snapshot_files
from pipeline.runs import RunFolder
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Shorter times depend more on the machine's other load than on a rate.
_MIN_SECONDS = 0.5
# A larger factor comes from a run that was disturbed or resumed.
_MAX_FACTOR = 20.0
_SNAPSHOTS = 5  # from the newest, to find a run whose summary can be read


class Comparison(Record):
    """Estimated and measured times of a run."""

    run_id: str
    planned: Estimate
    took: tuple[StageTime, ...]
    # Number of passes that refinement made; None where nothing was refined. The estimate has those
    # that it might make.
    refine_passes: int | None
    # Corrections of the rates that would have made the estimate right.
    factors: dict[str, StageFactor]


def planned(
    stages: Sequence[Stage[..., Any]],
    run: CostInputs,
    last: Comparison | None,
    measured: Measured | None = None,
) -> Estimate:
    """The estimate, calibrated by the last run and by a measurement, which takes precedence."""
    factors, words = dict(last.factors) if last else {}, []
    if measured:
        words.append(f"measured here on {measured.rows:,} rows")
        for stage, found in measured.factors.items():
            fixed = factors.get(stage, StageFactor()).fixed
            factors[stage] = StageFactor(fixed=fixed, work=found.work)
    if last:
        words.append(f"calibrated from run {last.run_id}")
    rates_from = ", ".join([*words, "defaults for the rest"]) if words else DEFAULTS
    return estimate(stages, run, factors=factors, rates_from=rates_from)


def planned_before(
    config: Config,
    context: Context,
    manifest: Manifest,
    products: str,
    action: Action,
    labelled: float = 1.0,
) -> Estimate | None:
    """The estimate of the present run as it was before the work; None where that fails.

    It is calibrated from earlier runs only.
    """
    try:
        stages, cluster = context.stages_of(action), running_cluster(config.execution)
        run = CostInputs(config, manifest, cluster, products, action, labelled)
        last = last_comparison(context.lake, before=context.run_id)
        return planned(stages, run, last) if stages else None
    except Exception:  # the rows are published: a missing estimate is no reason to fail
        log.warning("no estimate", exc_info=True)
        return None


def last_comparison(lake: Store, *, before: str | None = None) -> Comparison | None:
    """The comparison of the newest published run but ``before``; None where there is none."""
    try:
        numbers = sorted(snapshot_files(lake), reverse=True)[:_SNAPSHOTS]
    except (OSError, PipelineError):
        return None
    for number in numbers:
        try:
            run_id = read_snapshot(lake, number).run_id
            if run_id != before:
                return compare(lake, run_id)
        except (OSError, PipelineError):  # removed by now, or of another version
            continue
    return None


def compare(lake: Store, run_id: str) -> Comparison:
    """Compare the estimate that a run kept with the measured times of its stages.

    Raises:
        InputError: The run is not complete, kept no estimate, or is of another version.
    """
    summary = RunFolder(lake, run_id).read_summary()
    plan = summary.estimate
    if plan is None:
        raise InputError(f"run {run_id} in {lake.url} kept no estimate; give another run")
    made = _passes_made(plan, summary.refine_updates)
    took = {time.stage: time.seconds for time in summary.stages}
    return Comparison(
        run_id=run_id,
        planned=plan,
        took=summary.stages,
        refine_passes=made,
        factors=calibrated(plan, took, made),
    )


def _passes_made(plan: Estimate, updates: int | None) -> int | None:
    """Passes of a refinement that updated its target so often, teaching included.

    It measures once more than that.
    """
    refine = next((stage for stage in plan.stages if stage.stage == "refine"), None)
    if updates is None or refine is None or refine.measuring_passes < 2:
        return None
    refining = refine.passes - refine.teaching_passes
    made = math.ceil(updates * refining / (refine.measuring_passes - 1))
    return refine.teaching_passes + min(refining, made)


def calibrated(
    plan: Estimate, took: Mapping[str, float], refine_passes: int | None = None
) -> dict[str, StageFactor]:
    """Correct the factors of an estimate so that it would have been right.

    The difference goes to the larger part of a stage, and to both where the stage took less than
    its fixed part: one figure cannot tell two. ``refine_passes`` None: refinement made all passes.
    """
    factors = dict(plan.factors)
    for stage in plan.stages:
        fixed, work = stage.fixed_seconds, stage.work_seconds
        if stage.stage == "refine" and refine_passes and stage.passes:
            work *= refine_passes / stage.passes
        seconds, expected = took.get(stage.stage, 0.0), fixed + work
        if max(seconds, expected) < _MIN_SECONDS or not seconds or not expected:
            continue  # no factor makes something of nothing
        new = factors.get(stage.stage, StageFactor()).model_dump()
        if seconds < fixed:  # both parts were too large
            new = {name: factor * seconds / expected for name, factor in new.items()}
        else:
            name, part = ("work", work) if work >= fixed else ("fixed", fixed)
            new[name] *= max(seconds - (expected - part), seconds / 10) / part
        bounded = {n: min(_MAX_FACTOR, max(1 / _MAX_FACTOR, f)) for n, f in new.items()}
        factors[stage.stage] = StageFactor(**{n: round(f, 4) for n, f in bounded.items()})
    return factors
