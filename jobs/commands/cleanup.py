"""``dec gc``: remove what retention does not keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.session import configured
from jobs.tables import table
from pipeline.operations.garbage import collect
from pipeline.storage import Store


def collect_garbage(
    config_path: str, overrides: Sequence[str], *, dry_run: bool, as_json: bool
) -> None:
    """Remove it and list it; with ``dry_run``, only list it."""
    config = configured(config_path, overrides)
    lake = Store(config.output)
    done = collect(
        lake,
        config.retention,
        dry_run=dry_run,
        tables=config.lake.format != "parquet",
        on_wait=lambda line: print(f"note: {line}", file=sys.stderr),
    )
    if as_json:
        names = ("kind", "name", "files", "bytes")
        content = {
            "dry_run": dry_run,
            "bytes": done.bytes,
            "removals": [{n: getattr(removal, n) for n in names} for removal in done.removals],
            "skipped": done.skipped,
            "kept_snapshots": done.kept_snapshots,
            "kept_runs": done.kept_runs,
        }
        print(json.dumps(content, indent=2))
        return
    console = Console(soft_wrap=True)
    if done.removals:
        verb, numbers = "would be removed" if dry_run else "removed", ("files", "MiB")
        shown = table(verb, "below the output", *numbers, numbers=numbers)
        for removal in done.removals:
            size = f"{removal.bytes / 2**20:,.1f}"
            shown.add_row(removal.kind, removal.name, f"{len(removal.files):,}", size)
        console.print(shown)
    for line in done.skipped:
        print(f"kept: {line}", file=sys.stderr)
    verb = "would free" if dry_run else "freed"
    console.print(
        f"{verb} {done.bytes:,} bytes of {lake.url}; kept: {len(done.kept_snapshots):,} snapshots, "
        f"{len(done.kept_runs):,} runs",
        highlight=False,
        markup=False,
    )
