"""explain: tables of cluster profiles and exemplars, from the profiles of all part files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import pyarrow as pa

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.explanations import Explanation
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Champion
from pipeline.artifacts.records import StoredFile, store_file
from pipeline.bill.costs import LISTED_KEYS, CostInputs
from pipeline.bill.records import StageCosts
from pipeline.config import Config
from pipeline.distributed.resources import READER
from pipeline.distributed.retries import with_retries
from pipeline.distributed.tasks import map_slices, run_task
from pipeline.engine import Context, stage
from pipeline.errors import InputError, PipelineError
from pipeline.insight.profiles.files import (
    copy_path,
    gone_profiles,
    profile_bytes,
    profile_path,
    read_profile,
)
from pipeline.insight.profiles.layout import MOST_CELLS
from pipeline.insight.profiles.merging import Profile, merged
from pipeline.insight.profiles.tables import exemplars_table, profile_table
from pipeline.lake.receipts import read_receipts, replacements
from pipeline.lake.snapshots import latest_snapshot, read_file_list
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.schema import exemplar_schema
from pipeline.storage import Store, parquet_bytes

log = logging.getLogger(__name__)

# Profiles that a task merges; a million of them take five rounds.
_TOGETHER = 16
# Cost of merging a profile: per file, and per cluster × feature.
_PROFILE_S, _CELL_S, _CELL_BYTES = 0.005, 1e-7, 40


def _cost(run: CostInputs) -> StageCosts:
    """The profiles of all parts, merged some at a time, and two tables with a copy each."""
    slices = run.manifest.slice_count
    tasks = slices // (_TOGETHER - 1) if slices > _TOGETHER else 0
    cells = min(MOST_CELLS, run.config.most_clusters * run.manifest.width)
    cores = max(1, min(tasks, run.cluster.cores))
    return StageCosts(
        written_bytes=tasks * cells * _CELL_BYTES,
        gets=slices + tasks + 2,
        puts=tasks + 7 + slices // LISTED_KEYS,
        readers=cores,
        fixed_seconds=0.2 + (run.rates.start_s if tasks else 0.0),
        work_seconds=(slices + tasks) * (_PROFILE_S + cells * _CELL_S) / cores,
        cores=cores,
        held_bytes=3 * cells * _CELL_BYTES,
    )


@stage("explain", version=4, distributed=True, cost=_cost)
def explain(
    config: Config,
    context: Context,
    manifest: Manifest,
    champion: Champion,
    assignments: Assignments,
) -> Explanation:
    """Merge the profiles of all parts in a tree of tasks, and write the tables and their copies.

    In the order of their names, so that the same parts always lead to the same bytes.

    Raises:
        InputError: Profiles are missing or damaged. The published assignments stay as they are.
    """
    lake = context.lake
    parts = [file.path for file in read_file_list(lake, assignments.files.path).files]
    instead = replacements(read_receipts(lake))  # parts that were written again without some rows
    while any(part in instead for part in parts):
        parts = [getattr(instead.get(part), "new", None) or part for part in parts]
    paths = [profile_path(p) for p in sorted(parts, key=lambda p: p.rpartition("/")[2])]
    if gone := gone_profiles(lake, paths):
        raise InputError(
            f"{len(gone):,} of {len(paths):,} profiles of parts are gone, such as {gone[0]}; the "
            "assignments stay published. A new run id profiles those rows again"
        )
    memory = "give nodes more memory, or lower explain.exemplars"
    made: list[str] = []
    while len(paths) > _TOGETHER:
        folder = context.stage_path("explain", f"merged/{len(paths)}")
        work = partial(_round, config, lake, paths, folder)
        paths = with_retries(config.execution, "explain", work, memory=memory)
        made += paths
    found = run_task(
        config.execution,
        memory,
        _explain,
        *(lake, context.stage_path("explain"), paths, champion.ids),
        origin={"ds": context.ds, "run_id": context.run_id, "model_id": champion.model.model_id},
        schema=exemplar_schema(manifest.carried_schema, manifest.keys),
    )
    with suppress(OSError, PipelineError):  # not every role may delete
        lake.delete(made)
        lake.prune(context.stage_path("explain", "merged"))
    for what in found.left_out:
        log.warning("explain: there is no room for %s", what)
    return found


def _round(config: Config, lake: Store, paths: Sequence[str], folder: str) -> list[str]:
    """Merge some profiles per task; returns the files of merged profiles, in their order."""
    groups = [paths[n : n + _TOGETHER] for n in range(0, len(paths), _TOGETHER)]
    names = [f"{folder}/{n:06}.parquet" for n in range(len(groups))]
    work = [
        pa.table({"path": group, "into": [name] * len(group)})
        for group, name in zip(groups, names, strict=True)
    ]

    def merge(some: pa.Table) -> pa.Table:
        into = some["into"][0].as_py()
        lake.write_bytes(into, profile_bytes(_merged(lake, some["path"].to_pylist()), into))
        return pa.table({"into": [into]})

    for _ in map_slices(config.execution, work, merge, claim=READER):
        pass
    return names


def _merged(lake: Store, paths: Sequence[str]) -> Profile:
    return merged([_read(lake, path) for path in paths])


def _read(lake: Store, path: str) -> Profile:
    try:
        return read_profile(lake, path)
    except (pa.ArrowMemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, LookupError, TypeError, ValueError):
        raise InputError(
            f"{lake.locate(path)} is damaged; the assignments stay published. A new run id, with "
            "assign.incremental=false, profiles those rows again"
        ) from None


def _explain(
    lake: Store,
    folder: str,
    paths: Sequence[str],
    ids: StoredFile,
    *,
    origin: dict[str, str],
    schema: pa.Schema,
) -> Explanation:
    profile = _merged(lake, paths)
    content = {
        "profile": parquet_bytes(profile_table(profile, origin, ClusterIds.of(lake, ids))),
        "exemplars": parquet_bytes(exemplars_table(profile, origin, schema)),
    }
    stored = {
        name: store_file(lake, f"{folder}/{name}.parquet", table) for name, table in content.items()
    }
    latest = latest_snapshot(lake)
    served = latest.partitions.get(origin["ds"]) if latest else None
    if served is not None and served.run_id == origin["run_id"]:  # else another run's are there
        for name, table in content.items():
            lake.write_bytes(copy_path(f"cluster_{name}", origin["ds"]), table)
    layout, moments = profile.layout, profile.moments
    return Explanation(
        **stored,
        clusters=len(moments.ids_K),
        rows=int(moments.rows_K.sum()),
        columns=tuple(layout.columns[n] for n in layout.kept),
        exemplars_kept=layout.exemplars,
        quantile_points=layout.points,
        left_out=layout.left_out,
    )
