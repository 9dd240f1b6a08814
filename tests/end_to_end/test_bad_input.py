"""Each kind of bad input: one clear line, the exit code of its kind, nothing published."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Dec, Finished, blobs

CONFIG, INPUT = 2, 3


def refused(result: Finished, code: int, *words: str) -> None:
    """The command failed with this code and one line of error that holds these words."""
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert result.out == ""
    for word in words:
        assert word in lines[0]


def replace_shard(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / "shard-2.parquet")


def x_of(values: list[list[Any]], kind: pa.DataType) -> pa.Table:
    rows = len(values)
    return pa.table(
        {
            "id": np.arange(1000, 1000 + rows),
            "x": pa.array(values, kind),
            "label": np.zeros(rows, np.int16),
        }
    )


def with_setting(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    settings = copy.deepcopy(settings)
    *sections, last = path.split(".")
    section = settings
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return settings


# -------------------------------------------------------- what config and footers show, before Ray


@pytest.mark.parametrize(
    ("setting", "value", "code", "words"),
    [
        ("source.path", "nowhere/at/all", INPUT, ["source.path=nowhere/at/all", "nothing"]),
        ("source.features", ["xx"], INPUT, ["no column xx", "did you mean x?"]),
        ("source.features", ["x", "x"], CONFIG, ["source.features", "more than once"]),
        ("source.features", ["x", "?"], INPUT, ["source.features", "x more than once"]),
        ("source.keys", ["ids"], INPUT, ["no column ids", "did you mean id?"]),
        ("evaluate.label", "lable", INPUT, ["no column lable", "did you mean label?"]),
        ("evaluate.label", "x", CONFIG, ["evaluate.label='x'", "source.features"]),
        ("output", "input/lake", CONFIG, ["output=input/lake", "lies in source.path"]),
        ("clusters", 0, CONFIG, ["clusters=0", "greater than or equal to 2"]),
        ("clusters", 601, INPUT, ["clusters=601", "the input has 600"]),
        ("refine.alhpa", 1.0, CONFIG, ["refine.alhpa is not a setting", "refine.alpha"]),
        ("refine.alpha", 0.0, CONFIG, ["refine.alpha=0.0", "greater than 0"]),
    ],
)
def test_wrong_settings(
    dec: Dec,
    settings: dict[str, Any],
    tmp_path: Path,
    setting: str,
    value: Any,
    code: int,
    words: list[str],
) -> None:
    if value == 601:
        settings["centroids"]["sample_rows"] = 100_000
    # `plan` and `run` check the same way; `plan` is there sooner.
    refused(dec("plan", settings=with_setting(settings, setting, value)), code, *words)
    assert not (tmp_path / "lake").exists()
    assert not (tmp_path / "input/lake").exists()


def test_no_parquet_there(dec: Dec, settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no table")
    settings["source"]["path"] = str(tmp_path / "text")
    refused(dec("run", settings=settings), INPUT, "no Parquet file", ".parquet")


@pytest.mark.parametrize(
    ("value", "feature", "words"),
    [
        (b"a", "s", ["column s", "binary", "is not a number"]),
        ("a", {"column": "s", "type": "number"}, ["column s", "string", "Make it type: category"]),
    ],
)
def test_feature_of_no_use(
    dec: Dec,
    settings: dict[str, Any],
    table_folder: Path,
    value: Any,
    feature: Any,
    words: list[str],
) -> None:
    for path in table_folder.iterdir():
        table = pq.read_table(path)
        pq.write_table(table.append_column("s", pa.array([value] * len(table))), path)
    settings["source"]["features"] = ["x", feature]
    refused(dec("run", settings=settings), INPUT, *words)


def test_vectors_of_different_width(dec: Dec, settings: dict[str, Any], table_folder: Path) -> None:
    replace_shard(table_folder, blobs(150, width=9))
    refused(dec("run", settings=settings), INPUT, "shard-2.parquet", "width 9", "expected 8")


def test_corrupt_shard(dec: Dec, settings: dict[str, Any], table_folder: Path) -> None:
    (table_folder / "shard-2.parquet").write_bytes(b"PAR1 but not really PAR1")
    refused(dec("run", settings=settings), INPUT, "shard-2.parquet cannot be read", "restore it")


def test_truncated_shard(dec: Dec, settings: dict[str, Any], table_folder: Path) -> None:
    shard = table_folder / "shard-2.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(dec("run", settings=settings), INPUT, "shard-2.parquet cannot be read")


def test_output_cannot_be_written(dec: Dec, settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    settings["output"] = str(tmp_path / "file" / "lake")
    refused(dec("run", settings=settings), CONFIG, "output=", "cannot be written")


def test_config_is_missing(dec: Dec) -> None:
    refused(dec("run", "missing.yaml"), CONFIG, "missing.yaml", "No such file")


def test_error_as_json(dec: Dec, settings: dict[str, Any]) -> None:
    result = dec("run", "--json", settings=with_setting(settings, "clusters", 0))
    assert result.code == CONFIG
    assert result.json["error"]["kind"] == "ConfigError"
    assert result.json["error"]["exit_code"] == CONFIG


# ------------------------------------------------------------------- what shows while reading rows


@pytest.fixture
def on_ray(ray_address: str) -> dict[str, str]:
    return {"RAY_ADDRESS": ray_address}


@pytest.mark.slow
def test_too_few_cpus(dec_process: Dec, settings: dict[str, Any], on_ray: dict[str, str]) -> None:
    settings["execution"] = {"workers": 50}
    result = dec_process("run", settings=settings, env=on_ray)
    refused(result, CONFIG, "execution.workers=50", "25.5 CPUs", "the cluster has 4")


def test_missing_values(
    dec: Dec, settings: dict[str, Any], table_folder: Path, on_ray: dict[str, str]
) -> None:
    rows: list[list[Any]] = [[0.0] * 8 for _ in range(20)]
    rows[3][5], rows[7][0], rows[7][1], rows[9][2] = None, float("nan"), None, float("-inf")
    replace_shard(table_folder, x_of(rows, pa.list_(pa.float32(), 8)))
    result = dec("run", settings=settings, env=on_ray)
    refused(result, INPUT, "shard-2.parquet", "column x", "3 of 20 rows", "source.nulls")
    assert not (Path(settings["output"]) / "snapshots").exists()
    assert not list(Path(settings["output"]).glob("runs/*/assignments/*"))


def test_ragged_lists(
    dec: Dec, settings: dict[str, Any], table_folder: Path, on_ray: dict[str, str]
) -> None:
    # 8, 7 and 9 values: their mean is 8, so the footer cannot tell.
    rows = [[0.0] * 8, [0.0] * 7, [0.0] * 9]
    replace_shard(table_folder, x_of(rows, pa.list_(pa.float32())))
    result = dec("run", settings=settings, env=on_ray)
    refused(result, INPUT, "shard-2.parquet", "column x", "7 to 9 values", "one width")


def test_damaged_pages(
    dec: Dec, settings: dict[str, Any], table_folder: Path, on_ray: dict[str, str]
) -> None:
    shard = table_folder / "shard-2.parquet"
    content = bytearray(shard.read_bytes())
    content[4:400] = bytes(396)  # the footer is fine, the first pages are not
    shard.write_bytes(content)
    result = dec("run", settings=settings, env=on_ray)
    refused(result, INPUT, "shard-2.parquet cannot be read")
