"""Imports go only downwards: the layers of the architecture, checked in every module's source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("pipeline", "jobs")
    for path in sorted((ROOT / package).rglob("*.py"))
}

# The floor of each room. A module imports from its own room and from lower floors, never sideways.
LAYERS = {
    "pipeline": 0,  # the package itself: its version
    "pipeline.credentials": 0,
    "pipeline.counts": 0,
    "pipeline.errors": 0,
    "pipeline.locations": 0,
    "pipeline.logs": 0,
    "pipeline.progress": 0,
    "pipeline.schema": 0,
    "pipeline.bill.records": 1,
    "pipeline.config": 1,
    "pipeline.storage": 1,
    "pipeline.artifacts": 2,
    "pipeline.model": 2,
    "pipeline.clustering": 2,
    "pipeline.naming": 2,
    "pipeline.runs": 3,
    "pipeline.engine": 4,
    "pipeline.input": 5,
    "pipeline.lake": 5,
    "pipeline.distributed": 6,
    "pipeline.registry": 6,
    "pipeline.insight": 7,
    "pipeline.labelling": 8,
    "pipeline.operations": 9,
    "pipeline.bill": 9,
    "pipeline.report": 9,
    "pipeline.tuning": 9,
    "pipeline.stages": 10,
    "pipeline.run": 11,
    "jobs": 12,
}

# Who may import what is heavy or belongs to one place; a unit, or one module of it.
LIBRARIES = {
    "ray": {"pipeline.distributed", "pipeline.stages", "jobs"},
    # A task's threads are set where it runs; the algorithm is in clustering.
    "faiss": {"pipeline.clustering", "pipeline.distributed.tasks"},
    "torch": {
        "pipeline.model",
        "pipeline.input",
        "pipeline.registry",
        "pipeline.insight",
        "pipeline.labelling",
        "pipeline.operations.locating",
        "pipeline.distributed",
        "pipeline.bill.measuring",
        "pipeline.tuning",
        "pipeline.stages",
    },
    "pyarrow": {
        "pipeline.schema",
        "pipeline.storage",
        "pipeline.artifacts",
        "pipeline.input",
        "pipeline.lake",
        "pipeline.registry",
        "pipeline.insight",
        "pipeline.labelling",
        "pipeline.operations",
        "pipeline.distributed",
        "pipeline.bill.measuring",
        "pipeline.report",
        "pipeline.tuning.trials",
        "pipeline.stages",
    },
    "duckdb": {"pipeline.operations.difference"},
    "jinja2": {"pipeline.report", "pipeline.tuning.results"},
    "sklearn": {"pipeline.clustering", "pipeline.input.example"},
    "s3fs": {"pipeline.storage"},
    "pyiceberg": {"pipeline.lake.tables.iceberg", "pipeline.input.lake_tables.iceberg"},
    "deltalake": {"pipeline.lake.tables.delta", "pipeline.input.lake_tables.delta"},
    "fsspec": {"pipeline.storage"},
    "botocore": {"pipeline.storage"},
    "aiobotocore": {"pipeline.storage"},
    "mlflow": {"jobs.tracking.mlflow"},
    "tensorboard": {"jobs.tracking.tensorboard"},
    "openlineage": {"jobs.tracking.openlineage"},
    "optuna": {"jobs.commands.tune_search"},
    "typer": {"jobs"},
    "rich": {"jobs"},
    "pickle": set(),
}
# Modules of Ray that are private or undocumented.
PRIVATE_RAY = re.compile(r"ray\.(.*\.)?_|ray\.(autoscaler|core)\b")
# Names from the same that no import shows: a method, hooks, a switch in the environment.
PRIVATE_RAY_NAMES = (
    "map_batches_internal",
    "custom_execution_callback_classes",
    "_register_sigint_handler",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
)
VAGUE_NAMES = {"data", "utils", "util", "helpers", "common", "manager", "process", "misc"}


def unit_of(module: str) -> str:
    """The unit of the architecture that a module belongs to; the longest name that fits."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LAYERS), f"unknown: {module}")


def imports(module: str, tree: ast.AST, *, is_package: bool) -> Iterator[str]:
    """Full names of everything that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = len(parents) - node.level + is_package
                base = ".".join([*parents[:kept], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                # "from pipeline.stages import pin" imports a module, "… import Config" a name.
                yield full if full in MODULES or alias.name.startswith("_") else base


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with a module's imports."""
    found = []
    unit = unit_of(module)
    for imported in imports(module, ast.parse(source), is_package=is_package):
        top = imported.split(".")[0]
        if top in ("pipeline", "jobs"):
            other = unit_of(imported)
            downwards = other in LAYERS and LAYERS[other] < LAYERS[unit]
            within = other == unit and unit != "pipeline.stages"
            if not (downwards or within):
                found.append(f"{module} imports {imported}")
        elif top in LIBRARIES and not LIBRARIES[top] & {unit, module}:
            found.append(f"{module} imports {imported}")
        elif PRIVATE_RAY.match(imported) and module != "pipeline.distributed.private_ray":
            found.append(f"{module} imports {imported}, which is private to Ray")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_only_downwards(module: str) -> None:
    path = MODULES[module]
    is_package = path.name == "__init__.py"
    assert violations(module, path.read_text(encoding="utf-8"), is_package=is_package) == []


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_ray_are_in_one_module(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    found = [name for name in PRIVATE_RAY_NAMES if name in source]
    assert not found or module == "pipeline.distributed.private_ray"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    # A new top-level module must be given its place above, not slip in under "pipeline".
    assert unit_of(module) in LAYERS
    assert module == "pipeline" or unit_of(module) != "pipeline"


@pytest.mark.parametrize("module", MODULES)
def test_names_say_something(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name.strip("_") for node in ast.walk(tree) if isinstance(node, functions)}
    assert not VAGUE_NAMES & (names | set(module.split(".")))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.config", "from pipeline.engine import Context"),
        ("pipeline.schema", "import pipeline.config"),
        ("pipeline.model.dec", "from pipeline.clustering.kmeans import kmeans"),
        ("pipeline.lake.parts", "def f():\n    from pipeline.stages.pin import pin"),
        ("pipeline.stages.pin", "from pipeline.stages.fit.sample import sample"),
        ("pipeline.stages.pin", "from pipeline.stages import sample"),
        ("pipeline.stages.pin", "from .sample import sample"),
        ("pipeline.run", "import jobs.night"),
        ("pipeline.run", "import ray"),
        ("pipeline.model.dec", "import ray.train"),
        ("pipeline.model.dec", "import pyarrow as pa"),
        ("pipeline.clustering.kmeans", "import torch"),
        ("pipeline.stages.fit.refine", "import faiss"),
        ("pipeline.lake.parts", "import s3fs"),
        ("pipeline.lake.tables", "import deltalake"),
        ("pipeline.stages.publish", "from pyiceberg.catalog import load_catalog"),
        ("jobs.night", "import torch"),
        ("pipeline.model.training", "import pickle"),
        ("pipeline.utils", "from pipeline.errors import InputError"),
        ("pipeline.input.feed", "import pipeline.distributed.tasks"),
        ("pipeline.distributed.tasks", "from ray._private import state"),
        ("pipeline.distributed.tasks", "from ray.data._internal.execution import util"),
        ("pipeline.distributed.tasks", "from ray.train.torch.config import _TorchBackend"),
        ("jobs.session", "def f():\n    from ray.autoscaler.v2.utils import is_autoscaler_v2"),
    ],
)
def test_the_rules_catch_what_they_forbid(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.distributed.tasks", "import faiss, ray, torch"),
        ("pipeline.distributed.tasks", "import ray.data"),
        ("pipeline.distributed.private_ray", "from ray._private import state"),
        ("pipeline.input.feed", "from pipeline.input.reading import Reader"),
        ("pipeline.engine", "from pipeline.artifacts.records import Artifact"),
        ("pipeline.distributed.training", "from pipeline.input.feed import WorkerRows"),
        ("pipeline.stages.pin", "from pipeline import errors"),
        ("jobs.cli", "from . import night"),
    ],
)
def test_the_rules_allow_what_the_design_needs(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # An actor's whole process, which every training waits for.
        ("pipeline.distributed.board", ("torch", "ray.data", "pandas", "pyarrow")),
        # What every command of a night begins with.
        ("pipeline.run", ("sklearn", "scipy", "torch._dynamo")),
    ],
)
def test_nothing_is_imported_for_nothing(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"
