"""Output of ``dec tune`` in the terminal."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table

from jobs.tables import table
from pipeline.tuning.recommendation import search_score
from pipeline.tuning.results import TuneResult, reasons
from pipeline.tuning.trials import Trial

_BAR = 10  # characters of a score's bar, in a terminal of 80
_LISTED = 12


def trial_line(trial: Trial) -> str:
    """A finished trial in a line."""
    measures = trial.measures
    text = f"{trial.settings.clusters} clusters, {_settings(trial)}"
    if measures is None:
        return f"{text}: {trial.failure[:120]}"
    return (
        f"{text}: stability {measures.stability:.3f}, modularity {measures.modularity:.3f}, "
        f"silhouette {measures.silhouette:.3f} ({trial.seconds:.0f} s)"
    )


def print_result(result: TuneResult, stream: IO[str]) -> None:
    """Print the scores by number of clusters, the Pareto front, and the recommendation."""
    console = Console(file=stream, soft_wrap=True, highlight=False)
    console.print(_scores(result))
    console.print(_front(result))
    lake, folder = result.folder.lake, result.folder
    for line in (
        *reasons(result),
        f"recommended: {lake.locate(folder.path('recommended.yaml'))}",
        f"all trials:  {lake.locate(folder.path('trials.parquet'))}",
    ):
        console.print(line, markup=False)


def _settings(trial: Trial) -> str:
    """Settings of a trial besides the number of clusters."""
    tried = trial.settings
    words = [
        f"embedding {tried.embedding}",
        f"width ×{tried.width:g}",
        tried.scaling,
        f"{tried.refine_passes} pass{'' if tried.refine_passes == 1 else 'es'}",
    ]
    if tried.augmentation is not None:
        words.append(f"augment ×{tried.augmentation:g}")
    return ", ".join(words)


def _scores(result: TuneResult) -> Table:
    points = result.best_by_clusters()
    low, high = min(s for _, s in points), max(s for _, s in points)
    with_labels = any(t.measures and t.measures.nmi is not None for t, _ in points)
    numbers = ["clusters", "stability", "modularity", "silhouette"]
    numbers += ["NMI", "score"] if with_labels else ["score"]
    shown = table(*numbers, "", numbers=numbers, title="best trial for each number of clusters")
    for trial, score in points:
        found, clusters = trial.measures, trial.settings.clusters
        assert found is not None  # a trial that failed broke a limit
        figures = [f"{found.stability:.3f}", f"{found.modularity:.3f}", f"{found.silhouette:.3f}"]
        if with_labels:
            figures.append("–" if found.nmi is None else f"{100 * found.nmi:.1f}")
        bar = _bar((score - low) / (high - low) if high > low else 1.0)
        mark = " ←" if clusters == result.found.trial.settings.clusters else ""
        shown.add_row(str(clusters), *figures, f"{score:.3f}", bar + mark)
    return shown


def _bar(share: float) -> str:
    """Full and partial blocks, at least one eighth."""
    eighths = max(1, round(share * _BAR * 8))
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _front(result: TuneResult) -> Table:
    front = sorted(result.found.front, key=search_score, reverse=True)
    title = "trials that no other one beats in stability, modularity and silhouette"
    numbers = ("clusters", "score")
    shown = table(*numbers, "settings", numbers=numbers, title=title)
    for trial in front[:_LISTED]:
        text = _settings(trial) + (" ← recommended" if trial == result.found.trial else "")
        shown.add_row(str(trial.settings.clusters), f"{search_score(trial):.3f}", text)
    if len(front) > _LISTED:
        shown.add_row("…", "", f"{len(front) - _LISTED} more")
    return shown
