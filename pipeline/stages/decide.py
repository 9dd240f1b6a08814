"""decide: whether a run refits, refreshes, or assigns by the champion."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import FeatureColumn, Manifest
from pipeline.artifacts.nights import Action, Champion, NightDecision
from pipeline.artifacts.records import fingerprint_of
from pipeline.bill.records import StageCosts
from pipeline.config import Affects, Config, content_of
from pipeline.engine import Context, stage
from pipeline.errors import InputError, PipelineError
from pipeline.lake.snapshots import latest_snapshot
from pipeline.registry.entries import latest_entry
from pipeline.registry.models import settings_path
from pipeline.runs import RunFolder
from pipeline.schema import UNDATED
from pipeline.storage import Store

log = logging.getLogger(__name__)


@stage(
    "decide",
    version=1,
    settings=content_of("schedule", "gate.max_psi", Affects.MODEL),
    distributed=False,
    cost=lambda _: StageCosts(gets=20, puts=3),
)
def decide(config: Config, context: Context, manifest: Manifest) -> NightDecision:
    """Decide to refit, refresh or assign; a run that is started again keeps its decision."""
    return decision_of(config, context, manifest.features)


def decision_of(
    config: Config, context: Context, features: tuple[FeatureColumn, ...]
) -> NightDecision:
    """Decision for a run with these features; reads a few small files, and writes none.

    Raises:
        InputError: The champion cannot label the rows of a night with an earlier date than its own.
    """
    entry = latest_entry(context.lake)
    champion = entry.champion if entry else None
    unusable = _unusable(context.lake, features, champion) if champion else "there is no champion"
    if context.by_schedule and champion and unusable and _earlier(context.ds, champion.ds):
        raise InputError(
            f"ds {context.ds} cannot be done: {unusable}. A model of its own would "
            "end every cluster of today; give the earlier dates an output of their own"
        )
    action: Action = "refit"
    why = unusable if context.by_schedule else "dec run always fits a new model"
    if context.by_schedule and champion and not unusable:
        action, why = _by_schedule(config, context, champion)
        if action != "assign" and (refused := _refused_lately(config, context)):
            action, why = "assign", f"{refused}; else: {action}, because {why}"
    log.info("action: %s, because %s", action, why)
    return NightDecision(
        action=action,
        why=why,
        entry=entry.number if entry else 0,
        champion=champion,
        usable=not unusable,
    )


def _unusable(lake: Store, features: tuple[FeatureColumn, ...], champion: Champion) -> str:
    """Why the champion cannot label tonight's rows; empty where it can."""
    if champion.reference.features != features:
        return (
            f"champion {champion.model.model_id} was fitted on other features: "
            f"{_named(champion.reference.features)}; tonight's are {_named(features)}"
        )
    model = champion.model
    files = (model.weights, model.centroids, model.scaler, champion.ids, champion.reference.bins)
    for path in (*(file.path for file in files if file), settings_path(model)):
        if not lake.exists(path):
            return f"champion {model.model_id} is not whole: {lake.locate(path)} is gone"
    return ""


def _named(features: Any) -> str:
    shown = [
        (f"{f.name}[{f.width}]" if f.vector else f.name) + (f" ({f.type})" if f.type else "")
        for f in features[:10]
    ]
    return ", ".join(shown) + (f" and {len(features) - 10} more" if len(features) > 10 else "")


def _by_schedule(config: Config, context: Context, champion: Champion) -> tuple[Action, str]:
    schedule = config.schedule
    if _earlier(context.ds, champion.ds):
        return "assign", f"champion {champion.model.model_id} of the later {champion.ds} serves"
    if champion.settings != fingerprint_of(config.fit_settings()):
        return "refit", f"the settings are not those that {champion.model.model_id} was fitted with"
    age = _days(champion.refit_ds, context.ds)
    every = schedule.refit.every_days
    if every is not None and (age is None or age >= every):
        before = "has no date" if age is None else f"was {age} days before"
        return "refit", f"the last refit {before} (schedule.refit.every_days)"
    if schedule.refit.on_drift and (drift := _drift(config, context, champion)):
        return "refit", drift
    age = _days(champion.ds, context.ds)
    every = schedule.refresh.every_days
    if every is not None and (age is None or age >= every):
        old = "has no date" if age is None else f"is {age} days old"
        if champion.model.kind == "dec":
            return "refresh", f"the champion {old} (schedule.refresh.every_days)"
        return "refit", f"the champion {old}, and plain k-means cannot be refreshed"
    return "assign", f"champion {champion.model.model_id} of {champion.ds} serves"


def _earlier(ds: str, other: str) -> bool:
    """Whether a date is before another; a run without a date is neither before nor after."""
    return UNDATED not in (ds, other) and ds < other


def _days(before: str, now: str) -> int | None:
    """Days between logical dates; None where one has no date."""
    if UNDATED in (before, now):
        return None
    return (datetime.date.fromisoformat(now) - datetime.date.fromisoformat(before)).days


def _refused_lately(config: Config, context: Context) -> str:
    """Why no challenger is fitted yet after one was refused; empty where one may be."""
    latest = latest_snapshot(context.lake)
    refused = [
        ds
        for ds, partition in (latest.partitions if latest else {}).items()
        if partition.refused and 0 < (_days(ds, context.ds) or 0) < config.schedule.retry_days
    ]
    return f"the challenger of {max(refused)} was refused (schedule.retry_days)" if refused else ""


def _drift(config: Config, context: Context, champion: Champion) -> str:
    """Drift on the night before from the champion's reference sample, where it exceeds the limit.

    Empty where it does not, or where it is unknown.
    """
    limit = config.gate.max_psi
    latest = latest_snapshot(context.lake)
    ds = latest.before(context.ds) if latest else None
    if limit is None or latest is None or ds is None:
        return ""
    if latest.partitions[ds].model_id != champion.model.model_id:
        return ""  # measured against the sample of another
    try:
        last = RunFolder(context.lake, latest.partitions[ds].run_id).found("assign", Assignments)
    except (OSError, PipelineError) as error:  # no reason for a night to fail
        log.warning("the drift of ds %s is unknown: %s", ds, error)
        return ""
    if last is None or last.max_psi is None or last.max_psi <= limit:
        return ""
    return (
        f"{last.max_psi_feature} of ds {ds} has PSI {last.max_psi:.3f} against the reference "
        f"sample, over gate.max_psi={limit:g}"
    )
