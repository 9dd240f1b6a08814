"""README and guides tell the truth: links, commands, options and configs."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from jobs.cli import app
from pipeline.artifacts.assignments import PartFile
from pipeline.config import load_config
from pipeline.lake.snapshots import FileList, Partition, publish
from pipeline.storage import Store

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "infra" / "guides").glob("*.md"))
DOCUMENTS = sorted(
    path
    for folder in ("", "configs", "infra", "infra/guides", "infra/decisions", "tests", "tests/*")
    for path in ROOT.glob(f"{folder}/*.md" if folder else "*.md")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_readme_fits_a_first_visit() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 150


def test_the_readme_links_every_guide() -> None:
    linked = {(ROOT / target).resolve() for target in links(README)}
    assert set(GUIDES) <= linked


# --------------------------------------------------------------------------------------- links


def links(document: Path) -> Iterator[str]:
    """Relative targets of the document's links and pictures, outside code."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in links(document):
        path, _, anchor = target.partition("#")
        aim = (document.parent / path).resolve() if path else document
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim), target


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=name_of
)
def test_every_path_named_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    named = re.findall(r"`((?:configs|infra|jobs|pipeline|tests)/[\w./-]*)", text)
    modules = re.findall(r"python -m ((?:jobs|pipeline|tests)[\w.]+)", text)
    paths = [*named, *(f"{module.replace('.', '/')}.py" for module in modules)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


# ------------------------------------------------------------------------------------ commands


def commands(document: Path) -> Iterator[str]:
    """Every ``dec …`` of the document's shell blocks and inline code."""
    text = document.read_text("utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                if found := re.match(r"(?:\.venv/bin/)?(dec .*)", command.strip()):
                    yield found[1]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"`(dec [a-z][^`]*)`", outside)


@functools.cache
def cli() -> Any:
    return typer.main.get_command(app)


def faults_of(command: str) -> list[str]:
    """Names in the command that ``dec`` does not know."""
    words = shlex.split(command.replace("[", " ").replace("]", " "), comments=True)[1:]
    here = cli()
    while hasattr(here, "commands") and words and not words[0].startswith("-"):
        word = words.pop(0)
        if word not in here.commands:
            return [word]
        here = here.commands[word]
    known = {"--help"} | {name for option in here.params for name in option.opts}
    return [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]


@pytest.mark.parametrize("document", [README, *GUIDES], ids=name_of)
def test_every_command_exists_with_its_options(document: Path) -> None:
    wrong = {command: faults for command in commands(document) if (faults := faults_of(command))}
    assert not wrong


def test_a_command_that_does_not_exist_is_found() -> None:
    assert faults_of("dec run CONFIG [--ds DATE]") == []
    assert faults_of("dec ran CONFIG") == ["ran"]
    assert faults_of("dec example letters FOLDER") == ["letters"]
    assert faults_of("dec run CONFIG [--date DATE] [--set a.b=c …]") == ["--date"]


def test_the_guide_lists_every_command() -> None:
    text = (ROOT / "infra" / "guides" / "commands.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `dec ([a-z]+)", text, flags=re.M))
    assert listed == set(cli().commands)


# ------------------------------------------------------------------------------------- configs

BASE = {
    "source": {"path": "table.parquet", "features": ["x"], "keys": ["id"]},
    "output": "lake",
    "clusters": 10,
}


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every config in YAML, whole or in part, of README and guides."""
    for document in [README, *GUIDES]:
        blocks = re.findall(r"^```yaml\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
        for number, block in enumerate(blocks):
            settings = yaml.safe_load(block)
            if set(settings) != {"env"}:  # of a container
                yield f"{name_of(document)}-{number}", settings


@pytest.mark.parametrize(
    "settings", [pytest.param(settings, id=name) for name, settings in configs()]
)
def test_every_config_is_understood(settings: dict[str, Any], tmp_path: Path) -> None:
    whole: dict[str, Any] = copy.deepcopy(BASE)
    for section, values in settings.items():
        merge = isinstance(values, dict) and isinstance(whole.get(section), dict)
        whole[section] = {**whole[section], **values} if merge else values
    if (settings.get("source") or {}).get("table"):
        del whole["source"]["path"]  # one or the other
    if (settings.get("lake") or {}).get("table"):  # a lake with a catalog of its own is shared
        whole["output"] = "s3://bucket/lake/"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    load_config(str(path))


# ------------------------------------------------------------------------------------- reading


def test_duckdb_reads_the_assignments_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    lake = Store("dec-quickstart/lake")
    parts = []
    for name, clusters in {"a": [7, 7], "b": [8]}.items():
        path = f"runs/r/assignments/part-{name}.parquet"
        Path(lake.locate(path)).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"cluster_id": clusters}), lake.locate(path))
        parts.append(PartFile(path=path, rows=len(clusters), bytes=1))
    lake.write_json("runs/r/files.json", FileList(rows=3, files=tuple(parts)).model_dump())
    partition = Partition(run_id="r", model_id="m", rows=3, files="runs/r/files.json")
    publish(lake, "undated", partition, "commit")
    exec(program, {})
    shown = capsys.readouterr().out
    assert re.search(r"\b7 │ +2\b", shown)
    assert re.search(r"\b8 │ +1\b", shown)
