"""``dec plan`` and ``dec check``: look at config and input without starting Ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.config import Config, load_config
from pipeline.lake.pinning import (
    PinnedInput,
    check_enough_rows,
    known_footers,
    list_shards,
    pin,
)
from pipeline.lake.reading import Reader, pieces_of_shards
from pipeline.lake.slices import by_slice
from pipeline.storage import Store

_MIB = 2**20
# Python, torch, pyarrow and Ray themselves, as measured in an idle worker.
_WORKER_BASE_MIB = 450


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        config: The resolved settings.
        shards: Parquet files.
        rows: Rows in them.
        bytes: Their size.
        wanted_bytes: Size of the columns that are read.
        row_groups: Row groups with rows.
        slices: Units of work of the assign stage.
        features: Feature columns, globs resolved.
        row_bytes: A raw row in memory.
        fit_rows: Rows that training learns from.
        cached: Whether a worker's share of them fits execution.cache_mib; else passes stream.
        worker_mib: Estimated memory of a training worker.
    """

    config: dict[str, Any]
    shards: int
    rows: int
    bytes: int
    wanted_bytes: int
    row_groups: int
    slices: int
    features: list[dict[str, Any]]
    row_bytes: int
    fit_rows: int
    cached: bool
    worker_mib: int


def show_plan(config_path: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print the plan."""
    plan = make_plan(load_config(config_path, overrides))
    if as_json:
        print(json.dumps(asdict(plan), indent=2))
        return
    console = Console(soft_wrap=True)
    config = Config.model_validate(plan.config)
    console.print(config.to_yaml(), end="", highlight=False, markup=False)
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    columns = ", ".join(
        f"{f['name']}[{f['width']}]" if f["vector"] else f["name"] for f in plan.features
    )
    width = sum(feature["width"] for feature in plan.features)
    share_mib = plan.fit_rows * plan.row_bytes / config.execution.workers / _MIB
    why = f"{share_mib:,.0f} MiB a worker, execution.cache_mib is {config.execution.cache_mib:,}"
    for name, value in (
        ("shards", f"{plan.shards:,} with {plan.row_groups:,} row groups"),
        ("rows", f"{plan.rows:,}, {plan.fit_rows:,} of them to learn from"),
        ("bytes", f"{plan.bytes / _MIB:,.1f} MiB, {plan.wanted_bytes / _MIB:,.1f} MiB to read"),
        ("features", f"{width:,}: {columns}"),
        ("slices", f"{plan.slices:,} of about {config.execution.target_slice_mib} MiB"),
        ("passes", f"{'from memory' if plan.cached else 'streamed'}: {why}"),
        ("memory", f"about {plan.worker_mib:,} MiB for each of {config.execution.workers} workers"),
    ):
        table.add_row(name, value)
    console.print(table)


def make_plan(config: Config) -> Plan:
    """Read the footers and work out what a run would do."""
    pinned = _pinned(config, all_footers=False)
    rows = int(pinned.shards["rows"].to_numpy().sum())
    pieces = pieces_of_shards(pinned.shards, config.execution.target_slice_mib)
    width = sum(column.width for column in pinned.features)
    row_bytes = width * np.dtype(pinned.dtype).itemsize
    fit_rows = min(rows, config.source.fit_rows or rows)
    share_bytes = fit_rows * row_bytes / config.execution.workers
    cached = share_bytes <= config.execution.cache_mib * _MIB
    layers = (width, *config.model.hidden, config.model.embedding)
    weights = 2 * sum((a + 1) * b for a, b in itertools.pairwise(layers))
    # Weights, their gradients and Adam's two moments, all float32.
    worker_mib = _WORKER_BASE_MIB + (weights * 16 + (share_bytes if cached else 2**28)) / _MIB
    return Plan(
        config=config.model_dump(mode="json"),
        shards=len(pinned.shards),
        rows=rows,
        bytes=int(pinned.shards["bytes"].to_numpy().sum()),
        wanted_bytes=int(
            pinned.shards["row_group_bytes"].combine_chunks().flatten().to_numpy().sum()
        ),
        row_groups=len(pieces),
        slices=len(by_slice(pieces)),
        features=[feature.model_dump() for feature in pinned.features],
        row_bytes=row_bytes,
        fit_rows=fit_rows,
        cached=cached,
        worker_mib=round(worker_mib),
    )


def check_input(
    config_path: str, overrides: Sequence[str], footers_only: bool, as_json: bool
) -> None:
    """Read everything that a run would read, and say that it is fine."""
    config = load_config(config_path, overrides)
    pinned = _pinned(config, all_footers=True)
    rows = int(pinned.shards["rows"].to_numpy().sum())
    usable = rows if footers_only else _usable_rows(config, pinned)
    check_enough_rows(config, usable)
    result = {"shards": len(pinned.shards), "rows": rows, "values_checked": not footers_only}
    if not footers_only:
        result["rows_usable"] = usable
    if as_json:
        print(json.dumps(result))
        return
    checked = "schemas only" if footers_only else f"{usable:,} of them with all features"
    print(f"config and input are fine: {len(pinned.shards):,} shards, {rows:,} rows, {checked}")


def _usable_rows(config: Config, pinned: PinnedInput) -> int:
    """Rows that would be clustered, every value of them looked at."""
    reader = Reader(
        features=pinned.features,
        dtype=pinned.dtype,
        nulls=config.source.nulls,
        carried=pinned.carried,
        shard_keys=not config.source.keys,
    )
    pieces = pieces_of_shards(pinned.shards, config.execution.target_slice_mib)
    return sum(len(b.x_BF) for part in by_slice(pieces) for b in reader.blocks(part))


def _pinned(config: Config, *, all_footers: bool) -> PinnedInput:
    known = None if all_footers else known_footers(config, Store(config.output))
    pinned = pin(config, list_shards(config), known=known)
    check_enough_rows(config, int(pinned.shards["rows"].to_numpy().sum()))
    return pinned
