"""pin: fix the versions of all input shards, and cut them into slices."""

from __future__ import annotations

import contextlib
import dataclasses

import pyarrow as pa

from pipeline.artifacts.inputs import Manifest
from pipeline.bill.costs import LISTED_KEYS, CostInputs
from pipeline.bill.records import StageCosts
from pipeline.config import Config, content_of
from pipeline.engine import Context, stage
from pipeline.errors import PipelineError
from pipeline.input.pinning import check_enough_rows, footers_path, known_footers, list_input
from pipeline.input.pinning import pin as pin_input
from pipeline.input.reading import manifest_of
from pipeline.labelling.kept_slices import keep_slices
from pipeline.lake.snapshots import latest_snapshot
from pipeline.lake.tables import check_table
from pipeline.schema import assignment_schema
from pipeline.storage import parquet_bytes

# Listings in a folder of what tells a table of Delta, Iceberg or Hudi.
_METADATA_LISTS = 6


def _cost(run: CostInputs) -> StageCosts:
    """All footers; those that an earlier run read cost nothing."""
    shards, threads = run.manifest.shard_count, 16
    # At and above each location, the metadata of a lake table is looked for.
    folders = sum(location.rstrip("/").count("/") - 1 for location in run.config.source.locations)
    return StageCosts(
        at_most=True,
        input_gets=2 * (shards + 1),  # size, footer
        input_puts=2 * (1 + shards // LISTED_KEYS) + _METADATA_LISTS * max(1, folders),
        gets=1,
        puts=3,
        readers=threads,
        work_seconds=shards * 0.0005 / threads,
    )


@stage(
    "pin",
    version=1,
    settings=content_of(
        *("source", "evaluate.label", "execution.target_slice_mib", "clusters"),
        # A run that failed on a bad shard continues without it, with the same pinned input.
        without=(
            *("source.scaling", "source.fit_rows", "source.held_out"),
            *("source.on_bad_shard", "source.max_bad_share"),
        ),
    ),
    distributed=False,
    cost=_cost,
)
def pin(config: Config, context: Context) -> Manifest:
    """List the shards, read their footers, check that they fit, and cut the work into slices."""
    listing = list_input(config)
    files = listing.shards
    pinned = pin_input(
        config,
        files,
        known=known_footers(config, context.lake),
        on_footer=lambda n: context.progress.stage_advanced(n, len(files), "shards"),
    )
    pinned = dataclasses.replace(pinned, left_out=listing.left_out)
    # Checked here, before all the work.
    check_table(config, context.lake, assignment_schema(pinned.carried, config.source.keys))
    check_enough_rows(config, int(pinned.shards["rows"].to_numpy().sum()))
    target_bytes = config.execution.target_slice_mib * 2**20
    shards = keep_slices(pinned.shards, _earlier_runs(config, context), target_bytes)
    pinned = dataclasses.replace(pinned, shards=shards)
    content = parquet_bytes(pinned.shards)
    context.lake.write_bytes(footers_path(config), content)  # for the next night
    stored = context.store(context.stage_path("pin", "shards.parquet"), content)
    manifest = manifest_of(config, pinned, stored)
    context.lake.write_json(f"{context.run_path}/manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _earlier_runs(config: Config, context: Context) -> list[pa.Table]:
    """Shards of the last published run, and of those that serve the newest ds and this ds."""
    latest = latest_snapshot(context.lake)
    nights = []
    if latest is not None:
        served = latest.partitions
        runs = [latest.run_id, served[max(served)].run_id]
        runs += [served[context.ds].run_id] if context.ds in served else []
        for run_id in dict.fromkeys(runs):
            night = dataclasses.replace(context, run_id=run_id)
            # Gone or damaged: one of the reasons to label anew.
            with contextlib.suppress(OSError, pa.ArrowException, PipelineError):
                nights.append(context.lake.read_table(night.stage_path("pin", "shards.parquet")))
    known = known_footers(config, context.lake) if not nights else None
    return nights if known is None else [known]
