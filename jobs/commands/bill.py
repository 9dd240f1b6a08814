"""What a run takes, shown: the estimate's table, and the plan beside what it took."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from pipeline.artifacts.estimates import Estimate, StageEstimate
from pipeline.artifacts.summaries import StageTime
from pipeline.progress import duration

if TYPE_CHECKING:  # they import Ray, which must not come before keep_to_this_machine()
    from pipeline.bill.comparison import Comparison
    from pipeline.bill.measuring import Measured


def print_estimate(console: Console, estimate: Estimate, notes: list[str]) -> None:
    """One row a stage, in 80 columns, and what was assumed."""
    total = {
        name: sum(getattr(stage, name) for stage in estimate.stages)
        for name in ("read_bytes", "written_bytes", "gets", "puts", "core_hours", "gpu_hours")
    }
    gpus, requests = bool(total["gpu_hours"]), bool(total["gets"] or total["puts"])
    # With all its columns it fits 80 characters, but with one space between them.
    padding = (0, 0) if gpus or requests else (0, 1)
    table = Table(box=box.SIMPLE, show_footer=True, collapse_padding=True, padding=padding)
    columns: list[tuple[str, Any, str]] = [
        ("stage", lambda s: s.stage, "all"),
        ("rows", lambda s: short(s.rows), ""),
        ("passes", passes, ""),
        ("read", lambda s: size(s.read_bytes), size(total["read_bytes"])),
        ("wrote", lambda s: size(s.written_bytes), size(total["written_bytes"])),
    ]
    if requests:
        columns += [
            ("GET", lambda s: short(s.gets), short(total["gets"])),
            ("PUT", lambda s: short(s.puts), short(total["puts"])),
        ]
    columns.append(("mem", lambda s: size(s.memory_mib * 2**20), ""))
    columns.append(("core-h", lambda s: hours(s.core_hours), hours(total["core_hours"])))
    if gpus:
        columns.append(("GPU-h", lambda s: hours(s.gpu_hours), hours(total["gpu_hours"])))
    columns.append(("time", lambda s: duration(s.seconds), duration(estimate.seconds)))
    for name, _, footer in columns:
        justify: JustifyMethod = "left" if name == "stage" else "right"
        table.add_column(name, footer=footer, justify=justify, no_wrap=True)
    for stage in estimate.stages:
        table.add_row(*(str(value(stage)) for _, value, _ in columns))
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)


def notes_on(estimate: Estimate, as_last: Estimate | None, last_run: str | None) -> list[str]:
    """What the figures rest on, one line each."""
    cores, used = estimate.nodes * estimate.cpus_per_node, estimate.workers * estimate.threads
    cluster = f"{estimate.nodes} × {estimate.cpus_per_node:g} CPUs"
    if estimate.gpus_per_node:
        cluster += f" and {estimate.gpus_per_node:g} GPUs"
    refines = any(stage.stage == "refine" for stage in estimate.stages)
    most = "pin reads all footers" + (", refine makes all passes; both" * refines or "; it")
    work = "train" if refines else "compute"
    lines = [
        f"cluster  {cluster}, all paid for; {used} of {cores:g} cores {work}",
        f"rates    {estimate.rates}; products in {estimate.products}, as here",
        *(["GPUs     their rates are a maker's figures, not measured"] if estimate.on_gpus else []),
        f"at most  {most} may do with fewer",
    ]
    if as_last:
        text = duration(as_last.seconds) + money_text(as_last)
        made = next(s.passes for s in as_last.stages if s.stage == "refine")
        lines.append(f"typical  {text}, where refine makes {made} passes as in run {last_run}")
    if estimate.money:
        lines.append(f"money    at most{money_text(estimate)}, by the config's prices")
    return lines


def notes_on_measuring(measured: Measured) -> list[str]:
    """What was measured, in two lines or three."""
    rates = (f"{name} {rate:,.0f}" for name, rate in measured.rows_per_second.items())
    lines = [f"measured {', '.join(rates)} rows/s, on {measured.threads} threads"]
    if measured.load > measured.threads:
        lines.append(
            f"note     others kept this machine busy (load {measured.load:.1f} on "
            f"{measured.threads} cores): the rates are what they left"
        )
    return lines + [
        f"note     {name}: not measured, {why}" for name, why in measured.left_out.items()
    ]


def money_text(estimate: Estimate) -> str:
    """What it costs, with a comma before; empty without prices."""
    money = estimate.money
    if money is None:
        return ""
    parts = {"compute": money.compute, "requests": money.requests, "transfer": money.transfer}
    rest = ", ".join(f"{name} {value:,.2f}" for name, value in parts.items() if value)
    return f" {money.total:,.2f} {money.currency} ({rest})" if rest else f" 0 {money.currency}"


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Planned beside took, and how far apart they are."""
    table = Table(box=box.SIMPLE, show_footer=True)
    by_name = {stage.stage: stage for stage in comparison.planned.stages}
    rows = [(time, by_name[time.stage]) for time in comparison.took if time.stage in by_name]
    planned = sum(stage.seconds for _, stage in rows)
    took = sum(time.seconds for time, _ in rows)
    for name, footer in (
        ("stage", "all"),
        ("planned", duration(planned)),
        ("took", duration(took)),
        ("took/planned", ratio(took, planned)),
        ("next time ×", ""),
    ):
        table.add_column(name, footer=footer, justify="left" if name == "stage" else "right")
    for time, stage in rows:
        factor = comparison.factors.get(time.stage)
        changed = "" if factor is None else f"{factor.fixed:.2f} fixed, {factor.work:.2f} work"
        table.add_row(
            time.stage,
            at_most(stage) + duration(stage.seconds),
            duration(time.seconds),
            ratio(time.seconds, stage.seconds),
            changed,
        )
    console.print(table)
    plan = comparison.planned
    made = "passes of refine not kept" if "refine" in by_name else "nothing was refined"
    if comparison.refine_passes is not None:
        made = f"refine made {comparison.refine_passes} of {by_name['refine'].passes} passes"
    kept = "as the run kept it" if comparison.stored else "made now: the run kept none"
    for line in (
        f"run      {comparison.run_id}; {made}",
        f"plan     {kept}; rates {plan.rates}",
        f"cluster  {plan.nodes} × {plan.cpus_per_node:g} CPUs, {plan.workers} workers of "
        f"{plan.threads} threads",
    ):
        console.print(line, highlight=False, markup=False)


def planned_of(estimate: Estimate | None, time: StageTime) -> str:
    """What a stage was thought to take, in seconds; empty where nobody thought."""
    if estimate is None:
        return ""
    stage = next((s for s in estimate.stages if s.stage == time.stage), None)
    return "" if stage is None else f"{at_most(stage)}{stage.seconds:.1f}"


def at_most(stage: StageEstimate) -> str:
    """A sign for what may take less."""
    return "≤" if stage.at_most else ""


def passes(stage: StageEstimate) -> str:
    """Passes that learn, and those that measure."""
    if not stage.passes:
        return ""
    measuring = f"+{stage.measuring_passes}" if stage.measuring_passes else ""
    return f"{at_most(stage)}{stage.passes}{measuring}"


def short(number: float) -> str:
    """A count in a few characters: 950, 12.3k, 4.5G; empty for none."""
    if number < 10_000:
        return f"{number:,.0f}" if number else ""
    power = min(4, int(math.log10(number)) // 3)
    return f"{number / 1000**power:.3g}{' kMGT'[power]}"


def size(count: float) -> str:
    """Bytes in binary units, as `du -h` has them; empty for none."""
    if not count:
        return ""
    power = min(4, int(math.log2(count)) // 10)
    return f"{count / 1024**power:.4g}"[:4].rstrip(".") + "BKMGT"[power]


def hours(value: float) -> str:
    """Core-hours and GPU-hours: as many digits as they are worth."""
    if value < 0.0005:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def ratio(took: float, planned: float) -> str:
    """How many times longer; nothing to compare below a tenth of a second."""
    return f"{took / planned:.2f}" if planned >= 0.1 and took >= 0.1 else ""
