"""Make a run's report: its map where there is none yet, and the page."""

from __future__ import annotations

import logging

from pipeline.artifacts.explanations import Report
from pipeline.artifacts.records import StoredFile
from pipeline.insight.maps import map_bytes
from pipeline.report.page import render
from pipeline.report.run_files import RunFiles
from pipeline.storage import Store, sha256

log = logging.getLogger(__name__)


def page_path(run_id: str) -> str:
    """Where a run's report lies, below the output."""
    return f"runs/{run_id}/report/index.html"


def make(lake: Store, run_id: str) -> Report:
    """Write ``report/index.html`` of a complete run, and its map where it has none.

    Args:
        lake: The output folder.
        run_id: The run.

    Raises:
        InputError: The run is not there, is not complete, or is of a version that this one does
            not read.
    """
    run = RunFiles(lake, run_id)
    seed = run.config.seed if run.config else 0
    assert run.summary  # or nothing is made at all
    map_file = run.map_file or _new_map(run, seed)
    page = render(run, map_file)
    path = page_path(run_id)
    lake.write_bytes(path, page.content)
    stored = StoredFile(path=path, sha256=sha256(page.content), bytes=len(page.content))
    return Report(page=stored, map=map_file, sections=page.sections)


def _new_map(run: RunFiles, seed: int) -> StoredFile | None:
    """None where there is nothing that it could be made of: the report leaves it out."""
    labelling, manifest = run.labelling, run.manifest
    if labelling is None or manifest is None:
        return None
    try:
        content = map_bytes(
            run.lake,
            labelling.sample,
            labelling.model,
            labelling.features,
            manifest.keys,
            labelling.ids,
            seed,
        )
    except Exception as error:  # a page without a map is better than none
        log.warning("run %s: no map of the sample: %s", run.run_id, error, exc_info=True)
        return None
    if content is None:
        return None
    path = f"{run.path}/stages/report/map.parquet"
    run.lake.write_bytes(path, content)
    return StoredFile(path=path, sha256=sha256(content), bytes=len(content))
