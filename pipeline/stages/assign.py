"""assign: label every row of every slice, into one part file per slice."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.artifacts.assignments import Assignments, PartFile
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import Scores
from pipeline.artifacts.nights import Champion
from pipeline.bill.costs import CostInputs
from pipeline.bill.records import StageCosts
from pipeline.clustering.agreement import agreement
from pipeline.config import Config, content_of
from pipeline.distributed.failures import lost_worker
from pipeline.distributed.resources import assign_crew, share_out_what_is_left
from pipeline.distributed.retries import with_retries
from pipeline.distributed.tasks import map_slices
from pipeline.engine import Context, stage
from pipeline.errors import OutOfMemory, PipelineError, TransientError
from pipeline.input.profiled_columns import explained_of
from pipeline.input.quarantine import without_bad_shards
from pipeline.input.reading import pieces_of
from pipeline.input.slices import by_slice
from pipeline.labelling.assigning import Assigner, AssignJob
from pipeline.labelling.carrying import published_parts
from pipeline.lake.parts import BinnedRows, PartStatistics, parts_folder
from pipeline.lake.receipts import folder_for_parts
from pipeline.lake.snapshots import FileList
from pipeline.registry.cluster_ids import OUTLIER, ClusterIds
from pipeline.registry.models import settings_of
from pipeline.registry.reference import most_drifted
from pipeline.storage import S3_SCHEME, sha256

log = logging.getLogger(__name__)

# Bytes of an assignment as stored, without its keys, and of a key.
_ASSIGNMENT_BYTES, _KEY_BYTES = 20, 8
# Memory of a row of a slice while its assignments are sorted and written.
_SORTING_BYTES = 200


def slices_at_a_time(config: Config, threads: int) -> int:
    """Slices in work per actor: one per thread, and one more where reading waits for a network.

    On local disks one more only competes with the others: 127,000 rows/s against 140,000.
    """
    locations = (config.output, *config.source.locations)
    return threads + any(location.startswith(S3_SCHEME) for location in locations)


def _cost(run: CostInputs) -> StageCosts:
    """All rows but carried ones, one slice per thread, into one part file per slice."""
    manifest, cluster, rates = run.manifest, run.cluster, run.rates
    rows, slices = (math.ceil(n * run.labelled) for n in (manifest.rows, manifest.slice_count))
    visits = max(slices, math.ceil(manifest.shard_count * run.labelled))
    read_bytes = manifest.wanted_bytes * run.labelled
    gpu_s, core_s = 0.0, rows * (manifest.width * rates.value_ns + rates.write_ns) * 1e-9
    nearest_s = rows * run.config.most_clusters * 1e-9
    if cluster.actor_gpus:
        gpu_s = 2 * rows * run.network.encoder / (rates.gpu.encode_gflop_s * 1e9)
        gpu_s += nearest_s * rates.gpu.nearest_ns
    else:
        core_s += run.encode_s(rows) + nearest_s * run.core.nearest_ns
    threads = max(1, min(slices, cluster.actors * cluster.actor_threads))
    a_slice = math.ceil(slices / threads) / max(1, slices)  # in the last round, threads are idle
    calls = max(1, min(slices, slices_at_a_time(run.config, cluster.actor_threads)))
    slice_bytes = rows / max(1, slices) * _SORTING_BYTES + run.group_bytes
    return StageCosts(
        rows=rows,
        passes=1,
        read_bytes=read_bytes,
        written_bytes=rows * (_ASSIGNMENT_BYTES + _KEY_BYTES * (len(manifest.keys) or 2)),
        input_gets=run.input_gets(visits, run.labelled * manifest.row_groups, read_bytes),
        # Of a part that is carried over, its footer and that of its profile.
        gets=5 * slices + 4 * (manifest.slice_count - slices) + 9 * cluster.actors,
        puts=2 * slices + 1,
        readers=cluster.actors * calls,
        fixed_seconds=rates.start_s,
        work_seconds=max(a_slice * core_s, gpu_s / (cluster.actors * (cluster.actor_gpus or 1))),
        cores=threads,
        held_bytes=4 * run.network.encoder_parameters + calls * slice_bytes,
    )


@stage(
    "assign",
    version=3,
    settings=content_of(
        # Whether shards may be left out is decided by the time of the publish. Files of a Delta
        # table lie elsewhere, and no table takes parts that a night has carried.
        *("source.nulls", "source.on_bad_shard", "refine.alpha", "lake.format"),
        *("explain.columns", "explain.exemplars"),
    ),
    distributed=True,
    cost=_cost,
)
@without_bad_shards
def assign(config: Config, context: Context, manifest: Manifest, champion: Champion) -> Assignments:
    """Label the slices in a pool of actors, and account for every row.

    Parts of the same slices that an earlier run wrote with the same model are published again.
    """
    # Tonight's settings, with those that the model needs to compute as it was fitted.
    fitted = settings_of(context.lake, champion.model)
    refine = config.refine.model_copy(update={"alpha": fitted.refine.alpha})
    config = config.model_copy(update={"model": fitted.model, "refine": refine})
    attempts = _Attempts(config, context, manifest, champion)
    size = config.execution.target_slice_mib
    memory = f"lower execution.target_slice_mib={size}, which cuts the table anew and trains again"
    if (most := assign_crew(config.execution).most) > 1:
        setting = "actors" if config.execution.actors else "workers"
        memory = f"lower execution.{setting}={most} to 1, or {memory}"
    files, totals = with_retries(
        config.execution,
        "assign",
        attempts.run,
        memory=memory,
        progress=lambda: attempts.most_parts,
    )
    files.sort(key=lambda file: file.path)
    left_out = sum(shard.rows or 0 for shard in manifest.quarantined)
    _account(
        manifest.rows - left_out, len(attempts.slices), totals, len(files), config.source.nulls
    )
    drift = None
    if (counts_FB := totals.bins.counts()) is not None:
        drift = most_drifted(context.lake, champion.reference, counts_FB)
    listing = FileList(rows=totals.rows, files=tuple(files)).model_dump_json(indent=2).encode()
    # By its content: work that is done again must not change a list that a snapshot names.
    name = f"files-{sha256(listing)[:12]}.json"
    return Assignments(
        files=context.store(context.stage_path("assign", name), listing),
        file_count=len(files),
        rows_in=manifest.rows,
        rows_dropped=totals.rows_in - totals.rows,
        rows=totals.rows,
        cluster_rows=totals.cluster_rows,
        mean_confidence=totals.confidence_sum / max(1, totals.rows),
        scores=totals.scores() if manifest.label else None,
        rows_quarantined=left_out,
        quarantined=manifest.quarantined,
        cluster_ids=tuple(attempts.ids),
        outliers=totals.outliers,
        carried_files=totals.carried_files,
        carried_rows=totals.carried_rows,
        labelled_rows=totals.rows - totals.carried_rows,
        max_psi=drift[0] if drift else None,
        max_psi_feature=drift[1] if drift else "",
    )


def _carries(config: Config) -> bool:
    """Whether parts of earlier runs are carried into this one."""
    if not config.assign.incremental:
        return False
    if config.lake.format != "parquet":
        # Their partitions are by the value of ds, which carried rows have from another night.
        log.info("assign: lake.format=%s: every row is labelled again", config.lake.format)
        return False
    return True


class _Attempts:
    """Attempts to assign all slices; where a part exists, only its footer is read.

    When workers run out of memory, or die without any progress, fewer slices are in work at a time:
    one per actor, then half as many actors each time. One slice is always processed in the same
    way, so that its part is the same file whatever happened.
    """

    def __init__(
        self, config: Config, context: Context, manifest: Manifest, champion: Champion
    ) -> None:
        self.most_parts = 0  # maximum number of parts that any attempt reached
        self._config, self._context, self._manifest = config, context, manifest
        self._champion = champion
        self.ids: list[int] = ClusterIds.of(context.lake, champion.ids).cluster_id_K.tolist()
        self._published: dict[str, PartFile] | None = None
        if _carries(config):
            self._published = published_parts(context.lake, champion.model.model_id, context.ds)
        self._explained = explained_of(config, manifest, context.lake)
        self.slices = by_slice(pieces_of(manifest, context.lake))
        self._attempts = self._narrower = 0

    def run(self) -> tuple[list[PartFile], _Totals]:
        """One attempt: the part files, and their totals."""
        context, manifest, champion = self._context, self._manifest, self._champion
        crew = assign_crew(self._config.execution)
        resources = share_out_what_is_left(self._config.execution, crew, wait=self._attempts > 0)
        most = fewest = resources.workers
        if crew.begin < crew.most:  # elastic: the pool takes nodes that come
            fewest, most = crew.fewest, crew.most
        calls = slices_at_a_time(self._config, resources.threads)
        if self._narrower:
            most, calls = max(1, resources.workers >> (self._narrower - 1)), 1
            log.warning("assign: one slice at a time on each of %d actors", most)
        job = AssignJob(
            config=self._config,
            manifest=manifest,
            model=champion.model,
            ids=champion.ids,
            bins=champion.reference.bins,
            lake=context.lake,
            folder=folder_for_parts(
                context.lake, parts_folder(context.run_id, self._config.lake.format)
            ),
            run_id=context.run_id,
            ds=context.ds,
            threads=resources.threads,
            gpus=resources.claim.gpus,
            published=self._published,
            explained=self._explained,
        )
        self._attempts += 1
        before = self.most_parts
        files: list[PartFile] = []
        totals = _Totals(self.ids)
        seen: set[str] = set()
        results = map_slices(
            self._config.execution,
            self.slices,
            Assigner,
            actors=(min(fewest, most), most),
            calls=calls,
            arguments=(job,),
            claim=resources.claim,
        )
        try:
            for result in results:
                for row in result.to_pylist():
                    part = PartStatistics(**json.loads(row["statistics"]))
                    files.append(PartFile(path=row["path"], rows=part.rows, bytes=row["bytes"]))
                    totals.add(part, carried=not row["path"].startswith(f"{job.folder}/"))
                    if row["by"] not in seen:
                        log.info("assign: %s", row["by"])
                        seen.add(row["by"])
                self.most_parts = max(self.most_parts, len(files))
                context.progress.stage_advanced(totals.rows_in, manifest.rows, "rows")
        except TransientError as error:
            stuck = lost_worker(error) and self.most_parts == before
            self._narrower += stuck or isinstance(error, OutOfMemory)
            raise
        return files, totals


def _account(rows: int, slices: int, totals: _Totals, parts: int, nulls: str) -> None:
    """Rows in = rows out: nothing is published before this holds."""
    dropped = totals.rows_in - totals.rows
    if totals.rows_in != rows or parts != slices or (dropped and nulls != "drop"):
        raise PipelineError(
            f"assign: {totals.rows} rows written and {totals.rows_in} read in {parts} parts; "
            f"expected {rows} in {slices}. Nothing is published; "
            "this is a defect, please report it"
        )


# A label column with more classes than this is a key; the contingency table would grow with rows.
_MOST_CLASSES = 10_000


class _Totals:
    """Sums over the parts; they grow with clusters × classes, never with rows."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.rows_in = self.rows = self.carried_files = self.carried_rows = 0
        self.confidence_sum = 0.0
        self.bins = BinnedRows()
        self._rows_of = dict.fromkeys((*ids, OUTLIER), 0)
        self._cells: dict[tuple[int, int], int] = {}
        self._classes: dict[Any, int] = {}  # column of each class in the contingency table

    @property
    def cluster_rows(self) -> tuple[int, ...]:
        """Rows of each cluster, in the order of the ids."""
        return tuple(rows for cluster, rows in self._rows_of.items() if cluster != OUTLIER)

    @property
    def outliers(self) -> int:
        """Rows in no cluster."""
        return self._rows_of[OUTLIER]

    def add(self, part: PartStatistics, *, carried: bool) -> None:
        self.carried_files += carried
        self.carried_rows += part.rows if carried else 0
        self.bins.add(part)
        self.rows_in += part.rows_in
        self.rows += part.rows
        self.confidence_sum += part.confidence_sum
        for cluster, rows in part.cluster_rows:
            self._rows_of[cluster] += rows
        for cluster, label, rows in part.contingency:
            column = self._classes.setdefault(label, len(self._classes))
            if column < _MOST_CLASSES:
                self._cells[cluster, column] = self._cells.get((cluster, column), 0) + rows

    def scores(self) -> Scores | None:
        """Agreement with the label column; None where it has too many values to be classes."""
        if len(self._classes) > _MOST_CLASSES:
            log.warning("no scores: the label column has over %d classes", _MOST_CLASSES)
            return None
        place = {cluster: row for row, cluster in enumerate(self._rows_of)}
        contingency = np.zeros((len(place), max(1, len(self._classes))), np.int64)
        for (cluster, column), rows in self._cells.items():
            contingency[place[cluster], column] = rows
        if not self.outliers:
            contingency = contingency[:-1]
        found = agreement(contingency)
        return Scores(acc=found.acc, nmi=found.nmi, ari=found.ari, rows=found.rows)
