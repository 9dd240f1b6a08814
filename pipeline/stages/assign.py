"""assign: every row of every slice gets its cluster, in one part file a slice."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Assignments, ClusteringModel, Manifest, PartFile, Scores
from pipeline.clustering.agreement import agreement
from pipeline.config import Config
from pipeline.distributed.resources import share_out
from pipeline.distributed.tasks import map_slices
from pipeline.engine import Context, stage
from pipeline.errors import PipelineError
from pipeline.lake.assigning import Assigner, AssignJob
from pipeline.lake.parts import PartStatistics
from pipeline.lake.reading import pieces_of
from pipeline.lake.slices import by_slice
from pipeline.lake.snapshots import FileList

log = logging.getLogger(__name__)

# Of an actor, beyond one a thread: it is read or written while the others are encoded.
_MORE_SLICES = 1


def _settings(config: Config) -> Any:
    return {"nulls": config.source.nulls, "alpha": config.refine.alpha}


@stage("assign", version=1, settings=_settings, distributed=True)
def assign(
    config: Config, context: Context, manifest: Manifest, model: ClusteringModel
) -> Assignments:
    """Map the slices through a pool of actors, and account for every row."""
    resources = share_out(config.execution)
    job = AssignJob(
        config=config,
        manifest=manifest,
        model=model,
        lake=context.lake,
        folder=f"{context.run_path}/assignments",
        run_id=context.run_id,
        ds=context.ds,
        threads=resources.threads,
    )
    files: list[PartFile] = []
    totals = _Totals(config.clusters)
    for result in map_slices(
        by_slice(pieces_of(manifest, context.lake)),
        Assigner,
        actors=resources.workers,
        calls=resources.threads + _MORE_SLICES,
        arguments=(job,),
        cpus=resources.cpus_per_worker,
    ):
        for row in result.to_pylist():
            part = PartStatistics(**json.loads(row["statistics"]))
            files.append(PartFile(path=row["path"], rows=part.rows, bytes=row["bytes"]))
            totals.add(part)
        context.progress.stage_advanced(totals.rows_in, manifest.rows, "rows")
    files.sort(key=lambda file: file.path)
    _account(manifest, totals, len(files), config.source.nulls)
    listing = FileList(rows=totals.rows, files=tuple(files)).model_dump_json(indent=2).encode()
    return Assignments(
        files=context.store(context.stage_path("assign", "files.json"), listing),
        file_count=len(files),
        rows_in=totals.rows_in,
        rows_dropped=totals.rows_in - totals.rows,
        rows=totals.rows,
        cluster_rows=tuple(int(n) for n in totals.cluster_rows),
        mean_confidence=totals.confidence_sum / max(1, totals.rows),
        scores=totals.scores() if manifest.label else None,
    )


def _account(manifest: Manifest, totals: _Totals, parts: int, nulls: str) -> None:
    """Rows in = rows out: nothing is published before this holds."""
    dropped = totals.rows_in - totals.rows
    if (
        totals.rows_in != manifest.rows
        or parts != manifest.slice_count
        or (dropped and nulls != "drop")
    ):
        raise PipelineError(
            f"assign: {totals.rows} rows written and {totals.rows_in} read in {parts} parts; "
            f"expected {manifest.rows} in {manifest.slice_count}. Nothing is published; "
            "this is a defect, please report it"
        )


# A label column with more classes than this is a key; the contingency table would grow with rows.
_MOST_CLASSES = 10_000


class _Totals:
    """Sums over the parts; what grows is clusters × classes, never rows."""

    def __init__(self, clusters: int) -> None:
        self.rows_in = self.rows = 0
        self.confidence_sum = 0.0
        self.cluster_rows: NDArray[np.int64] = np.zeros(clusters, np.int64)
        self._cells: dict[tuple[int, int], int] = {}
        self._classes: dict[Any, int] = {}  # to their column in the contingency table

    def add(self, part: PartStatistics) -> None:
        self.rows_in += part.rows_in
        self.rows += part.rows
        self.confidence_sum += part.confidence_sum
        for cluster, rows in part.cluster_rows:
            self.cluster_rows[cluster] += rows
        for cluster, label, rows in part.contingency:
            column = self._classes.setdefault(label, len(self._classes))
            if column < _MOST_CLASSES:
                self._cells[cluster, column] = self._cells.get((cluster, column), 0) + rows

    def scores(self) -> Scores | None:
        """Agreement with the label column; None when it holds no classes but keys."""
        if len(self._classes) > _MOST_CLASSES:
            log.warning("no scores: the label column has over %d classes", _MOST_CLASSES)
            return None
        shape = (len(self.cluster_rows), max(1, len(self._classes)))
        contingency = np.zeros(shape, np.int64)
        for cell, rows in self._cells.items():
            contingency[cell] = rows
        found = agreement(contingency)
        return Scores(acc=found.acc, nmi=found.nmi, ari=found.ari, rows=found.rows)
