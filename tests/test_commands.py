"""Commands on an output that is wrong: one line that says what to do, and never a defect."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml
from conftest import blobs, write_shards
from nights_by_hand import cluster, ids, publish_night, register
from typer.testing import CliRunner, Result

from jobs import night
from jobs.arguments import of_ds
from jobs.cli import app
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.schema import UNDATED
from pipeline.storage import Store

COMMANDS = (
    ("gate", "RUN"),
    ("explain", "RUN"),
    ("locate", "RUN", "--key", "1"),
    ("promote", "RUN", "--why", "it is better"),
    ("rollback",),
    ("clusters",),
    ("rename", "0", "zero"),
    ("diff", "2026-01-01", "2026-01-02"),
    ("forget", "--keys"),
)


def dec(folder: Path, output: str, *words: str) -> Result:
    config, keys = folder / "config.yaml", folder / "keys.csv"
    source = {"path": "in", "features": ["x"], "keys": ["id"]}
    config.write_text(yaml.safe_dump({"source": source, "output": output, "clusters": 2}))
    keys.write_text("id\n1\n")
    given = [str(keys)] if words[-1] == "--keys" else []
    return CliRunner().invoke(app, [words[0], str(config), *words[1:], *given])


def line_of(result: Result) -> str:
    lines = result.output.splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: ")
    assert "defect" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_an_output_without_anything(words: tuple[str, ...], tmp_path: Path) -> None:
    result = dec(tmp_path, str(tmp_path / "nothing"), *words)
    assert result.exit_code == 3
    assert str(tmp_path / "nothing") in line_of(result)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_bucket_that_is_not_there(
    words: tuple[str, ...],
    s3_env: str,
    tmp_path: Path,
) -> None:
    result = dec(tmp_path, "s3://no-such-bucket/lake", *words)
    assert result.exit_code == 3
    assert "s3://no-such-bucket/lake" in line_of(result)


@pytest.mark.parametrize("words", COMMANDS[4:], ids=lambda words: words[0])
def test_an_output_that_is_a_file(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = dec(tmp_path, str(tmp_path / "file"), *words)
    assert result.exit_code in (2, 3)
    assert str(tmp_path / "file") in line_of(result)


@pytest.mark.parametrize(
    "words", [("rename", "0", "zero"), ("forget", "--keys")], ids=lambda words: words[0]
)
def test_an_output_that_may_not_be_written(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Store(str(tmp_path / "lake"))
    publish_night(lake, "r1", "2026-01-01", [(ids(1, 2), [0, 1])])
    register(lake, [cluster(0), cluster(1)])

    def makedirs(folder: str, **_: bool) -> None:  # root may write everywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    monkeypatch.setattr(os, "makedirs", makedirs)
    result = dec(tmp_path, lake.url, *words)
    assert result.exit_code == 2, result.output
    line = line_of(result)
    assert lake.url in line
    assert "permission denied" in line


# --------------------------------------------------------------------------------- many nights


@pytest.mark.parametrize(
    ("codes", "done", "worst"),
    [((0, 0, 0), 3, 0), ((0, 5, 0), 3, 5), ((0, 3, 0), 2, 3), ((5, 6, 0), 2, 6)],
    ids=["all", "one refused", "one fails", "refused, then a failure"],
)
def test_a_backfill_does_the_dates_in_order_until_one_fails(
    codes: tuple[int, ...], done: int, worst: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run_night(_: str, *, ds: str, by_schedule: bool, **__: object) -> int:
        assert by_schedule
        seen.append(ds)
        return codes[len(seen) - 1]

    monkeypatch.setattr(night, "run_night", run_night)
    words = ("backfill", "--from", "2026-02-27", "--to", "2026-03-01")
    assert dec(tmp_path, "lake", *words).exit_code == worst
    assert seen == ["2026-02-27", "2026-02-28", "2026-03-01"][:done]


def test_a_backfill_of_no_dates(tmp_path: Path) -> None:
    result = dec(tmp_path, "lake", "backfill", "--from", "2026-03-01", "--to", "2026-02-27")
    assert result.exit_code == 2
    assert "give the older date first" in line_of(result)


@pytest.mark.parametrize("path", ["in/ds={ds}", ["in/ds={ds}", "in/all"]])
def test_the_date_in_the_path_of_the_source(path: str | list[str]) -> None:
    source = {"path": path, "features": ["x"]}
    config = Config.model_validate({"source": source, "output": "lake", "clusters": 2})
    dated = of_ds(config, "2026-01-31").source.path
    assert dated == (
        "in/ds=2026-01-31" if isinstance(path, str) else ["in/ds=2026-01-31", "in/all"]
    )
    with pytest.raises(ConfigError, match="give --ds"):
        of_ds(config, UNDATED)


def test_check_and_plan_read_the_input_of_a_date(tmp_path: Path) -> None:
    write_shards(tmp_path / "in/ds=2026-01-31", blobs(300))
    source = {"path": str(tmp_path / "in/ds={ds}"), "features": ["x"], "keys": ["id"]}
    config = {"source": source, "output": str(tmp_path / "lake"), "clusters": 2}
    path = tmp_path / "dated.yaml"
    path.write_text(yaml.safe_dump(config))
    for command in ("check", "plan"):
        dated = CliRunner().invoke(app, [command, str(path), "--json", "--ds", "2026-01-31"])
        assert dated.exit_code == 0, dated.output
        assert json.loads(dated.stdout)["rows"] == 300
        undated = CliRunner().invoke(app, [command, str(path)])
        assert undated.exit_code == 2
        assert "give --ds" in undated.stderr
