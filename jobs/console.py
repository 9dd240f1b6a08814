"""What a person sees: a line of progress a stage, and the closing tables."""

from __future__ import annotations

from typing import IO

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from pipeline.artifacts import Comparison, Summary

# Sizes of at most this many clusters are listed one by one.
_LISTED_CLUSTERS = 20


class _Rate(ProgressColumn):
    """Units a second, over the whole stage."""

    def render(self, task: Task) -> Text:
        done, seconds = task.fields.get("done", 0), task.elapsed or 0
        if not done or seconds <= 0:
            return Text("")
        total = task.fields.get("planned")
        text = f"{done:,}" + (f" of {total:,}" if total else "") + f" {task.fields['unit']}"
        return Text(f"{text} · {done / seconds:,.0f}/s", style="dim")


class StageBoard:
    """Progress of the stages on a terminal; silent when the output is not one."""

    def __init__(self, stream: IO[str]) -> None:
        self._console = Console(file=stream)
        self._live = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=24),
            _Rate(),
            TextColumn("[cyan]{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=4,
        )
        self._task = TaskID(0)

    def __enter__(self) -> StageBoard:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stage_started(self, stage: str) -> None:
        """A new line."""
        self._task = self._live.add_task(stage, total=None, note="", unit="", done=0)

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Move the bar."""
        fields = {"note": note, "unit": unit, "done": done, "planned": total}
        self._live.update(self._task, completed=done, total=total, **fields)  # type: ignore[arg-type]

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Fill the bar."""
        note = "already complete" if reused else f"{seconds:.1f} s"
        self._live.update(self._task, total=1, completed=1, note=note)


def print_summary(summary: Summary, stream: IO[str]) -> None:
    """The closing tables of a run."""
    console = Console(file=stream)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, value)
    console.print(facts)
    console.print(Columns([_clusters(summary), _times(summary)], padding=(0, 4)))
    console.print(_candidates(summary.comparison))
    for line in verdict(summary.comparison, summary.shipped):
        console.print(line, highlight=False)
    console.print()
    for name, path in (
        ("assignments", f"{summary.assignments}/"),
        ("model", f"{summary.model}/"),
        ("snapshot", f"snapshots/{summary.snapshot}.json"),
    ):
        # Whole, however narrow the terminal: people copy these.
        print(f"{name:<12} {summary.output}/{path}", file=stream)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    dropped = f" ({summary.rows_dropped:,} dropped)" if summary.rows_dropped else ""
    facts = [
        ("run", summary.run_id),
        ("rows", f"{summary.rows_in:,} in, {summary.rows_out:,} out{dropped}"),
        ("input", f"{summary.shards:,} shards, {summary.features:,} features"),
        ("clusters", f"{summary.clusters:,}, mean confidence {summary.mean_confidence:.3f}"),
        (
            "pretrain",
            f"loss {summary.pretrain_loss:.4f} after {summary.pretrain_passes} passes, "
            f"products in {summary.products}",
        ),
        ("k-means", f"objective {summary.kmeans_objective:.4g} on the sample's embeddings"),
    ]
    refined = f"{summary.refine_updates} updates, stopped by {summary.refine_stopped_by}"
    if summary.kl is not None:
        refined += f"; KL {summary.kl:.4f}"
    if summary.label_change is not None:
        refined += f", last label change {summary.label_change:.3%}"
    facts.append(("refine", refined))
    facts += [("collapse", event) for event in summary.refine_events]
    if scores := summary.scores:
        text = f"ACC {scores.acc:.4f}  NMI {scores.nmi:.4f}  ARI {scores.ari:.4f}"
        facts.append(("against labels", f"{text}  on {scores.rows:,} rows"))
    return facts


_NAMES = {"kmeans": "k-means", "autoencoder": "autoencoder + k-means", "dec": "DEC"}


def _candidates(comparison: Comparison) -> Table:
    title = f"DEC against its baselines, on {comparison.rows:,} sampled rows"
    table = Table(
        box=box.SIMPLE,
        title=title,
        title_justify="left",
        title_style="bold",
        collapse_padding=True,  # or the last columns do not fit 80 characters
    )
    labelled = any(candidate.scores for candidate in comparison.candidates)
    table.add_column("clustering", no_wrap=True)
    for name in ("modularity", "silhouette", "balance", "stable"):
        table.add_column(name, justify="right")
    for name in ("ACC", "NMI", "ARI") if labelled else ():
        table.add_column(name, justify="right")
    for candidate in comparison.candidates:
        in_features = next(s for s in candidate.spaces if s.space == "features")
        stability = "" if candidate.stability is None else f"{candidate.stability:.3f}"
        scores = candidate.scores
        table.add_row(
            _NAMES[candidate.kind].replace("autoencoder", "AE"),  # for 80 columns
            f"{candidate.modularity:.3f}",
            f"{in_features.silhouette:.3f}",
            f"{candidate.balance:.3f}",
            stability,
            *([f"{v:.3f}" for v in (scores.acc, scores.nmi, scores.ari)] if scores else []),
        )
    return table


def verdict(comparison: Comparison, shipped: str) -> list[str]:
    """Which clustering won, by how much, and which one is shipped: one sentence each."""
    first, second = comparison.candidates[:2]
    name = _NAMES[second.kind]
    if first.empty_clusters != second.empty_clusters:
        reason = f"{first.empty_clusters:,} empty clusters, {name} has {second.empty_clusters:,}"
    elif round(first.modularity, 3) > round(second.modularity, 3):
        reason = f"modularity {first.modularity:.3f} against {second.modularity:.3f} of {name}"
    else:
        reason = f"it is as good as {name}, and simpler"
    lines = [f"{_NAMES[first.kind]} won: {reason} (on neighbours in scaled features)."]
    if shipped != comparison.winner:
        name = _NAMES[shipped]
        lines.append(f"Shipped all the same: {name}, by refine.select: dec; auto ships the winner.")
    elif shipped != "dec":
        lines.append(f"Shipped, by refine.select: auto: {_NAMES[shipped]}, not DEC.")
    else:
        lines.append("Shipped: DEC.")
    if comparison.generalisation is not None:
        lines.append(
            f"DEC's KL on the rows that it learnt from is {comparison.generalisation:.2f} times "
            f"that on {comparison.held_out_rows:,} sampled rows that it did not see."
        )
    return lines


def _clusters(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("cluster_id", "rows", "share"):
        table.add_column(name, justify="right")
    order = sorted(enumerate(summary.cluster_rows), key=lambda item: -item[1])
    for cluster, rows in order[:_LISTED_CLUSTERS]:
        table.add_row(str(cluster), f"{rows:,}", f"{rows / max(1, summary.rows_out):.1%}")
    if rest := order[_LISTED_CLUSTERS:]:
        rows = sum(n for _, n in rest)
        share = f"{rows / max(1, summary.rows_out):.1%}"
        table.add_row(f"{len(rest):,} more", f"{rows:,}", share)
    return table


def _times(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("stage", footer="all")
    total = sum(time.seconds for time in summary.stages)
    table.add_column("seconds", justify="right", footer=f"{total:.1f}")
    for time in summary.stages:
        table.add_row(time.stage, f"{time.seconds:.1f}")
    return table
