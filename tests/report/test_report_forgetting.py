"""A report shows keys: whoever is forgotten is on it no more, nor on the map that it is made of."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import Made

from jobs.commands.forgetting import _make_reports_again
from pipeline.operations.forgetting import forget
from pipeline.operations.forgotten_keys import KeySet
from pipeline.report.page import make, page_path
from pipeline.storage import Store

KEYS = [f"k{n:03}-" for n in range(120)]
SECRET = "k007-7"  # among the exemplars, and on the map


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    lake = Store(str(tmp_path / "lake"))
    for run in ("made", "other"):
        keys = KEYS if run == "made" else [f"o{key}" for key in KEYS]
        Made(lake, keys=keys, run_id=run).write()
        make(lake, run)
    return lake


def page(lake: Store, run: str) -> str:
    return lake.read_bytes(page_path(run)).decode()


def test_the_page_goes_and_is_made_again_without_the_row(lake: Store) -> None:
    assert page(lake, "made").count(SECRET) > 1
    other = page(lake, "other")
    done = forget(lake, KeySet(pa.table({"id": [SECRET]}), "keys.parquet"), who="me@here")
    # Killed here, there is no page that shows it.
    assert not lake.exists(page_path("made"))
    assert "report" in {count.kind for count in done.counts}
    _make_reports_again(lake, done)
    again = page(lake, "made")
    assert SECRET not in again
    assert "k008-8" in again
    tables = [file.name for file in lake.walk("runs") if "stages/report/map" in file.name]
    rows = {name: pq.read_table(lake.locate(f"runs/{name}"))["id"].to_pylist() for name in tables}
    assert len(tables) == 2  # one a run: the old one is gone
    assert sorted(map(len, rows.values())) == [119, 120]
    assert SECRET not in {key for keys in rows.values() for key in keys}
    assert page(lake, "other") == other


def test_a_dry_run_leaves_the_page(lake: Store) -> None:
    before = page(lake, "made")
    keys = KeySet(pa.table({"id": [SECRET]}), "keys.parquet")
    done = forget(lake, keys, who="me@here", dry_run=True)
    assert "report" in {count.kind for count in done.counts}
    assert page(lake, "made") == before


def test_a_row_that_is_on_no_page_leaves_it(lake: Store) -> None:
    before = page(lake, "made")
    done = forget(lake, KeySet(pa.table({"id": ["nobody"]}), "keys.parquet"), who="me@here")
    assert done.counts == ()
    assert page(lake, "made") == before
