"""Every layout of input that a table may have, through the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import blobs, config_of, published, write_shards

from pipeline.engine import Context, Execution
from pipeline.run import run

pytestmark = pytest.mark.usefixtures("ray_address")

ROWS, WIDTH = 300, 8


def matrix(table: pa.Table) -> np.ndarray:
    return table["x"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)


def every_layout(table: pa.Table) -> pa.Table:
    """The same vectors in every layout that a feature may have, side by side."""
    from ray.data.extensions import ArrowTensorArray

    x = matrix(table)
    whole = np.round(x * 8 + 64).clip(0, 120)
    scalars = {
        f"f_{kind}": pa.array(whole[:, i].astype(kind))
        for i, kind in enumerate(("uint8", "int64", "float16", "float32", "float64"))
    }
    return pa.table(
        {
            "id": table["id"],
            "label": table["label"],
            "fixed": table["x"],
            "list": table["x"].cast(pa.list_(pa.float32())),
            "arrow_tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(x.reshape(-1, 2, 4)),
            "ray_tensor": ArrowTensorArray.from_numpy(x.copy()),
            "bytes": pa.FixedSizeListArray.from_arrays(whole.astype(np.uint8).ravel(), WIDTH),
            **scalars,
            "f_bool": pa.array(x[:, 0] > 0),
            "f_category": pa.array(whole[:, 1].astype(np.int32)).dictionary_encode(),
        }
    )


def cluster(settings: dict[str, Any], context: Context) -> pa.Table:
    """Run it all; what is published must be the input's rows, once each."""
    summary = run(Execution(config_of(settings), context))
    rows = published(context.lake.url)
    assert summary.rows_out == len(rows)
    return rows


def test_every_feature_layout(settings: dict[str, Any], context: Context, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "layouts", every_layout(blobs(ROWS)), shards=2)
    features = ["fixed", "list", "arrow_tensor", "ray_tensor", "bytes", "f_*"]
    settings["source"] |= {"path": str(folder), "features": features}
    rows = cluster(settings, context)
    assert sorted(rows["id"].to_pylist()) == list(range(ROWS))
    manifest = context.lake.read_json("runs/test/manifest.json")
    assert [c["width"] for c in manifest["features"]] == [WIDTH] * 5 + [1] * 7


@pytest.mark.slow
def test_bytes_stay_bytes(settings: dict[str, Any], context: Context, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "images", every_layout(blobs(ROWS)), shards=2)
    settings["source"] |= {"path": str(folder), "features": ["bytes"], "scaling": "unit_norm"}
    rows = cluster(settings, context)
    assert sorted(rows["id"].to_pylist()) == list(range(ROWS))
    assert context.lake.read_json("runs/test/manifest.json")["dtype"] == "uint8"


@pytest.mark.slow
def test_shards_that_differ_and_several_keys(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    """Row-group size, column order, extra columns, an empty shard, encodings of the keys."""
    table = blobs(ROWS)
    country = pa.array([f"c{i % 5}" for i in range(ROWS)])
    table = table.append_column("country", country)
    folder = tmp_path / "different"
    folder.mkdir()
    pq.write_table(table.slice(0, 100), folder / "a.parquet", row_group_size=7)
    reordered = table.select(["country", "x", "label", "id"]).slice(100, 100)
    pq.write_table(reordered.append_column("extra", pa.nulls(100)), folder / "b.parquet")
    pq.write_table(table.slice(0, 0), folder / "c.parquet")
    encoded = table.set_column(3, "country", pc.dictionary_encode(country)).slice(200)
    pq.write_table(encoded, folder / "d.parquet")
    settings["source"] |= {"path": str(folder), "keys": ["country", "id"]}
    rows = cluster(settings, context).sort_by("id")
    assert rows.column_names[:2] == ["country", "id"]
    assert rows.schema.field("country").type == pa.string()
    assert rows["id"].to_pylist() == list(range(ROWS))
    assert rows["country"].to_pylist() == country.to_pylist()


@pytest.mark.slow
def test_dictionary_key_stays_a_dictionary(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    table = blobs(ROWS).append_column("sku", pa.array([f"s{i}" for i in range(ROWS)]))
    table = table.set_column(3, "sku", table["sku"].dictionary_encode())
    folder = write_shards(tmp_path / "dictionary", table, shards=3)
    settings["source"] |= {"path": str(folder), "keys": ["sku"], "scaling": "minmax"}
    rows = cluster(settings, context)
    assert pa.types.is_dictionary(rows.schema.field("sku").type)
    assert sorted(rows["sku"].to_pylist()) == sorted(f"s{i}" for i in range(ROWS))


@pytest.mark.slow
def test_without_keys_shard_and_row_number_stand_in(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    """Shards that a list of a file and a glob names."""
    folder = write_shards(tmp_path / "keyless", blobs(ROWS), shards=4, row_group_size=30)
    paths = [str(folder / "shard-0.parquet"), str(folder / "shard-[23].parquet")]
    settings["source"] = {"path": paths, "features": ["x"]}
    rows = cluster(settings, context)
    found = set(zip(rows["shard"].to_pylist(), rows["row_number"].to_pylist(), strict=True))
    assert found == {(f"shard-{s}.parquet", row) for s in (0, 2, 3) for row in range(75)}


def test_hive_folders_as_key_and_as_feature(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    table = blobs(ROWS)
    for number, (country, year) in enumerate((("nl", 2024), ("de", 2025), ("nl", 2026))):
        folder = tmp_path / f"hive/country={country}/year={year}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(number * 100, 100), folder / "part.parquet")
    settings["source"] |= {
        "path": str(tmp_path / "hive"),
        "features": ["x", "year"],
        "keys": ["country", "id"],
    }
    rows = cluster(settings, context).sort_by("id")
    assert rows["id"].to_pylist() == list(range(ROWS))
    assert rows["country"].to_pylist() == ["nl"] * 100 + ["de"] * 100 + ["nl"] * 100
