"""``dec plan`` and ``dec check``: inspect config and input without starting Ray."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from jobs.arguments import checked_ds, of_ds
from jobs.commands.bill import notes_on, notes_on_measuring, print_comparison, print_estimate
from jobs.session import configured
from jobs.tables import facts_table
from pipeline.artifacts.inputs import FeatureColumn, LeftOutFiles, QuarantinedShard
from pipeline.artifacts.nights import Action
from pipeline.artifacts.records import Record, StoredFile
from pipeline.bill.cluster import check_fits, cluster_of
from pipeline.bill.comparison import compare, last_comparison, planned
from pipeline.bill.costs import MIB, CostInputs
from pipeline.bill.estimate import estimate
from pipeline.bill.measuring import Measured
from pipeline.bill.measuring import measure as measure_here
from pipeline.bill.records import Estimate
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import BadShard
from pipeline.input.bad_shards import check_bound
from pipeline.input.pinning import PinnedInput, check_enough_rows, known_footers, list_input, pin
from pipeline.input.reading import Reader, manifest_of, pieces_of_shards
from pipeline.input.slices import cut_where_changed
from pipeline.labelling.kept_slices import new_share
from pipeline.lake.snapshots import latest_snapshot
from pipeline.lake.tables import check_table
from pipeline.model.autoencoder import products_here
from pipeline.registry.entries import latest_entry
from pipeline.run import stages_of
from pipeline.schema import UNDATED, assignment_schema
from pipeline.stages.decide import decision_of
from pipeline.storage import Store

# A plan and a check write nothing.
_UNWRITTEN = StoredFile(path="unwritten", sha256="", bytes=0)


class PlannedNight(Record):
    """Planned action of a night, and its reason; see ``NightDecision``."""

    ds: str
    action: Action
    why: str
    # Approximate share of the rows that would be labelled, because their shards are new or changed
    # since the last night. The others are carried over.
    labelled: float


class Plan(Record):
    """What a run would do, and its estimated cost."""

    config: Config
    shards: int
    rows: int
    bytes: int
    wanted_bytes: int
    row_groups: int
    slices: int
    features: tuple[FeatureColumn, ...]
    row_bytes: int  # size of a raw row in memory
    fit_rows: int  # number of rows that training reads
    cached: bool  # whether a worker's share of them fits execution.cache_mib; else passes stream
    worker_mib: int  # estimated memory of a training worker; 0 where nothing is trained
    quarantined: tuple[QuarantinedShard, ...]
    left_out: tuple[LeftOutFiles, ...]  # files of the source that are no shards
    estimate: Estimate  # estimated cost, at most
    # Estimated cost with as many refinement passes as the last published run made.
    typical: Estimate | None
    last_run: str | None
    measured: Measured | None
    night: PlannedNight | None  # planned action of the night; None for a run without a schedule


def show_plan(
    config_path: str,
    overrides: Sequence[str],
    as_json: bool,
    nodes: Mapping[str, Any] | None = None,
    *,
    measure: bool = False,
    ds: str | None = None,
) -> None:
    """Print the plan; its arguments are those of ``make_plan``."""
    config = of_ds(configured(config_path, overrides), checked_ds(ds))
    plan = make_plan(config, nodes, measure=measure, ds=ds)
    if as_json:
        print(json.dumps(plan.model_dump(mode="json"), indent=2))
        return
    console = Console(soft_wrap=True)
    console.print(config.to_yaml(), end="", highlight=False, markup=False)
    table = facts_table()
    columns = ", ".join(
        f.name + (f"[{f.width}]" if f.vector else "") + (f" ({f.type})" if f.type else "")
        for f in plan.features
    )
    width, trains = sum(feature.width for feature in plan.features), plan.worker_mib > 0
    for name, value in (
        ("shards", f"{plan.shards:,} with {plan.row_groups:,} row groups"),
        *(("left out", f"{bad.name}: {bad.reason}") for bad in plan.quarantined),
        *(("left out", str(files)) for files in plan.left_out),
        ("rows", f"{plan.rows:,}" + f", {plan.fit_rows:,} of them to learn from" * trains),
        ("bytes", f"{plan.bytes / MIB:,.1f} MiB, {plan.wanted_bytes / MIB:,.1f} MiB to read"),
        ("features", f"{width:,}: {columns}"),
        ("slices", f"{plan.slices:,} of about {config.execution.target_slice_mib} MiB"),
        *(_about_training(plan) if trains else []),
        *([("night", _in_words(plan.night))] if plan.night else []),
    ):
        table.add_row(name, escape(value))  # names of shards may look like markup
    console.print(table)
    notes = notes_on(plan.estimate, plan.typical, plan.last_run)
    print_estimate(
        console, plan.estimate, notes + (notes_on_measuring(plan.measured) if plan.measured else [])
    )


def _about_training(plan: Plan) -> list[tuple[str, str]]:
    execution = plan.config.execution
    share_mib = plan.fit_rows * plan.row_bytes / execution.workers / MIB
    why = f"{share_mib:,.0f} MiB a worker, execution.cache_mib is {execution.cache_mib:,}"
    return [
        ("passes", f"{'from memory' if plan.cached else 'streamed'}: {why}"),
        ("memory", f"about {plan.worker_mib:,} MiB for each of {execution.workers} workers"),
    ]


def _in_words(night: PlannedNight) -> str:
    words = f"{night.ds}: {night.action}, because {night.why}"
    if night.labelled < 1:
        words += f"; about {night.labelled:.1%} of the rows are labelled, the rest is carried over"
    return words


def show_comparison(config_path: str, overrides: Sequence[str], run_id: str, as_json: bool) -> None:
    """Print the estimate of a run beside its measured times."""
    comparison = compare(Store(configured(config_path, overrides).output), run_id)
    if as_json:
        print(json.dumps(comparison.model_dump(mode="json"), indent=2))
    else:
        print_comparison(Console(soft_wrap=True), comparison)


def make_plan(
    config: Config,
    nodes: Mapping[str, Any] | None = None,
    *,
    measure: bool = False,
    ds: str | None = None,
) -> Plan:
    """Read the footers, and work out what a run would do and cost.

    ``nodes`` are arguments of ``cluster_of``. Without ``ds``, a night is the day after the last,
    where the output has nights or the config a ``schedule``.
    """
    cluster = cluster_of(config.execution, **(nodes or {}))
    check_fits(cluster, config.execution)
    pinned = _pinned(config, all_footers=False)
    night = _planned_night(config, pinned, ds)
    action, labelled = (night.action, night.labelled) if night else ("refit", 1.0)
    manifest = manifest_of(config, pinned, _UNWRITTEN)
    products = products_here(config.model.precision)
    run = CostInputs(config, manifest, cluster, products, action, labelled)
    last, stages = last_comparison(Store(config.output)), stages_of(action)
    measured = measure_here(config, pinned, stages_of("refit")) if measure else None
    found = planned(stages, run, last, measured)
    trained = [stage for stage in found.stages if stage.stage in ("pretrain", "refine")]
    passes = last.refine_passes if last and trained else None
    typical = None
    if passes is not None and passes < run.refine_passes:
        fewer, factors = replace(run, passes=passes), found.factors
        typical = estimate(stages, fewer, factors=factors, rates_from=found.rates)
    return Plan(
        config=config,
        shards=manifest.shard_count,
        rows=manifest.rows,
        bytes=manifest.bytes,
        wanted_bytes=manifest.wanted_bytes,
        row_groups=manifest.row_groups,
        slices=manifest.slice_count,
        features=manifest.features,
        row_bytes=run.row_bytes,
        fit_rows=run.fit_rows,
        cached=run.cached,
        worker_mib=max((stage.memory_mib for stage in trained), default=0),
        quarantined=pinned.quarantined,
        left_out=pinned.left_out,
        estimate=found,
        typical=typical,
        last_run=last.run_id if last else None,
        measured=measured,
        night=night,
    )


def _planned_night(config: Config, pinned: PinnedInput, ds: str | None) -> PlannedNight | None:
    lake = Store(config.output)
    entry, latest = latest_entry(lake), latest_snapshot(lake)
    dates = set(latest.partitions if latest else ())
    if entry is not None:  # also where the first night has not published yet
        dates.add(entry.champion.ds)
    dates.discard(UNDATED)
    if ds is None and not dates and "schedule" not in config.model_fields_set:
        return None
    if ds is None and dates:
        last = datetime.date.fromisoformat(max(dates))
        ds = (last + datetime.timedelta(days=1)).isoformat()
    context = Context("plan", checked_ds(ds), lake, by_schedule=True)
    decision = decision_of(config, context, pinned.features)
    labelled = 1.0
    carries = config.assign.incremental and config.lake.format == "parquet"
    if decision.action == "assign" and decision.champion and carries:
        labelled = new_share(lake, pinned.shards, decision.champion.model.model_id)
    return PlannedNight(
        ds=checked_ds(ds), action=decision.action, why=decision.why, labelled=labelled
    )


def check_input(
    config_path: str,
    overrides: Sequence[str],
    footers_only: bool,
    as_json: bool,
    ds: str | None = None,
) -> None:
    """Read everything that a run of a date would read, and print a summary of it.

    Raises:
        PipelineError: The config or the input is wrong.
    """
    config = of_ds(configured(config_path, overrides), checked_ds(ds))
    pinned = _pinned(config, all_footers=True)
    rows = int(pinned.shards["rows"].to_numpy().sum())
    usable, bad = (rows, list(pinned.quarantined)) if footers_only else _usable_rows(config, pinned)
    check_enough_rows(config, usable)
    result = {
        "shards": len(pinned.shards),
        "rows": rows,
        "values_checked": not footers_only,
        "quarantined": [shard.model_dump() for shard in bad],
        "left_out": [files.model_dump() for files in pinned.left_out],
    }
    if not footers_only:
        result["rows_usable"] = usable
    if as_json:
        print(json.dumps(result))
        return
    checked = "schemas only" if footers_only else f"{usable:,} of them with all features"
    for shard in bad:
        print(f"a run would leave out {shard.name}: {shard.reason}")
    for files in pinned.left_out:
        print(f"left out of source.path: {files}")
    print(f"config and input are fine: {len(pinned.shards):,} shards, {rows:,} rows, {checked}")


def _usable_rows(config: Config, pinned: PinnedInput) -> tuple[int, list[QuarantinedShard]]:
    """Read every value; the rows that would be clustered, and all bad shards."""
    reader = Reader.of(config, manifest_of(config, pinned, _UNWRITTEN), carry=True)
    pieces = pieces_of_shards(pinned.shards, config.execution.target_slice_mib)
    usable, bad = 0, list(pinned.quarantined)
    for of_shard in cut_where_changed(pieces, pieces["shard"].to_numpy()):
        try:
            usable += sum(len(block.x_BF) for block in reader.blocks(of_shard))
        except BadShard as error:
            if config.source.on_bad_shard == "error":
                raise
            facts = pinned.shards.select(["name", "url", "version", "bytes", "rows"])
            (row,) = facts.slice(of_shard["shard"][0].as_py(), 1).to_pylist()
            bad.append(QuarantinedShard(**row, stage="check", reason=error.reason))
            check_bound(config, bad, len(pinned.shards) + len(pinned.quarantined))
    return usable, bad


def _pinned(config: Config, *, all_footers: bool) -> PinnedInput:
    known = None if all_footers else known_footers(config, Store(config.output))
    listing = list_input(config)
    pinned = replace(pin(config, listing.shards, known=known), left_out=listing.left_out)
    check_enough_rows(config, int(pinned.shards["rows"].to_numpy().sum()))
    columns = assignment_schema(pinned.carried, config.source.keys)
    check_table(config, Store(config.output), columns)
    return pinned
