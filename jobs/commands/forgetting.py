"""``dec forget``: remove rows by key, and list the snapshots that still have them."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jobs.session import configured, login
from jobs.tables import table
from pipeline.errors import ConfigError, InputError
from pipeline.lake.snapshots import snapshot_files
from pipeline.lake.tables import open_table
from pipeline.operations.forgetting import Forgotten, forget
from pipeline.operations.forgotten_keys import read_keys
from pipeline.operations.holdings import PAGE
from pipeline.storage import Store, why

NOTES = (
    "rows that are still in the source are labelled again on the next night: remove them there too",
    "models keep what they learnt of them, as weights and sums over many rows, until a refit",
)


def forget_rows(
    config_path: str, overrides: Sequence[str], keys_path: str, *, dry_run: bool, as_json: bool
) -> None:
    """Remove the rows; with ``dry_run``, only show what would be removed."""
    config = configured(config_path, overrides)
    if not config.source.keys:
        raise ConfigError(
            "source.keys is empty: shard and row number identify rows, but no person's row; set "
            "source.keys, run a night with it, and forget by those keys"
        )
    lake = Store(config.output)
    done = forget(
        lake,
        read_keys(keys_path, config.source.keys),
        who=f"{login()}@{socket.gethostname()}",
        dry_run=dry_run,
        table=open_table(config, lake),
        on_wait=lambda line: print(f"note: {line}", file=sys.stderr),
    )
    if not done.counts and not done.receipts and not snapshot_files(lake) and not lake.walk("runs"):
        # A mistyped output must not look as if the rows were gone.
        raise InputError(f"{lake.url} has no runs, so nothing to forget; check output")
    _make_reports_again(lake, done)
    if as_json:
        content = {
            "dry_run": dry_run,
            "counts": [count.model_dump(mode="json") for count in done.counts],
            "files": done.files,
            "receipts": [receipt.path for receipt in done.receipts],
            "snapshot": next((r.snapshot for r in reversed(done.receipts)), None),
            "held_by": list(done.held_by),
            "notes": list(NOTES),
        }
        print(json.dumps(content, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if done.counts:
        console.print(_counts(done, dry_run))
    else:
        console.print("no current file has a row with one of these keys")
    for receipt in done.receipts:
        if receipt.snapshot is not None:
            console.print(f"published as snapshot {receipt.snapshot}")
        console.print(f"receipt: {lake.locate(receipt.path)}")
    if done.held_by:
        numbers = ", ".join(map(str, done.held_by))
        verb = "would still hold" if dry_run else "still hold"
        console.print(f"snapshots that {verb} some of the rows until `dec gc`: {numbers}")
    for note in NOTES:
        console.print(f"note: {note}")


def _make_reports_again(lake: Store, done: Forgotten) -> None:
    """Recreate deleted reports, without the rows."""
    pages = (PAGE.fullmatch(file.old) for receipt in done.receipts for file in receipt.files)
    runs = sorted({page[1] for page in pages if page})
    if not runs:
        return
    from pipeline.report.page import make

    for run in runs:
        try:
            make(lake, run)
        except Exception as error:  # the rows are removed all the same
            print(
                f"note: the report of run {run} had some of the rows and was deleted; it could "
                f"not be recreated: {why(error)}",
                file=sys.stderr,
            )


def _counts(done: Forgotten, dry_run: bool) -> Table:
    numbers = ("rows", "files")
    verb = "would be removed from" if dry_run else "removed from"
    shown = table(verb, "ds", *numbers, numbers=numbers)
    for count in done.counts:
        kind = f"{count.kind}, staged" if count.staged else count.kind
        shown.add_row(kind, count.ds or "–", f"{count.rows:,}", f"{count.files:,}")
    return shown
