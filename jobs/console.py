"""Terminal output of a run: the progress of its stages, and its result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
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

from jobs.commands.bill import planned_of
from jobs.tables import table
from pipeline import progress
from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.artifacts.models import Comparison
from pipeline.artifacts.nights import Verdict
from pipeline.artifacts.summaries import Summary
from pipeline.report.sections.run import NAMES

log = logging.getLogger(__name__)

_LISTED_CLUSTERS = 20
_LISTED_SHARDS = 5
# Often enough to see that a long stage progresses, without flooding the log.
_LINE_SECONDS = 30.0


class _Rate(ProgressColumn):
    """Units per second, over the whole stage."""

    def render(self, task: Task) -> Text:
        done, total = task.fields.get("done", 0), task.fields.get("planned")
        return Text(_rate(done, total, task.fields["unit"], task.elapsed or 0), style="dim")


def _rate(done: int, total: int | None, unit: str, seconds: float) -> str:
    if not done or seconds <= 0:
        return ""
    of_total = f" of {total:,}" if total else ""
    return f"{done:,}{of_total} {unit} · {done / seconds:,.0f}/s"


class StageBoard(progress.Progress):
    """Progress bars of the stages; silent when the output is not a terminal."""

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
        """Add a bar."""
        self._task = self._live.add_task(stage, total=None, note="", unit="", done=0)

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Update the bar."""
        fields = {"note": note, "unit": unit, "done": done, "planned": total}
        self._live.update(self._task, completed=done, total=total, **fields)  # type: ignore[arg-type]

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Fill the bar."""
        note = "already complete" if reused else f"{seconds:.1f} s"
        self._live.update(self._task, total=1, completed=1, note=note)


class ProgressLog(progress.Progress):
    """Periodic log lines; the engine logs starts and ends of stages itself."""

    def __init__(self) -> None:
        self._stage, self._logged_at = "", 0.0

    def stage_started(self, stage: str) -> None:
        """Remember the stage."""
        self._stage, self._logged_at = stage, time.monotonic()

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Log the progress, if the last line is some time ago."""
        if time.monotonic() - self._logged_at < _LINE_SECONDS:
            return
        self._logged_at = time.monotonic()
        planned = f" of {total:,}" if total else ""
        figures = {"done": done, "total": total, "unit": unit}
        log.info("%s: %s%s %s", self._stage, f"{done:,}", planned, unit, extra={"figures": figures})

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the figures."""
        text = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        if text:
            figures = {"step": step, "figures": dict(values)}
            name = f"{stage} {step}" if step else stage
            log.info("%s: %s", name, text, extra={"figures": figures})


class StageLines(progress.Progress):
    """Progress of the stages as lines of text, for jobs without a terminal."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print = print_line
        self._stage = ""
        self._started = self._printed_at = 0.0

    def __enter__(self) -> StageLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stage_started(self, stage: str) -> None:
        """Print a line."""
        self._stage = stage
        self._started = time.monotonic()
        self._print_line("started")

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Print a line, if the last one is some time ago."""
        now = time.monotonic()
        if now - self._printed_at >= _LINE_SECONDS:
            rate = _rate(done, total, unit, now - self._started)
            self._print_line(" · ".join(part for part in (rate, note) if part))

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """Print a line."""
        self._stage = stage
        self._print_line("already complete" if reused else f"done in {seconds:.1f} s")

    def _print_line(self, what: str) -> None:
        self._printed_at = time.monotonic()
        clock = time.strftime("%H:%M:%S")
        self._print(f"{clock} {self._stage:<15} {what}")


def print_summary(summary: Summary, stream: IO[str]) -> None:
    """Print the result of a run."""
    console = Console(file=stream)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, escape(value))  # names of shards may look like markup
    console.print(facts)
    console.print(Columns([_sizes(summary), _times(summary)], padding=(0, 4)))
    if summary.verdict and summary.verdict.rules:
        console.print(gate_table(summary.verdict))
    if summary.comparison:
        console.print(_candidates(summary.comparison))
        for line in verdict(summary.comparison, summary.shipped):
            console.print(line, highlight=False)
    console.print()
    for name, path in (
        ("assignments", f"{summary.assignments}/"),
        ("model", f"{summary.model}/"),
        ("snapshot", f"snapshots/{summary.snapshot}.json"),
    ):
        # Never wrapped: people copy these.
        print(f"{name:<12} {summary.output}/{path}", file=stream)
    if summary.table:
        print(f"{'table':<12} {summary.table}", file=stream)


def gate_table(verdict: Verdict) -> Table:
    """Rules of the gate with value, limit and verdict."""
    shown = table("rule", "value", "limit", "verdict", "detail", numbers=("value", "limit"))
    for rule in verdict.rules:
        value, limit = ("-" if n is None else f"{n:.4g}" for n in (rule.value, rule.limit))
        word = "passed" if rule.passed else "[red]refused[/red]"
        if rule.passed and (rule.limit is None or rule.value is None):
            word = "off" if rule.limit is None else "-"
        shown.add_row(rule.name, value, limit, word, escape(rule.detail))
    return shown


def _facts(summary: Summary) -> list[tuple[str, str]]:
    choice = f" ({summary.choice.why})" if summary.choice else ""
    facts = [
        ("run", summary.run_id),
        ("action", f"{summary.action}, because {summary.why}"),
        ("champion", f"{summary.champion}, entry {summary.entry} of the registry"),
        ("rows", _rows(summary)),
        ("input", f"{summary.shards:,} shards, {summary.features:,} features"),
        (
            "clusters",
            f"{summary.clusters:,}{choice}, mean confidence {summary.mean_confidence:.3f}",
        ),
    ]
    if summary.challenger:
        names = ("survived", "split", "merged", "born", "died")
        words = [f"{count:,} {name}" for name in names if (count := getattr(summary, name))]
        words += [f"churn {summary.churn:.2%}"] if summary.churn is not None else []
        facts.append(("ids", ", ".join(words)))
    if summary.pretrain_passes is not None:
        passes = f"after {summary.pretrain_passes} passes, products in {summary.products}"
        facts.append(("pretrain", f"loss {summary.pretrain_loss:.4f} {passes}"))
    if summary.kmeans_objective is not None:
        found = f"objective {summary.kmeans_objective:.4g} on the sample's embeddings"
        facts.append(("k-means", found))
    if start := summary.start:
        others = [f"{n} {v:.2f}" for n, v in start.agreement.items() if n != start.rule]
        found = f"{start.count:,} cells of {start.space} merged by {start.rule}; "
        found += f"{start.starts} starts agree by "
        found += f"{start.agreement[start.rule]:.2f} ({', '.join(others)}); "
        found += f"least firm cluster {min(start.firmness):.2f}"
        facts.append(("start", found))
    if summary.refine_updates is not None:
        refined = f"{summary.refine_updates} updates, stopped by {summary.refine_stopped_by}"
        if summary.kl is not None:
            refined += f"; KL {summary.kl:.4f}"
        if summary.label_change is not None:
            refined += f", last label change {summary.label_change:.3%}"
            if summary.refine_stopped_by == "passes":
                refined += ": labels were still moving, raise refine.passes"
        facts.append(("refine", refined))
    if summary.max_psi:
        facts.append(("drift", f"PSI at most {summary.max_psi:.3f}, of {summary.max_psi_feature}"))
    if summary.refused:
        serves = summary.challenger == summary.champion
        who = "it serves all the same" if serves else "the previous champion serves"
        reason = summary.verdict.reason if summary.verdict else ""
        facts.append(("gate", f"challenger refused, {who}. {reason}".strip()))
    facts += [("left out", line) for line in left_out(summary.quarantined)]
    facts += [("collapse", event) for event in summary.refine_events]
    if scores := summary.scores:
        text = f"ACC {scores.acc:.4f}  NMI {scores.nmi:.4f}  ARI {scores.ari:.4f}"
        facts.append(("against labels", f"{text}  on {scores.rows:,} rows"))
    return facts


def _rows(summary: Summary) -> str:
    notes = {
        "dropped": summary.rows_dropped,
        "in bad shards": summary.rows_quarantined,
        "carried over": summary.rows_carried,
        "outliers": summary.outliers,
    }
    said = ", ".join(f"{rows:,} {what}" for what, rows in notes.items() if rows)
    return f"{summary.rows_in:,} in, {summary.rows_out:,} out" + (f" ({said})" if said else "")


def left_out(shards: Sequence[QuarantinedShard]) -> list[str]:
    """Bad shards that a run left out, one line each; the first ones of many."""
    lines = [f"{shard.name}: {shard.reason} ({shard.stage})" for shard in shards[:_LISTED_SHARDS]]
    more = len(shards) - len(lines)
    return [*lines, f"{more:,} more, in quarantined of metrics.json"] if more else lines


def _candidates(comparison: Comparison) -> Table:
    title = f"DEC against its baselines, on {comparison.rows:,} sampled rows"
    numbers = ["separation", "silhouette", "balance", "stable"]
    if any(candidate.scores for candidate in comparison.candidates):
        numbers += ["ACC", "NMI", "ARI"]
    shown = table("clustering", *numbers, numbers=numbers, title=title)
    shown.collapse_padding = True  # or the last columns do not fit 80 characters
    for candidate in comparison.candidates:
        in_features = next(s for s in candidate.spaces if s.space == "features")
        stability = "" if candidate.stability is None else f"{candidate.stability:.3f}"
        scores = candidate.scores
        shown.add_row(
            NAMES[candidate.kind].replace("autoencoder", "AE"),  # for 80 columns
            f"{candidate.separation:.2f}",
            f"{in_features.silhouette:.3f}",
            f"{candidate.balance:.3f}",
            stability,
            *([f"{v:.3f}" for v in (scores.acc, scores.nmi, scores.ari)] if scores else []),
        )
    return shown


def verdict(comparison: Comparison, shipped: str) -> list[str]:
    """Sentences on the winner, its lead, and the clustering that is shipped."""
    first, second = comparison.candidates[:2]
    name = NAMES[second.kind]
    if first.empty_clusters != second.empty_clusters:
        reason = f"{first.empty_clusters:,} empty clusters, {name} has {second.empty_clusters:,}"
    elif round(first.separation, 2) > round(second.separation, 2):
        reason = f"separation {first.separation:.2f} against {second.separation:.2f} of {name}"
    else:
        reason = f"it is as good as {name}, and simpler"
    lines = [f"{NAMES[first.kind]} won: {reason} (on neighbours in scaled features)."]
    if shipped != comparison.winner:
        name = NAMES[shipped]
        lines.append(f"Shipped all the same: {name}, by refine.select: dec; auto ships the winner.")
    else:
        lines.append(f"Shipped: {NAMES[shipped]}.")
    if comparison.generalisation is not None:
        lines.append(
            f"DEC's KL on the rows that it learnt from is {comparison.generalisation:.2f} times "
            f"that on {comparison.held_out_rows:,} sampled rows that it did not see."
        )
    return lines


def _sizes(summary: Summary) -> Table:
    rows_of = zip(summary.cluster_ids, summary.cluster_rows, strict=True)
    all_rows = max(1, summary.rows_out)
    columns = ("cluster_id", "rows", "share")
    shown = table(*columns, numbers=columns)
    order = sorted(rows_of, key=lambda item: -item[1])
    for cluster, rows in order[:_LISTED_CLUSTERS]:
        shown.add_row(str(cluster), f"{rows:,}", f"{rows / all_rows:.1%}")
    if rest := order[_LISTED_CLUSTERS:]:
        rows = sum(n for _, n in rest)
        shown.add_row(f"{len(rest):,} more", f"{rows:,}", f"{rows / all_rows:.1%}")
    return shown


def _times(summary: Summary) -> Table:
    shown = Table(box=box.SIMPLE, show_footer=True)
    shown.add_column("stage", footer="all")
    total = sum(stage.seconds for stage in summary.stages)
    shown.add_column("seconds", justify="right", footer=f"{total:.1f}")
    shown.add_column("planned", justify="right", style="dim")
    for stage in summary.stages:
        shown.add_row(stage.stage, f"{stage.seconds:.1f}", planned_of(summary.estimate, stage))
    return shown
