"""Tables of cost estimates, alone or beside the measured times, with one row per stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.artifacts.summaries import StageTime
from pipeline.bill.records import Estimate, StageEstimate
from pipeline.progress import duration

if TYPE_CHECKING:  # they import Ray, which keep_to_this_machine() must precede
    from pipeline.bill.comparison import Comparison
    from pipeline.bill.measuring import Measured


def print_estimate(console: Console, estimate: Estimate, notes: list[str]) -> None:
    """Print a table with one row per stage, in 80 columns, and then the notes."""

    def column(head: str, name: str, shown: Any, summed: bool = True) -> tuple[str, ...]:
        values = [getattr(stage, name) for stage in estimate.stages]
        return (head, shown(sum(values)) if summed else "", *map(shown, values))

    columns = [
        ("stage", "all", *(stage.stage for stage in estimate.stages)),
        column("rows", "rows", short, summed=False),
        ("passes", "", *map(_passes, estimate.stages)),
        column("read", "read_bytes", size),
        column("wrote", "written_bytes", size),
        column("GET", "gets", short),
        column("PUT", "puts", short),
        column("mem", "memory_mib", lambda mib: size(mib * 2**20), summed=False),
        column("core-h", "core_hours", hours),
        column("GPU-h", "gpu_hours", hours),
        ("time", duration(estimate.seconds), *(duration(s.seconds) for s in estimate.stages)),
    ]
    optional = {"GET", "PUT", "GPU-h"}
    shown = [cells for cells in columns if cells[0] not in optional or any(cells[1:])]
    # All columns fit 80 characters only with one space between them.
    _print_columns(console, shown, notes, padding=0 if len(shown) > 8 else 1)


def _print_columns(
    console: Console, columns: Sequence[Sequence[str]], lines: Iterable[str], padding: int = 1
) -> None:
    """Print a table, and then some lines; a column has its header, its footer, and its cells."""
    table = Table(box=box.SIMPLE, show_footer=True, collapse_padding=True, padding=(0, padding))
    for head, footer, *_ in columns:
        justify: Any = "left" if head == "stage" else "right"
        table.add_column(head, footer=footer, justify=justify, no_wrap=True)
    for row in zip(*(cells[2:] for cells in columns), strict=True):
        table.add_row(*row)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def notes_on(estimate: Estimate, typical: Estimate | None, last_run: str | None) -> list[str]:
    """The assumptions of an estimate, one line each."""
    cluster = estimate.cluster
    gpus = f" and {cluster.gpus_per_node:g} GPUs" if cluster.gpus_per_node else ""
    refines = any(stage.stage == "refine" for stage in estimate.stages)
    most = "pin reads all footers" + (", refine makes all passes; both" * refines or "; it")
    lines = [
        f"cluster  {cluster.nodes} × {cluster.cpus_per_node:g} CPUs{gpus}, all paid for; "
        f"{cluster.compute} of {cluster.cores:g} cores {'train' if refines else 'compute'}",
        f"rates    {estimate.rates}; products in {estimate.products}, as here",
    ]
    if cluster.worker_gpus or cluster.actor_gpus:
        lines.append("GPUs     their rates are the manufacturer's, not measured")
    lines.append(f"at most  {most} may do with fewer")
    if typical:
        made = next(stage.passes for stage in typical.stages if stage.stage == "refine")
        lines.append(
            f"typical  {duration(typical.seconds)}{_money(typical)}, where refine makes {made} "
            f"passes as in run {last_run}"
        )
    if estimate.money:
        lines.append(f"money    at most{_money(estimate)}, by the config's prices")
    return lines


def notes_on_measuring(measured: Measured) -> list[str]:
    """The results of a measurement, one line each."""
    rates = (f"{name} {rate:,.0f}" for name, rate in measured.rows_per_second.items())
    lines = [f"measured {', '.join(rates)} rows/s, on {measured.threads} threads"]
    if measured.load > measured.threads:
        lines.append(
            f"note     other processes kept this machine busy (load {measured.load:.1f} on "
            f"{measured.threads} cores): the rates are what they left"
        )
    return lines + [
        f"note     {name}: not measured, {why}" for name, why in measured.left_out.items()
    ]


def _money(estimate: Estimate) -> str:
    """Price and its parts; empty without prices."""
    money = estimate.money
    if money is None:
        return ""
    parts = {"compute": money.compute, "requests": money.requests, "transfer": money.transfer}
    parts_text = ", ".join(f"{name} {value:,.2f}" for name, value in parts.items() if value)
    return f" {money.total:,.2f} {money.currency}" + (f" ({parts_text})" if parts_text else "")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the estimate of a run beside its measured times."""
    plan = comparison.planned
    by_name = {stage.stage: stage for stage in plan.stages}
    rows = [(time, by_name[time.stage]) for time in comparison.took if time.stage in by_name]
    planned = sum(stage.seconds for _, stage in rows)
    took = sum(time.seconds for time, _ in rows)
    factors = [comparison.factors.get(time.stage) for time, _ in rows]
    changes = [f"{f.fixed:.2f} fixed, {f.work:.2f} work" if f else "" for f in factors]
    made = "nothing was refined"
    if comparison.refine_passes is not None:
        made = f"refine made {comparison.refine_passes} of {by_name['refine'].passes} passes"
    columns = [
        ("stage", "all", *(time.stage for time, _ in rows)),
        ("planned", duration(planned), *(_at_most(s) + duration(s.seconds) for _, s in rows)),
        ("took", duration(took), *(duration(time.seconds) for time, _ in rows)),
        ("took/planned", _ratio(took, planned), *(_ratio(t.seconds, s.seconds) for t, s in rows)),
        ("next time ×", "", *changes),
    ]
    lines = [
        f"run      {comparison.run_id}; {made}",
        f"rates    {plan.rates}",
        f"cluster  {plan.cluster.nodes} × {plan.cluster.cpus_per_node:g} CPUs, "
        f"{plan.cluster.workers} workers of {plan.cluster.threads} threads",
    ]
    _print_columns(console, columns, lines)


def planned_of(estimate: Estimate | None, time: StageTime) -> str:
    """Estimated seconds of a stage; empty without an estimate."""
    stages = estimate.stages if estimate else ()
    return next((f"{_at_most(s)}{s.seconds:.1f}" for s in stages if s.stage == time.stage), "")


def _at_most(stage: StageEstimate) -> str:
    return "≤" if stage.at_most else ""


def _passes(stage: StageEstimate) -> str:
    """Number of passes that learn, and of passes that measure."""
    if not stage.passes:
        return ""
    measuring = f"+{stage.measuring_passes}" if stage.measuring_passes else ""
    return f"{_at_most(stage)}{stage.passes}{measuring}"


def short(number: float) -> str:
    """A count in few characters: 950, 12.3k, 4.5G; empty for 0."""
    return f"{number:,.0f}" if 0 < number < 10_000 else _scaled(number, 1000, " kMGT")


def size(count: float) -> str:
    """Bytes in binary units, as in `du -h`; empty for 0."""
    return _scaled(count, 1024, "BKMGT")


def _scaled(number: float, base: int, units: str) -> str:
    power = 0
    while number >= base and power < 4:
        number, power = number / base, power + 1
    return f"{number:.4g}"[:4].rstrip(".") + units[power] if number else ""


def hours(value: float) -> str:
    """Core-hours or GPU-hours with two significant digits; empty for next to none."""
    if value < 0.0005:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _ratio(took: float, planned: float) -> str:
    """Measured over estimated time; empty where either is below a tenth of a second."""
    return f"{took / planned:.2f}" if planned >= 0.1 and took >= 0.1 else ""
