"""``dec report``: recreate the report of a run, and open it."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jobs.arguments import checked_run_id
from jobs.session import configured
from pipeline.lake.receipts import read_receipts
from pipeline.report.page import make
from pipeline.storage import Store, sha256

_KEPT_S = 86_400  # a copy: its tab may be reloaded


def make_report(
    config_path: str, overrides: Sequence[str], run_id: str, *, open_it: bool, as_json: bool
) -> None:
    """Write ``report/index.html`` of a run, and print its location."""
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    known = None
    while known != (known := len(read_receipts(lake))):  # rows forgotten meanwhile
        report = make(lake, run_id)
    url = lake.locate(report.page.path)
    if as_json:
        print(json.dumps(report.model_dump(mode="json") | {"url": url}, indent=2))
    else:
        print(f"report  {url}  ({report.page.bytes / 1e6:.1f} MB)")
    if open_it:
        webbrowser.open(_local(lake, report.page.path, url))


def _local(lake: Store, path: str, url: str) -> str:
    """URL for a browser; for a file in an object store, that of a local copy."""
    if "://" not in url:
        return Path(url).as_uri()
    folder = _own_folder()
    for old in folder.glob("*.html"):
        with suppress(FileNotFoundError):  # deleted by another command meanwhile
            if old.stat().st_mtime < time.time() - _KEPT_S:
                old.unlink()
    # One name per page: opening it again leaves no second copy.
    copy = folder / f"{sha256(url.encode())[:16]}.html"
    copy.write_bytes(lake.read_bytes(path))
    return copy.as_uri()


def _own_folder() -> Path:
    """Private folder for copies, which show rows: no other user may read or replace it."""
    folder = Path(tempfile.gettempdir()) / f"dec-report-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        seen = folder.lstat()
    except FileExistsError:  # a file
        return Path(tempfile.mkdtemp(prefix="dec-report-"))
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077
    return folder if ours else Path(tempfile.mkdtemp(prefix="dec-report-"))
