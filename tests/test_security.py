"""What must never be: code run from files that are read back, ports open to the network."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("pipeline", "jobs") for path in (ROOT / package).rglob("*.py")
)

# Each of these turns bytes or text into running code.
FORBIDDEN_CALLS = {
    "torch.load", "torch.jit.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "eval", "exec", "compile", "os.system", "os.popen",
}  # fmt: skip
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def dangers(source: str) -> Iterator[str]:
    """What in a module's source could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}"
            if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield f"line {node.lineno}: shell"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (
                f"line {node.lineno}: {name}"
                for name in names
                if name.split(".")[0] in FORBIDDEN_IMPORTS
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('f')",
        "import yaml\nyaml.load('f', yaml.Loader)",
        "from pickle import loads",
        "import cloudpickle as safe",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
    ],
)
def test_the_rule_catches_what_it_forbids(source: str) -> None:
    assert len(list(dangers(source))) == 1


def listeners(process: psutil.Process) -> set[tuple[str, str]]:
    """Name and address of whatever listens in a process and those that it started."""
    found = set()
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in member.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((member.name(), connection.laddr.ip))
    return found


@pytest.mark.slow
def test_ray_on_one_machine_listens_to_that_machine_alone(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = [sys.executable, "-m", "jobs.cli", "run", str(tmp_path / "config.yaml")]
    run = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    seen: set[tuple[str, str]] = set()
    while run.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen |= listeners(psutil.Process(run.pid))
        time.sleep(0.5)
    assert run.returncode == 0
    assert {"raylet", "gcs_server"} <= {name for name, _ in seen}
    assert {
        (name, address)
        for name, address in seen
        if not address.removeprefix("::ffff:").startswith("127.") and address != "::1"
    } == set()
