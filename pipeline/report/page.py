"""The report of a run: one file with the template, the styles, the charts and their data."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import pipeline
from pipeline.artifacts.explanations import Report
from pipeline.artifacts.records import StoredFile, store_file
from pipeline.insight.maps import map_bytes
from pipeline.progress import duration
from pipeline.report.run_files import RunFiles
from pipeline.report.sections import clusters as of_clusters
from pipeline.report.sections import rows
from pipeline.report.sections import run as facts
from pipeline.report.sections.clusters import Clusters, number
from pipeline.schema import UNDATED
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Inside <script> these could end it, or a line of it; JSON has another way to write each.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def page_path(run_id: str) -> str:
    """Path of a run's report, below the output."""
    return f"runs/{run_id}/report/index.html"


def make(lake: Store, run_id: str) -> Report:
    """Write ``report/index.html`` of a complete run, and its map where it has none.

    Raises:
        InputError: The run is not there, is not complete, or is of a version that this one does
            not read.
    """
    run = RunFiles(lake, run_id)
    assert run.summary  # or nothing is made at all
    map_file = run.map_file or _new_map(run)
    content, sections = _render(run, map_file)
    page = store_file(lake, page_path(run_id), content)
    return Report(page=page, map=map_file, sections=sections)


def _new_map(run: RunFiles) -> StoredFile | None:
    """Make the map; None, for a report without it, where that is not possible."""
    champion, manifest = run.champion, run.manifest
    if champion is None or manifest is None:
        return None
    sample = champion.reference.sample
    sample = sample.model_copy(update={"parts": tuple(map(run.as_left, sample.parts))})
    seed = run.config.seed if run.config else 0
    try:
        content = map_bytes(run.lake, champion, sample, manifest.keys, seed)
    except Exception as error:  # a page without a map is better than none
        log.warning("run %s: no map of the sample: %s", run.run_id, error, exc_info=True)
        return None
    path = run.stage_path("report", "map.parquet")
    return store_file(run.lake, path, content) if content is not None else None


def _render(run: RunFiles, map_file: StoredFile | None) -> tuple[bytes, tuple[str, ...]]:
    """The file, and the ids of its sections in order."""
    summary = run.summary
    clusters = Clusters(run)
    found: dict[str, Any] = {
        "curves": _or_nothing(lambda: facts.curves(run)),
        "map": _or_nothing(lambda: rows.map_of(run, map_file, clusters)),
        "confidence": _or_nothing(lambda: rows.confidence(run, clusters)),
        "heat": _or_nothing(clusters.heat),
        "flow": _or_nothing(lambda: rows.flow(run)),
        "since": _or_nothing(lambda: rows.since_last_night(run, clusters)),
        "times": facts.times(run),
    }
    known = {c.id: c.title for c in clusters.all[: of_clusters.LISTED]}
    data = found | {
        "titles": known,
        "order": [c.id for c in clusters.used[: of_clusters.LISTED]],
        "sizes": [[c.id, c.rows] for c in clusters.used[: of_clusters.BARS]],
    }
    verdict = summary.verdict
    sections = _sections(found, clusters, bool(verdict and (verdict.rules or not verdict.passed)))
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    text = environment.get_template("page.html").render(
        summary=summary,
        night=summary.ds != UNDATED,
        version=pipeline.__version__,
        headline=facts.headline(run),
        figures=facts.figures(run),
        facts=facts.details(run),
        left_out=facts.skipped_shards(run),
        candidates=facts.candidates(run.comparison),
        comparison=run.comparison,
        clusters=clusters,
        listed=of_clusters.LISTED,
        bars=of_clusters.BARS,
        rules=facts.rules(verdict),
        verdict=verdict,
        sections=sections,
        settings=run.config.to_yaml() if run.config else "",
        data=as_json(data),
        style=_own("page.css"),
        script=_own("page.js"),
        library=_own("vendor/echarts/echarts.min.js"),
        **found,
    )
    return text.encode(), tuple(name for name, _ in sections)


def _sections(found: dict[str, Any], clusters: Clusters, gate: bool) -> list[tuple[str, str]]:
    """Ids and names of the sections that have something to show."""
    comparison = bool(found["curves"])
    asked = [
        ("run", "Run details", True),
        ("verdict", "Comparison", True),
        ("gate", "Quality gate", gate),
        ("since", "Changes", bool(found["flow"] or found["since"])),
        ("training", "Training", comparison),
        ("sizes", "Cluster sizes", bool(clusters.used)),
        ("map", "Map", bool(found["map"])),
        ("confidence", "Confidence", bool(found["confidence"])),
        ("profile", "Feature profile", bool(found["heat"])),
        ("clusters", "Clusters", bool(clusters.cards)),
        ("time", "Time and cost", True),
    ]
    return [(name, title) for name, title, there in asked if there]


def _or_nothing(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A section without which the report is still one."""
    try:
        return make()
    except Exception:
        log.warning("a section of the report is left out", exc_info=True)
        return {}


def as_json(data: Any) -> Markup:
    """JSON that may stand in a script element, whatever texts are in it; NaN is null."""
    text = json.dumps(_finite(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _own(name: str) -> Markup:
    """A file of this package, which is trusted."""
    return Markup(files("pipeline.report").joinpath(name).read_text(encoding="utf-8"))
