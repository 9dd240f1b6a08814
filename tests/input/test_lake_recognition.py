"""Plain paths that lead to files of lake tables are refused, from wherever they point."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.input.pinning import list_shards

ROWS = pa.table(
    {"id": [1, 2, 3, 4], "x": [1.0, 2.0, 3.0, 4.0], "country": ["nl", "nl", "de", "b r"]}
)


def listed(path: Any, **source: Any) -> list[str]:
    path = [str(p) for p in path] if isinstance(path, list) else str(path)
    settings = {"path": path, "features": ["x"], **source}
    config = Config.model_validate({"source": settings, "output": "/nowhere", "clusters": 2})
    return [file.name for file in list_shards(config)]


def delta(root: Path) -> Path:
    write_deltalake(str(root), ROWS, partition_by=["country"])
    return root


def iceberg(root: Path) -> Path:
    root.mkdir(parents=True)
    catalog = SqlCatalog("c", uri=f"sqlite:///{root}/c.db", warehouse=f"file://{root}/w")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", ROWS.schema)
    table.append(ROWS)
    return Path(table.location().removeprefix("file://"))


def hudi(root: Path) -> Path:
    for name in (".hoodie/hoodie.properties", "country=nl/.hoodie_partition_metadata"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("hoodie.table.version=6")
    pq.write_table(ROWS, root / "country=nl/0a1b.parquet")
    return root


@pytest.mark.parametrize(
    ("make", "name", "below"),
    [
        (delta, "the Delta Lake table", "country=nl"),
        (iceberg, "the Apache Iceberg table", "data"),
        (hudi, "the Apache Hudi table", "country=nl"),
    ],
)
def test_wherever_the_path_points(tmp_path: Path, make: Any, name: str, below: str) -> None:
    root = make(tmp_path / "lake" / "t")
    file = next((root / below).rglob("*.parquet"))
    places: list[Any] = [root, f"{root}/", root / below, file, f"{root}/*/*.parquet", f"{root}/**"]
    places += [f"{root}/*", f"{file.parent}/*.parquet", f"file://{root}"]
    places += [root.parent, root.parent.parent, f"{root.parent}/*"]  # a folder that holds the table
    link = tmp_path / "link"
    link.symlink_to(root / below)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.parquet").symlink_to(file)
    pq.write_table(ROWS, tmp_path / "plain.parquet")
    places += [link, tmp_path / "links", [tmp_path / "plain.parquet", root]]
    for place in places:
        with pytest.raises(InputError) as refused:
            listed(place)
        message = str(refused.value)
        assert name in message
        assert str(root) in message
        assert "source.format: files" in message
        assert ("source.format: delta" in message) == (make is delta)
        assert ("source.format: iceberg" in message) == (make is iceberg)
        assert listed(place, format="files")
    assert refused.value.exit_code == 3


def test_plain_files_beside_a_table_are_read(tmp_path: Path) -> None:
    delta(tmp_path / "table")
    pq.write_table(ROWS, tmp_path / "plain.parquet")
    assert listed(tmp_path / "plain.parquet") == ["plain.parquet"]
    assert listed(f"{tmp_path}/*.parquet") == ["plain.parquet"]


def test_folders_that_only_look_like_metadata(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.json").write_text("{}")
    (tmp_path / "_delta_log").mkdir()
    pq.write_table(ROWS, tmp_path / "a.parquet")
    assert listed(tmp_path) == ["a.parquet"]


def test_a_table_without_files(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), ROWS.slice(0, 0))
    with pytest.raises(InputError, match="Delta Lake table"):
        listed(tmp_path / "t")
