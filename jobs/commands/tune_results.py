"""What a tuning found: its files, and what a person sees of it."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config import MIN_SAMPLE_ROWS_PER_CLUSTER, Config

if TYPE_CHECKING:  # they import torch, which must not come before keep_to_this_machine()
    from pipeline.tuning.recommendation import Recommendation
    from pipeline.tuning.trials import Trial, TrialFolder

_BAR = 10  # characters of the curve in a terminal of 80
_LISTED = 12
_COMMENT = 98  # characters of a line
# Two fits of anything that deserved a name agreed better: 0.34 was the least of decision 0030.
_WEAK = 0.3


@dataclass(frozen=True)
class Outcome:
    """All that is known when the trials are done.

    Attributes:
        config: As it was given.
        folder: Of the tuning.
        rows: Of the sample.
        fewest: Clusters, the bounds of the range.
        most: The other one.
        trials: All of them.
        found: What is recommended, and why.
        asked: Trials that were asked for; more than there are where a suggestion came twice.
    """

    config: Config
    folder: TrialFolder
    rows: int
    fewest: int
    most: int
    trials: tuple[Trial, ...]
    found: Recommendation
    asked: int

    @property
    def recommended(self) -> Config:
        """The config with the recommended settings."""
        chosen = self.found.trial.settings.applied(self.config)
        least = MIN_SAMPLE_ROWS_PER_CLUSTER * chosen.most_clusters
        if chosen.centroids.sample_rows < least:
            more = chosen.centroids.model_copy(update={"sample_rows": least})
            chosen = chosen.model_copy(update={"centroids": more})
        return Config.model_validate(chosen.model_dump(mode="json"))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; also ``recommendation.json``."""
        found = self.found
        return {
            "id": self.folder.id,
            "folder": self.folder.lake.locate(self.folder.path("").rstrip("/")),
            "recommended": self.folder.lake.locate(self.folder.path("recommended.yaml")),
            "rows": self.rows,
            "clusters": [self.fewest, self.most],
            "asked": self.asked,
            "trials": len(self.trials),
            "left_out": len(found.left_out),
            "settings": found.trial.settings.model_dump(mode="json"),
            "measures": found.trial.measures and found.trial.measures.model_dump(mode="json"),
            "score": found.score,
            "best": {
                "settings": found.best.settings.model_dump(mode="json"),
                "score": found.best_score,
            },
            "standard_error": found.error,
            "front": [trial.settings.key for trial in found.front],
            "reason": reason(self),
        }


def reason(outcome: Outcome) -> list[str]:
    """Why this one, in plain lines."""
    found, chosen = outcome.found, outcome.found.trial
    measures = chosen.measures
    assert measures is not None  # a trial that failed is never recommended
    lines = [
        f"{len(outcome.trials)} trials on {outcome.rows:,} rows, {outcome.fewest} to "
        f"{outcome.most} clusters, without labels.",
        f"{len(found.left_out)} left out for their cluster sizes, memorising or failure.",
        f"Best score {found.best_score:.3f} (modularity + silhouette / 2 + stability / 20) with "
        f"{found.best.settings.clusters} clusters; {len(found.tied)} within its standard error of "
        f"{found.error:.3f}, of which this one has the smallest network, "
        f"{chosen.settings.clusters} clusters and {found.score:.3f}.",
        f"Stability {measures.stability:.3f}, modularity {measures.modularity:.3f}, silhouette "
        f"{measures.silhouette:.3f}, smallest cluster {measures.smallest_share:.1%}, largest "
        f"{measures.largest_share:.1%} of the rows.",
    ]
    if measures.generalisation is not None:
        lines.append(
            f"KL on rows that it learnt from over that on others: {measures.generalisation:.2f}; "
            "1 means nothing was memorised."
        )
    if measures.stability < _WEAK:
        lines.append(
            "Note: two fits hardly agree with one another. Either there are no such clusters, or "
            "the trials learn too little: try more --rows, more passes, or fewer clusters."
        )
    return lines


def recommended_yaml(outcome: Outcome) -> str:
    """The recommended config as a file: what differs from the defaults, and the reason above."""
    settings = outcome.recommended.model_dump(mode="json", exclude_defaults=True)
    comments = [f"Recommended by `dec tune`, tuning {outcome.folder.id}.", *reason(outcome)]
    wrapped = [part for line in comments for part in textwrap.wrap(line, _COMMENT)]
    head = "".join(f"# {line}\n" for line in wrapped)
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def write_outcome(outcome: Outcome) -> None:
    """Leave the table of trials, the recommended config, the reason and the curve."""
    from pipeline.tuning.recommendation import breach, searched_score
    from pipeline.tuning.trials import trials_bytes

    folder, lake = outcome.folder, outcome.folder.lake
    scores = [None if breach(trial) else searched_score(trial) for trial in outcome.trials]
    key = outcome.found.trial.settings.key
    lake.write_bytes(folder.path("trials.parquet"), trials_bytes(outcome.trials, scores, key))
    lake.write_bytes(folder.path("curve.svg"), curve_svg(outcome).encode())
    lake.write_bytes(folder.path("recommended.yaml"), recommended_yaml(outcome).encode())
    lake.write_json(folder.path("recommendation.json"), outcome.to_json())


# ------------------------------------------------------------------------------------- terminal


def line_of(trial: Trial) -> str:
    """A trial in a line, as it ends."""
    settings, measures = trial.settings, trial.measures
    text = f"{settings.clusters} clusters, {model_of(trial)}"
    if measures is None:
        return f"{text}: {trial.failed[:120]}"
    return (
        f"{text}: stability {measures.stability:.3f}, modularity {measures.modularity:.3f}, "
        f"silhouette {measures.silhouette:.3f} ({trial.seconds:.0f} s)"
    )


def model_of(trial: Trial) -> str:
    """What it tried beside the number of clusters, in words."""
    settings = trial.settings
    words = [
        f"embedding {settings.embedding}",
        f"width ×{settings.width:g}",
        settings.scaling,
        f"{settings.refine_passes} pass{'' if settings.refine_passes == 1 else 'es'}",
    ]
    if settings.augmentation is not None:
        words.append(f"augment ×{settings.augmentation:g}")
    return ", ".join(words)


def print_outcome(outcome: Outcome, stream: IO[str]) -> None:
    """The curve over the number of clusters, the front, and what is recommended."""
    console = Console(file=stream, soft_wrap=True, highlight=False)
    console.print(_curve(outcome))
    console.print(_front(outcome))
    for line in reason(outcome):
        console.print(line, markup=False)
    lake, folder = outcome.folder.lake, outcome.folder
    path = lake.locate(folder.path("recommended.yaml"))
    console.print(f"recommended: {path}", markup=False)
    console.print(f"all trials:  {lake.locate(folder.path('trials.parquet'))}", markup=False)


def best_by_clusters(outcome: Outcome) -> list[tuple[Trial, float]]:
    """The best trial of each number of clusters that breaks no limit, with its score."""
    from pipeline.tuning.recommendation import breach, searched_score

    best: dict[int, Trial] = {}
    for trial in outcome.trials:
        known = best.get(trial.settings.clusters)
        if not breach(trial) and (known is None or searched_score(trial) > searched_score(known)):
            best[trial.settings.clusters] = trial
    return [(best[k], searched_score(best[k])) for k in sorted(best)]


def _curve(outcome: Outcome) -> Table:
    points = best_by_clusters(outcome)
    low, high = min(s for _, s in points), max(s for _, s in points)
    scored = any(t.measures and t.measures.nmi is not None for t, _ in points)
    table = Table(
        box=box.SIMPLE, title="best trial of each number of clusters", title_justify="left"
    )
    for name in ("clusters", "stability", "modularity", "silhouette", *(["NMI"] if scored else [])):
        table.add_column(name, justify="right")
    table.add_column("score", justify="right")
    table.add_column("", no_wrap=True)
    for trial, score in points:
        found = trial.measures
        assert found is not None  # a trial that failed broke a limit
        chosen = trial.settings.clusters == outcome.found.trial.settings.clusters
        figures = [f"{found.stability:.3f}", f"{found.modularity:.3f}", f"{found.silhouette:.3f}"]
        if scored:
            figures.append("–" if found.nmi is None else f"{100 * found.nmi:.1f}")
        bar = _bar((score - low) / (high - low) if high > low else 1.0)
        mark = " ←" if chosen else ""
        table.add_row(str(trial.settings.clusters), *figures, f"{score:.3f}", bar + mark)
    return table


def _bar(share: float) -> str:
    """Full and partial blocks, at least one eighth."""
    eighths = max(1, round(share * _BAR * 8))
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _front(outcome: Outcome) -> Table:
    from pipeline.tuning.recommendation import searched_score

    front = sorted(outcome.found.front, key=searched_score, reverse=True)
    title = "trials that no other one beats in stability, modularity and silhouette"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in ("clusters", "score"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in front[:_LISTED]:
        chosen = trial == outcome.found.trial
        text = model_of(trial) + (" ← recommended" if chosen else "")
        table.add_row(str(trial.settings.clusters), f"{searched_score(trial):.3f}", text)
    if len(front) > _LISTED:
        table.add_row("…", "", f"{len(front) - _LISTED} more")
    return table


# ------------------------------------------------------------------------------------- picture

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 400, 56, 150, 48, 48
# Told apart by those who see colours otherwise too (Okabe & Ito 2008), and by their dashes.
_LINES = (
    ("score", "#000000", ""),
    ("stability", "#0072b2", "6 3"),
    ("modularity", "#d55e00", "2 3"),
    ("silhouette", "#009e73", "8 3 2 3"),
)


def curve_svg(outcome: Outcome) -> str:
    """The measures over the number of clusters as a picture that needs nothing else."""
    points = best_by_clusters(outcome)
    found = [(trial.settings.clusters, trial.measures, score) for trial, score in points]
    values = {
        "score": [score for _, _, score in found],
        **{n: [getattr(m, n) for _, m, _ in found] for n, _, _ in _LINES[1:]},
    }
    everything = [value for line in values.values() for value in line]
    low, high = math.floor(min(0.0, *everything) * 5) / 5, math.ceil(max(1.0, *everything) * 5) / 5
    counts = [k for k, _, _ in found]

    def x_of(k: int) -> float:
        first, last = math.log(counts[0]), math.log(max(counts[-1], counts[0] + 1))
        share: float = (math.log(k) - first) / (last - first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return float(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM))

    chosen = outcome.found.trial.settings.clusters
    title = f"{outcome.folder.id}: measures by number of clusters, {chosen} recommended"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="sans-serif" font-size="13">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{html.escape(title)}</text>',
        *_grid(low, high, y_of),
        *_ticks(counts, x_of),
        f'<line x1="{x_of(chosen):.1f}" x2="{x_of(chosen):.1f}" y1="{_TOP}" '
        f'y2="{_HEIGHT - _BOTTOM}" stroke="#cc79a7" stroke-width="2"/>',
    ]
    for place, (name, color, dashes) in enumerate(_LINES):
        line = " ".join(
            f"{x_of(k):.1f},{y_of(v):.1f}" for k, v in zip(counts, values[name], strict=True)
        )
        style = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}" fill="none"'
        parts.append(f'<polyline points="{line}" {style}/>')
        dots = zip(counts, values[name], strict=True)
        parts += [
            f'<circle cx="{x_of(k):.1f}" cy="{y_of(v):.1f}" r="3" fill="{color}">'
            f"<title>{k} clusters: {name} {v:.3f}</title></circle>"
            for k, v in dots
        ]
        y = _TOP + 14 + 22 * place
        x = _WIDTH - _RIGHT + 16
        parts.append(f'<line x1="{x}" x2="{x + 34}" y1="{y - 4}" y2="{y - 4}" {style}/>')
        parts.append(f'<text x="{x + 42}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(low: float, high: float, y_of: Any) -> list[str]:
    steps = round((high - low) / 0.2)
    lines = []
    for step in range(steps + 1):
        value = round(high - 0.2 * step, 1) + 0.0  # no -0.0
        y = y_of(value)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="#dddddd"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    return lines


def _ticks(counts: Sequence[int], x_of: Any) -> list[str]:
    shown: list[int] = []
    for k in counts:  # as many as do not run into one another
        if not shown or x_of(k) - x_of(shown[-1]) > 24:
            shown.append(k)
    y = _HEIGHT - _BOTTOM + 18
    ticks = [f'<text x="{x_of(k):.1f}" y="{y}" text-anchor="middle">{k}</text>' for k in shown]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*ticks, f'<text x="{middle}" y="{y + 20}" text-anchor="middle">clusters</text>']
