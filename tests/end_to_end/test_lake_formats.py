"""A whole night into a Delta table, then the same run into Iceberg: what other engines find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deltalake
import pytest
from conftest import Dec, published
from pyiceberg.catalog import load_catalog

from pipeline.lake.snapshots import assignment_files
from pipeline.storage import Store


def stages_run(lake: Path, run: str) -> dict[str, str]:
    """When each stage was completed."""
    markers = (lake / "runs" / run / "stages").glob("*/done.json")
    return {path.parent.name: json.loads(path.read_text())["finished_at"] for path in markers}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_address")
def test_a_night_into_delta_and_then_iceberg(
    dec: Dec, settings: dict[str, Any], tmp_path: Path
) -> None:
    lake, words = tmp_path / "lake", ("run", "--ds", "2026-01-31", "--json")
    settings["lake"] = {"format": "delta"}
    first = dec(*words, settings=settings)
    assert first.code == 0, first.err
    run = first.json["run_id"]
    assert first.json["assignments"] == f"delta/{run}"
    table = deltalake.DeltaTable(str(lake / "delta"))
    rows = table.to_pyarrow_table()
    assert sorted(rows["id"].to_pylist()) == list(range(600))
    assert set(rows["ds"].to_pylist()) == {"2026-01-31"}
    assert rows.sort_by("id").equals(
        published(lake).cast(rows.schema).sort_by("id").select(rows.column_names)
    )
    trained = stages_run(lake, run)

    # Another format: the same run, assigned where that format wants it and published again.
    settings["lake"] = {"format": "iceberg", "table": "ml.clusters"}
    second = dec(*words, settings=settings)
    assert second.code == 0, second.err
    assert second.json["run_id"] == run
    again = {name for name, when in stages_run(lake, run).items() if trained[name] != when}
    assert again <= {"assign", "publish", "explain", "describe", "summary", "report"}
    catalog = load_catalog("dec", type="sql", uri=f"sqlite:///{lake}/iceberg/catalog.db")
    found = catalog.load_table("ml.clusters").scan().to_arrow()
    catalog.close()
    assert sorted(found["id"].to_pylist()) == list(range(600))
    assert {f"{lake}/runs/{run}/assignments"} == {
        str(Path(file).parent) for file in assignment_files(Store(str(lake)))
    }

    # The same again finds all of it done.
    before = stages_run(lake, run)
    assert dec(*words, settings=settings).code == 0
    assert stages_run(lake, run) == before


def test_keys_that_do_not_fit_are_known_at_the_start(
    dec: Dec, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["source"]["keys"] = ["id", "x"]
    settings["lake"] = {"format": "iceberg"}
    for command in ("run", "check"):
        result = dec(command, settings=settings)
        assert result.code == 3
        assert "column x: type fixed_size_list<element: float>[8] cannot be a key" in result.err
        assert len(result.err.splitlines()) == 1
    left = [path.relative_to(tmp_path / "lake") for path in (tmp_path / "lake").rglob("*.*")]
    assert all(path.parts[0] == "leases" for path in left)  # given back
