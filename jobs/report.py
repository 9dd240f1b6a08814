"""``dec report``: make the page of a run again, and show it."""

from __future__ import annotations

import json
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from jobs.night import checked_run_id
from jobs.session import configured
from pipeline.lake.receipts import read_receipts
from pipeline.report.making import make
from pipeline.storage import Store


def make_report(
    config_path: str, overrides: Sequence[str], run_id: str, *, open_it: bool, as_json: bool
) -> None:
    """Write ``report/index.html`` of a run, and say where it is."""
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    known = None
    while known != (known := len(read_receipts(lake))):  # what was forgotten meanwhile goes too
        report = make(lake, run_id)
    url = lake.locate(report.page.path)
    if as_json:
        print(json.dumps(report.model_dump(mode="json") | {"url": url}, indent=2))
    else:
        print(f"report  {url}  ({report.page.bytes / 1e6:.1f} MB)")
    if open_it:
        webbrowser.open(_local(lake, report.page.path, url))


def _local(lake: Store, path: str, url: str) -> str:
    """An address that a browser opens: of an object store's file, a copy's."""
    if "://" not in url:
        return Path(url).as_uri()
    copy = Path(tempfile.mkdtemp(prefix="dec-report-")) / "index.html"
    copy.write_bytes(lake.read_bytes(path))
    return copy.as_uri()
