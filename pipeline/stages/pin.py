"""pin: decide what the input is, and hold on to it."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import Manifest, encode_schema
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.lake.pinning import check_enough_rows, footers_path, known_footers, list_shards
from pipeline.lake.pinning import pin as pin_input
from pipeline.lake.reading import pieces_of_shards
from pipeline.storage import parquet_bytes


def _settings(config: Config) -> Any:
    return {
        "source": config.source.model_dump(
            mode="json", exclude={"scaling", "fit_rows", "held_out"}
        ),
        "label": config.evaluate.label,
        "target_slice_mib": config.execution.target_slice_mib,
        "clusters": config.clusters,
    }


@stage("pin", version=1, settings=_settings, distributed=False)
def pin(config: Config, context: Context) -> Manifest:
    """List the shards, read their footers, check that they fit, and cut the work into slices."""
    files = list_shards(config)
    pinned = pin_input(
        config,
        files,
        known=known_footers(config, context.lake),
        on_footer=lambda n: context.progress.stage_advanced(n, len(files), "shards"),
    )
    shards = pinned.shards
    rows = int(shards["rows"].to_numpy().sum())
    check_enough_rows(config, rows)
    pieces = pieces_of_shards(shards, config.execution.target_slice_mib)
    content = parquet_bytes(shards)
    context.lake.write_bytes(footers_path(config), content)  # for the next night
    manifest = Manifest(
        shards=context.store(context.stage_path("pin", "shards.parquet"), content),
        rows=rows,
        bytes=int(shards["bytes"].to_numpy().sum()),
        wanted_bytes=int(shards["row_group_bytes"].combine_chunks().flatten().to_numpy().sum()),
        shard_count=len(shards),
        row_groups=len(pieces),
        slice_count=len(set(pieces["slice"].to_pylist())),
        target_slice_mib=config.execution.target_slice_mib,
        features=pinned.features,
        dtype=pinned.dtype,
        carried=encode_schema(pinned.carried),
        nulls=config.source.nulls,
        keys=tuple(config.source.keys),
        label=config.evaluate.label,
    )
    context.lake.write_json(f"{context.run_path}/manifest.json", manifest.model_dump(mode="json"))
    return manifest
