"""What tests of several kinds share: one Ray for all of them, small real tables, the command."""

from __future__ import annotations

import itertools
import os

# Before anything loads OpenMP. On two cores, which Ray's processes use as well, threads that wait
# for each other make small products ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from chat_endpoint import chat  # noqa: F401
from dec_command import Finished, in_its_own_process, in_this_process
from object_store import s3_endpoint, s3_env  # noqa: F401

from pipeline.config import Config
from pipeline.engine import Context
from pipeline.storage import Store

# Fast to train, and still the whole way.
SMALL = {
    "model": {"hidden": [32, 16], "embedding": 4, "precision": "float32"},
    "pretrain": {"passes": 2, "min_updates": 0},
    "centroids": {"sample_rows": 1000, "restarts": 2, "iterations": 10},
    # Whatever wins after so little training.
    "refine": {"passes": 2, "select": "dec"},
    "execution": {"workers": 1},
}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two files at a time; those that are named run in this process, where a debugger works."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster on this machine, for this process and for commands that it starts."""
    import ray

    # Two CPUs more than a small machine has: most of what runs here waits.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def blobs(rows: int, *, width: int = 8, seed: int = 0) -> pa.Table:
    """Rows around three well separated points: id, x as fixed_size_list<float32>, label."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, rows)
    centers = np.array([[-4.0], [0.0], [4.0]]) * np.ones((3, width))
    x = (centers[label] + random.normal(size=(rows, width))).astype(np.float32)
    return pa.table(
        {
            "id": np.arange(rows),
            "x": pa.FixedSizeListArray.from_arrays(x.ravel(), width),
            "label": label.astype(np.int16),
        }
    )


def write_shards(folder: Path, table: pa.Table, shards: int = 4, **options: Any) -> Path:
    """Write a table as Parquet shards of about equal size."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, len(table), shards + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        pq.write_table(
            table.slice(start, stop - start), folder / f"shard-{number}.parquet", **options
        )
    return folder


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    """600 rows in four shards."""
    return write_shards(tmp_path / "input", blobs(600))


@pytest.fixture
def settings(table_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings that cluster that table with a small model."""
    return {
        "source": {"path": str(table_folder), "features": ["x"], "keys": ["id"]},
        "output": str(tmp_path / "lake"),
        "clusters": 3,
        "evaluate": {"label": "label"},
        **SMALL,
    }


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(run_id="test", ds="2026-01-31", lake=Store(str(tmp_path / "lake")))


def config_of(settings: dict[str, Any]) -> Config:
    return Config.model_validate(settings)


Dec = Callable[..., Finished]


@pytest.fixture
def dec(tmp_path: Path) -> Dec:
    """Run ``dec`` in an empty folder, with settings as its config file."""
    return with_settings(tmp_path, in_this_process)


@pytest.fixture
def dec_process(tmp_path: Path) -> Dec:
    """The same in a process of its own, which starts a Ray unless RAY_ADDRESS names one."""
    return with_settings(tmp_path, in_its_own_process)


def with_settings(folder: Path, run: Dec) -> Dec:
    """A way to run ``dec``, in this folder and with settings as its config file."""

    def dec(
        *words: str, settings: dict[str, Any] | None = None, env: dict[str, str] | None = None
    ) -> Finished:
        arguments = list(words)
        if settings is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(settings))
            arguments.append(str(folder / "config.yaml"))
        return run(folder, *arguments, env=env)

    return dec


def published(lake: Path | str, ds: str | None = None) -> pa.Table:
    """The published assignments, as a reader finds them."""
    from pipeline.lake.snapshots import assignment_files

    files = assignment_files(Store(str(lake)), ds)
    return pa.concat_tables([pq.read_table(path) for path in files])
