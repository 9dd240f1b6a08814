"""Each kind of bad input: one clear line, the exit code of its kind, nothing published."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray does not start."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("jobs.attempt.start_ray", start)


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


def with_x2(folder: Path) -> None:
    table = pq.read_table(folder / "shard-2.parquet")
    replace_shard(folder, table.append_column("x2", table["label"]))


@pytest.mark.parametrize(
    ("change", "setting", "value", "code", "words"),
    [
        (
            lambda folder: (folder / "shard-2.parquet").rename(folder / "shard-2"),
            *("source.nulls", "error", INPUT),
            ["source.path=", "Parquet without names that say so: 1 files (shard-2)", "/**/*"],
        ),
        (
            lambda folder: link(folder / "day=2", "gone"),
            *("source.nulls", "error", INPUT),
            ["input/day=2 is a link to gone, which does not exist"],
        ),
        (
            lambda folder: link(folder.parent / "way", "input"),
            *("output", "way/lake", CONFIG),
            ["output=way/lake lies in source.path="],
        ),
        (lambda _: None, "output", ".", CONFIG, ["output=. lies above source.path="]),
        (lambda _: None, "output", "gs://bucket/lake", CONFIG, ["output='gs://bucket/lake'"]),
        (lambda _: None, "source.path", "S3://b/in", CONFIG, ["write s3://b/in"]),
        (
            *(with_x2, "source.features", ["x*"], INPUT),
            ["matches column x2 of shard shard-2.parquet", "shard shard-0.parquet lacks"],
        ),
    ],
)
def test_files_that_are_refused(
    dec: Dec,
    settings: dict[str, Any],
    table_folder: Path,
    tmp_path: Path,
    no_ray: None,
    change: Callable[[Path], object],
    setting: str,
    value: Any,
    code: int,
    words: list[str],
) -> None:
    change(table_folder)
    refused(dec("run", settings=with_setting(settings, setting, value)), code, *words)
    assert not (tmp_path / "lake/snapshots").exists()
    assert not (table_folder / "lake").exists()


def test_delta_table_that_its_readers_would_not_find(
    dec: Dec, settings: dict[str, Any], tmp_path: Path, no_ray: None
) -> None:
    settings |= {"output": str(tmp_path / "lake%41"), "lake": {"format": "delta"}}
    refused(dec("run", settings=settings), CONFIG, "lake%41 holds %41", "lake.format: parquet")


def test_files_that_are_left_out_are_counted(
    dec: Dec, settings: dict[str, Any], table_folder: Path
) -> None:
    (table_folder / "_SUCCESS").touch()
    link(table_folder / "again.parquet", "shard-1.parquet")
    expected = [
        {"reason": "hidden", "files": 1, "examples": ["_SUCCESS"]},
        {"reason": "same_file", "files": 1, "examples": ["again.parquet"]},
    ]
    for command in ("check", "plan"):
        assert dec(command, "--json", settings=settings).json["left_out"] == expected
    shown = dec("check", settings=settings).out.splitlines()
    assert shown[:2] == [
        "left out of source.path: 1 hidden or unfinished (_SUCCESS)",
        "left out of source.path: 1 another path of a file that is read (again.parquet)",
    ]
    assert "1 hidden or unfinished (_SUCCESS)" in dec("plan", settings=settings).out


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
