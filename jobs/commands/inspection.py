"""``dec plan`` and ``dec check``: look at config and input without starting Ray."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.commands.bill import notes_on, notes_on_measuring, print_comparison, print_estimate
from jobs.night import checked_ds, of_ds
from jobs.session import configured
from pipeline.artifacts.estimates import Estimate
from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.nights import Action
from pipeline.bill.comparison import compare, last_calibration, planned
from pipeline.bill.estimate import Tonight, estimate, most_passes
from pipeline.bill.measuring import Measured
from pipeline.bill.measuring import measure as measure_here
from pipeline.bill.rates import Cluster, InputFacts
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import BadShard
from pipeline.input.bad_shards import check_bound
from pipeline.input.pinning import (
    PinnedInput,
    check_enough_rows,
    known_footers,
    list_shards,
    pin,
)
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.input.slices import by_slice
from pipeline.labelling.kept_slices import new_share
from pipeline.lake.snapshots import latest_snapshot
from pipeline.lake.tables import check_table
from pipeline.model.autoencoder import products_here
from pipeline.registry.entries import latest_entry
from pipeline.schema import UNDATED, assignment_schema
from pipeline.stages.decide import decision_of
from pipeline.storage import Store

_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        config: The resolved settings.
        shards: Parquet files.
        rows: Rows in them.
        bytes: Their size.
        wanted_bytes: Size of the columns that are read.
        row_groups: Row groups with rows.
        slices: Units of work of the assign stage.
        features: Feature columns, globs resolved.
        row_bytes: A raw row in memory.
        fit_rows: Rows that training learns from.
        cached: Whether a worker's share of them fits execution.cache_mib; else passes stream.
        worker_mib: Estimated memory of a training worker; 0 where nothing is trained.
        quarantined: Bad shards that the run would leave out; ``shards`` are the others.
        estimate: What it takes, at most.
        as_last: The same with as many passes of refinement as the last published run made.
        last_run: That run; None where there is none.
        measured: Figures of ``--measure``; None without it.
        night: What the night does, and why; None: it is a run of its own.
    """

    config: dict[str, Any]
    shards: int
    rows: int
    bytes: int
    wanted_bytes: int
    row_groups: int
    slices: int
    features: list[dict[str, Any]]
    row_bytes: int
    fit_rows: int
    cached: bool
    worker_mib: int
    quarantined: list[dict[str, Any]]
    estimate: Estimate
    as_last: Estimate | None
    last_run: str | None
    measured: Measured | None
    night: PlannedNight | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        estimates = {"estimate": self.estimate, "as_last": self.as_last}
        shown = {name: value and _json_of(value) for name, value in estimates.items()}
        if self.measured:
            factors = {name: f.model_dump() for name, f in self.measured.factors.items()}
            shown["measured"] = vars(self.measured) | {"factors": factors}
        if self.night:
            shown["night"] = vars(self.night)
        return vars(self) | shown


@dataclass(frozen=True)
class PlannedNight:
    """What a night would do; see ``NightDecision``.

    Attributes:
        ds: Its logical date.
        action: See there.
        why: The reason.
        labelled: Share of the rows that would be labelled, about: those of shards that the night
            before did not have as they are. The others are carried over.
    """

    ds: str
    action: Action
    why: str
    labelled: float


@dataclass(frozen=True)
class Nodes:
    """The cluster that a plan is for; None leaves it to the settings, or is this machine."""

    count: int | None = None
    cpus: float | None = None
    gpus: float | None = None


def show_plan(
    config_path: str,
    overrides: Sequence[str],
    as_json: bool,
    nodes: Nodes | None = None,
    *,
    measure: bool = False,
    ds: str | None = None,
) -> None:
    """Print the plan."""
    config = of_ds(configured(config_path, overrides), checked_ds(ds))
    plan = make_plan(config, nodes or Nodes(), measure=measure, ds=ds)
    if as_json:
        print(json.dumps(plan.to_json(), indent=2))
        return
    console = Console(soft_wrap=True)
    config = Config.model_validate(plan.config)
    console.print(config.to_yaml(), end="", highlight=False, markup=False)
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    columns = ", ".join(
        (f"{f['name']}[{f['width']}]" if f["vector"] else f["name"])
        + (f" ({f['type']})" if "type" in f else "")
        for f in plan.features
    )
    width = sum(feature["width"] for feature in plan.features)
    training = plan.worker_mib > 0
    for name, value in (
        ("shards", f"{plan.shards:,} with {plan.row_groups:,} row groups"),
        *(("left out", f"{bad['name']}: {bad['reason']}") for bad in plan.quarantined),
        ("rows", f"{plan.rows:,}" + (f", {plan.fit_rows:,} of them to learn from" * training)),
        ("bytes", f"{plan.bytes / _MIB:,.1f} MiB, {plan.wanted_bytes / _MIB:,.1f} MiB to read"),
        ("features", f"{width:,}: {columns}"),
        ("slices", f"{plan.slices:,} of about {config.execution.target_slice_mib} MiB"),
        *(_of_training(plan, config) if plan.worker_mib else []),
        *([("night", _in_words(plan.night))] if plan.night else []),
    ):
        table.add_row(name, escape(value))  # names of shards may look like markup
    console.print(table)
    notes = notes_on(plan.estimate, plan.as_last, plan.last_run)
    if plan.measured:
        notes += notes_on_measuring(plan.measured)
    print_estimate(console, plan.estimate, notes)


def _of_training(plan: Plan, config: Config) -> list[tuple[str, str]]:
    share_mib = plan.fit_rows * plan.row_bytes / config.execution.workers / _MIB
    why = f"{share_mib:,.0f} MiB a worker, execution.cache_mib is {config.execution.cache_mib:,}"
    workers = config.execution.workers
    return [
        ("passes", f"{'from memory' if plan.cached else 'streamed'}: {why}"),
        ("memory", f"about {plan.worker_mib:,} MiB for each of {workers} workers"),
    ]


def _in_words(night: PlannedNight) -> str:
    words = f"{night.ds}: {night.action}, because {night.why}"
    if night.labelled < 1:
        words += f"; about {night.labelled:.1%} of the rows are labelled, the rest is carried over"
    return words


def show_comparison(config_path: str, overrides: Sequence[str], run_id: str, as_json: bool) -> None:
    """Print what a run was thought to take, beside what it took."""
    config = configured(config_path, overrides)
    comparison = compare(Store(config.output), run_id)
    if as_json:
        print(
            json.dumps(
                {
                    "run_id": run_id,
                    "planned": _json_of(comparison.planned),
                    "took": [time.model_dump() for time in comparison.took],
                    "refine_passes": comparison.refine_passes,
                    "factors": {n: f.model_dump() for n, f in comparison.factors.items()},
                    "stored": comparison.stored,
                },
                indent=2,
            )
        )
        return
    print_comparison(Console(soft_wrap=True), comparison)


def _json_of(found: Estimate) -> dict[str, Any]:
    """With the sums that are no fields."""
    values = found.model_dump(mode="json")
    for stage, whole in zip(values["stages"], found.stages, strict=True):
        stage["seconds"] = whole.seconds
    values["seconds"] = found.seconds
    if found.money:
        values["money"]["total"] = found.money.total
    return values


def make_plan(
    config: Config, nodes: Nodes | None = None, *, measure: bool = False, ds: str | None = None
) -> Plan:
    """Read the footers and work out what a run would do, and what it takes.

    What a night would do where the output has nights already, or the config a ``schedule``: that
    of ``ds``, else of the day after the last.
    """
    nodes = nodes or Nodes()
    cluster = Cluster.of(
        config.execution, nodes=nodes.count, cpus_per_node=nodes.cpus, gpus_per_node=nodes.gpus
    )
    cluster.check_fits(config.execution)
    pinned = _pinned(config, all_footers=False)
    rows = int(pinned.shards["rows"].to_numpy().sum())
    pieces = pieces_of_shards(pinned.shards, config.execution.target_slice_mib)
    width = sum(column.width for column in pinned.features)
    facts = InputFacts(
        rows=rows,
        wanted_bytes=int(
            pinned.shards["row_group_bytes"].combine_chunks().flatten().to_numpy().sum()
        ),
        shards=len(pinned.shards),
        row_groups=len(pieces),
        slices=len(by_slice(pieces)),
        width=width,
        row_bytes=width * np.dtype(pinned.dtype).itemsize,
    )
    fit_rows = min(rows, config.source.fit_rows or rows)
    share_bytes = fit_rows * facts.row_bytes / config.execution.workers
    last = last_calibration(Store(config.output))
    products = products_here(config.model.precision)
    measured = measure_here(config, pinned) if measure else None
    night = _planned_night(config, pinned, ds)
    tonight = Tonight(night.action, night.labelled) if night else None
    found = planned(config, cluster, facts, products, last, measured, tonight)
    typical, trains = None, tonight is None or tonight.action != "assign"
    passes = last.refine_passes if last and trains else None
    if passes is not None and passes < most_passes(config, tonight):
        typical = estimate(
            config,
            facts,
            cluster,
            products=products,
            factors=found.factors,
            rates_from=found.rates,
            refine_passes=passes,
            tonight=tonight,
        )
    return Plan(
        config=config.model_dump(mode="json"),
        shards=facts.shards,
        rows=rows,
        bytes=int(pinned.shards["bytes"].to_numpy().sum()),
        wanted_bytes=facts.wanted_bytes,
        row_groups=facts.row_groups,
        slices=facts.slices,
        features=[feature.model_dump() for feature in pinned.features],
        row_bytes=facts.row_bytes,
        fit_rows=fit_rows,
        cached=share_bytes <= config.execution.cache_mib * _MIB,
        worker_mib=max(
            (s.memory_mib for s in found.stages if s.stage in ("pretrain", "refine")), default=0
        ),
        quarantined=[shard.model_dump() for shard in pinned.quarantined],
        estimate=found,
        as_last=typical,
        last_run=last.run_id if last else None,
        measured=measured,
        night=night,
    )


def _planned_night(config: Config, pinned: PinnedInput, ds: str | None) -> PlannedNight | None:
    lake = Store(config.output)
    entry = latest_entry(lake)
    if entry is None and "schedule" not in config.model_fields_set:
        return None
    latest = latest_snapshot(lake)
    dates = sorted(date for date in (latest.partitions if latest else {}) if date != UNDATED)
    if entry is not None:  # also where the first night has not published yet
        dates = sorted([*dates, entry.champion.ds])
    if ds is None and dates:
        last = datetime.date.fromisoformat(dates[-1])
        ds = (last + datetime.timedelta(days=1)).isoformat()
    decision = decision_of(config, Context("plan", checked_ds(ds), lake), pinned.features)
    labelled = 1.0
    carries = config.assign.incremental and config.lake.format == "parquet"
    if decision.action == "assign" and decision.champion and carries:
        labelled = new_share(lake, pinned.shards, decision.champion.model.model_id)
    return PlannedNight(checked_ds(ds), decision.action, decision.why, labelled)


def check_input(
    config_path: str, overrides: Sequence[str], footers_only: bool, as_json: bool
) -> None:
    """Read everything that a run would read, and say that it is fine."""
    config = configured(config_path, overrides)
    pinned = _pinned(config, all_footers=True)
    rows = int(pinned.shards["rows"].to_numpy().sum())
    usable, bad = (rows, list(pinned.quarantined)) if footers_only else _usable_rows(config, pinned)
    check_enough_rows(config, usable)
    result = {
        "shards": len(pinned.shards),
        "rows": rows,
        "values_checked": not footers_only,
        "quarantined": [shard.model_dump() for shard in bad],
    }
    if not footers_only:
        result["rows_usable"] = usable
    if as_json:
        print(json.dumps(result))
        return
    checked = "schemas only" if footers_only else f"{usable:,} of them with all features"
    for shard in bad:
        print(f"a run would leave out {shard.name}: {shard.reason}")
    print(f"config and input are fine: {len(pinned.shards):,} shards, {rows:,} rows, {checked}")


def _usable_rows(config: Config, pinned: PinnedInput) -> tuple[int, list[QuarantinedShard]]:
    """Rows that would be clustered, every value of them looked at, and all bad shards."""
    reader = Reader(
        features=pinned.features,
        dtype=pinned.dtype,
        nulls=config.source.nulls,
        carried=pinned.carried,
        shard_keys=not config.source.keys,
    )
    pieces = pieces_of_shards(pinned.shards, config.execution.target_slice_mib)
    usable, bad = 0, list(pinned.quarantined)
    number = pieces["shard"].to_numpy()
    edges = np.flatnonzero(np.diff(number, prepend=-1, append=-1))
    for start, end in itertools.pairwise(edges):  # a shard at a time
        try:
            usable += sum(len(b.x_BF) for b in reader.blocks(pieces.slice(start, end - start)))
        except BadShard as error:
            if config.source.on_bad_shard == "error":
                raise
            facts = pinned.shards.select(["name", "url", "version", "bytes", "rows"])
            (row,) = facts.slice(number[start], 1).to_pylist()
            bad.append(QuarantinedShard(**row, stage="check", reason=error.reason))
            check_bound(config, bad, len(pinned.shards) + len(pinned.quarantined))
    return usable, bad


def _pinned(config: Config, *, all_footers: bool) -> PinnedInput:
    known = None if all_footers else known_footers(config, Store(config.output))
    pinned = pin(config, list_shards(config), known=known)
    check_enough_rows(config, int(pinned.shards["rows"].to_numpy().sum()))
    columns = assignment_schema(pinned.carried, config.source.keys)
    check_table(config, Store(config.output), columns)
    return pinned
