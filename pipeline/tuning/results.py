"""Result of a tuning: the recommended config with its reasons, all trials, and a chart."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.config import MIN_SAMPLE_ROWS_PER_CLUSTER, Config
from pipeline.tuning.recommendation import Recommendation, breach, search_score
from pipeline.tuning.trials import Study, Trial, TrialFolder, trials_bytes

_COMMENT = 98  # characters per line
# Two fits of clusters that are worth a name agreed better: the lowest in decision 0030 was 0.34.
_WEAK = 0.3
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 400, 56, 610, 48, 352
# Colors for every kind of color vision (Okabe & Ito 2008), and dashes.
_LINES = (
    ("score", "#000000", ""),
    ("stability", "#0072b2", "6 3"),
    ("modularity", "#d55e00", "2 3"),
    ("silhouette", "#009e73", "8 3 2 3"),
)


@dataclass(frozen=True)
class TuneResult:
    """Trials of a tuning and the recommendation that follows from them."""

    config: Config
    folder: TrialFolder
    study: Study
    trials: tuple[Trial, ...]
    found: Recommendation
    # Number of trials requested; larger than that of ``trials`` where the search suggested the same
    # settings twice.
    requested: int

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
        found, lake = self.found, self.folder.lake
        return {
            "id": self.folder.id,
            "folder": lake.locate(self.folder.path("").rstrip("/")),
            "recommended_config": lake.locate(self.folder.path("recommended.yaml")),
            "rows": self.study.rows,
            "cluster_range": [self.study.min_clusters, self.study.max_clusters],
            "requested_trials": self.requested,
            "trials": len(self.trials),
            "rejected_trials": len(found.rejected),
            "settings": found.trial.settings.model_dump(mode="json"),
            "measures": found.trial.measures and found.trial.measures.model_dump(mode="json"),
            "score": found.score,
            "best": {
                "settings": found.best.settings.model_dump(mode="json"),
                "score": found.best_score,
            },
            "standard_error": found.standard_error,
            "pareto_front": [trial.settings.key for trial in found.front],
            "reasons": reasons(self),
        }

    def best_by_clusters(self) -> list[tuple[Trial, float]]:
        """The best trial for each number of clusters, with its score; rejected trials left out."""
        best: dict[int, tuple[Trial, float]] = {}
        for trial in self.trials:
            score, k = search_score(trial), trial.settings.clusters
            if not breach(trial) and (k not in best or score > best[k][1]):
                best[k] = trial, score
        return [best[k] for k in sorted(best)]

    def write(self) -> None:
        """Write the trials' table, the recommended config, the reasons and the chart."""
        scores = [None if breach(trial) else search_score(trial) for trial in self.trials]
        key, folder, lake = self.found.trial.settings.key, self.folder, self.folder.lake
        lake.write_bytes(folder.path("trials.parquet"), trials_bytes(self.trials, scores, key))
        lake.write_bytes(folder.path("curve.svg"), curve_svg(self).encode())
        lake.write_bytes(folder.path("recommended.yaml"), recommended_yaml(self).encode())
        lake.write_json(folder.path("recommendation.json"), self.to_json())


def reasons(result: TuneResult) -> list[str]:
    """Why this config is recommended, a sentence or two each."""
    found, chosen, study = result.found, result.found.trial, result.study
    measures = chosen.measures
    assert measures is not None  # a trial that failed is never recommended
    lines = [
        f"{len(result.trials)} trials on {study.rows:,} rows, {study.min_clusters} to "
        f"{study.max_clusters} clusters, without labels.",
        f"{len(found.rejected)} rejected for their cluster sizes, memorisation or failure.",
        f"Best score {found.best_score:.3f} (modularity + silhouette / 2 + stability / 20) with "
        f"{found.best.settings.clusters} clusters; {len(found.tied)} trials are within its "
        f"standard error of {found.standard_error:.3f}. The recommended one has the smallest "
        f"network of these, {chosen.settings.clusters} clusters and score {found.score:.3f}.",
        f"Stability {measures.stability:.3f}, modularity {measures.modularity:.3f}, silhouette "
        f"{measures.silhouette:.3f}, smallest cluster {measures.smallest_share:.1%}, largest "
        f"{measures.largest_share:.1%} of the rows.",
    ]
    if measures.generalisation is not None:
        lines.append(
            f"KL on training rows / KL on held-out rows: {measures.generalisation:.2f}; 1 means "
            "that nothing was memorised."
        )
    if measures.stability < _WEAK:
        lines.append(
            "Note: two fits hardly agree with each other. Either there are no such clusters, or "
            "the trials learn too little: try more --rows, more passes, or fewer clusters."
        )
    return lines


def recommended_yaml(result: TuneResult) -> str:
    """The recommended config as a file: settings that are not defaults, below the reasons."""
    settings = result.recommended.model_dump(mode="json", exclude_defaults=True)
    comments = [f"Recommended by `dec tune`, tuning {result.folder.id}.", *reasons(result)]
    wrapped = [part for line in comments for part in textwrap.wrap(line, _COMMENT)]
    head = "".join(f"# {line}\n" for line in wrapped)
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def curve_svg(result: TuneResult) -> str:
    """A chart of the measures by number of clusters."""
    points = result.best_by_clusters()
    counts = [trial.settings.clusters for trial, _ in points]
    values = {"score": [score for _, score in points]}
    values |= {n: [getattr(t.measures, n) for t, _ in points] for n, _, _ in _LINES[1:]}
    everything = [value for line in values.values() for value in line]
    low, high = math.floor(min(0.0, *everything) * 5) / 5, math.ceil(max(1.0, *everything) * 5) / 5
    first, last = math.log(counts[0]), math.log(max(counts[-1], counts[0] + 1))

    def x_of(k: int) -> float:
        return round(_LEFT + (math.log(k) - first) / (last - first) * (_RIGHT - _LEFT), 1)

    def y_of(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_BOTTOM - _TOP), 1)

    ticks: list[int] = []
    for k in counts:  # those that do not overlap
        if not ticks or x_of(k) - x_of(ticks[-1]) > 24:
            ticks.append(k)
    chosen = result.found.trial.settings.clusters
    grid = [round(high - 0.2 * step, 1) + 0.0 for step in range(round((high - low) / 0.2) + 1)]
    environment = Environment(
        loader=PackageLoader("pipeline.tuning", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("curve.svg").render(
        title=f"{result.folder.id}: measures by number of clusters, {chosen} recommended",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=_BOTTOM,
        grid=[(f"{value:.1f}", y_of(value)) for value in grid],
        ticks=[(k, x_of(k)) for k in ticks],
        recommended=x_of(chosen),
        lines=[
            (
                *(name, color, dashes),
                [
                    {"x": x_of(k), "y": y_of(value), "clusters": k, "value": value}
                    for k, value in zip(counts, values[name], strict=True)
                ],
            )
            for name, color, dashes in _LINES
        ],
    )
