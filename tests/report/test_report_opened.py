"""``dec report --open``: what a browser is shown, and what is left behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.report import _local


class Bucket:
    """An output whose files a browser cannot open."""

    url = "s3://bucket/lake"

    def read_bytes(self, path: str) -> bytes:
        return f"page {path}".encode()


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file that is opened of a run's page."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def show(run: str) -> Path:
        path = f"runs/{run}/report/index.html"
        url = _local(Bucket(), path, f"{Bucket.url}/{path}")  # type: ignore[arg-type]
        opened = Path(url.removeprefix("file://"))
        assert opened.read_text() == f"page {path}"
        assert not opened.parent.stat().st_mode & 0o077
        return opened

    return show


def test_a_page_is_copied_to_one_place(shown: Any, tmp_path: Path) -> None:
    first = shown("a")
    assert shown("a") == first
    other = shown("b")
    assert {*tmp_path.rglob("*.html")} == {first, other}
    os.utime(first, (0, 0))
    shown("b")
    assert {*tmp_path.rglob("*.html")} == {other}  # the next one clears what is old


@pytest.mark.parametrize("kind", ["link", "file", "open"])
def test_a_place_that_others_made_is_not_used(shown: Any, tmp_path: Path, kind: str) -> None:
    place, elsewhere = tmp_path / f"dec-report-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.write_bytes(b"")
    else:
        place.mkdir()
        place.chmod(0o777)
    assert shown("a").parent != place
    assert not [*elsewhere.iterdir()]


def test_a_page_on_this_machine_is_opened_where_it_lies(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    assert _local(Bucket(), "any", str(page)) == page.as_uri()  # type: ignore[arg-type]
