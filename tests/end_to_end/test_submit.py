"""``dec submit`` to real clusters of two and three nodes that share nothing but S3.

Every node has temporary files, sockets, logs, spilled objects and a home of its own; the head has
no CPUs, as on Kubernetes. Whoever submits has neither credentials nor the table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL, Finished, blobs
from faults.ledger import FULL
from faults.nights import ray_processes
from object_store import ACCESS_KEY, BUCKET, SECRET_KEY, SESSION_TOKEN
from ray.cluster_utils import Cluster

from pipeline import storage
from pipeline.lake.snapshots import assignment_files
from pipeline.storage import Store

pytestmark = pytest.mark.cluster

ROWS, SHARDS = 24_000, 8
DS = "2026-01-31"
PATIENCE_S = 600.0  # a hang fails, a slow machine does not


class Machines:
    """A cluster whose nodes are on one machine, and behave as if they were not."""

    def __init__(self) -> None:
        # Short: Ray's sockets lie below, and the names of sockets may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="dec-", dir="/tmp"))
        self._nodes = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": port,
                **self._own(),
            },
        )
        # As `ray start` does: where a job's driver finds the cluster that it belongs to.
        (self.folder / "0" / "ray_current_cluster").write_text(self.cluster.address)
        self.address = f"http://127.0.0.1:{port}"

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=2, **self._own())

    def _own(self) -> dict[str, Any]:
        temporary = self.folder / str(self._nodes)
        home = temporary / "home"
        home.mkdir(parents=True)
        self._nodes += 1
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            "temp_dir": str(temporary),
            "dashboard_agent_listen_port": None,  # any; other clusters may have the usual one
            "env_vars": {
                "HOME": str(home),
                "TMPDIR": str(home),
                "PATH": path,
                "RAY_AUTH_MODE": "disabled",
            },
        }

    def close(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class Line:
    """The way from a laptop to a dashboard, which can be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._there = (host, int(port))
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.down = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                here, _ = self._listener.accept()
                if self.down:
                    here.close()
                    continue
                there = socket.create_connection(self._there)
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # cut
            while content := source.recv(65536):
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.down = True
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def mend(self) -> None:
        self.down = False

    def close(self) -> None:
        self.cut()
        self._listener.close()


@pytest.fixture
def line(two_nodes: Machines) -> Iterator[Line]:
    made = Line(two_nodes.address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def two_nodes(s3_env: dict[str, str]) -> Iterator[Machines]:
    """A head, and a node that works. The nodes have S3 from their environment."""
    with pytest.MonkeyPatch.context() as patch:
        # A Ray that this process has started before leaves "token" here; the token lies at home.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        machines = Machines()
        machines.add()
        yield machines
        machines.close()


@pytest.fixture
def three_nodes(two_nodes: Machines) -> Machines:
    """A head, and two nodes that work."""
    while len(two_nodes.cluster.worker_nodes) < 2:
        two_nodes.add()
    return two_nodes


@pytest.fixture(scope="module")
def table(s3_env: dict[str, str]) -> pa.Table:
    """The input; it lies in S3 alone."""
    rows, store = blobs(ROWS, width=16), Store(f"s3://{BUCKET}/items")
    for number in range(SHARDS):
        part = rows.slice(number * ROWS // SHARDS, ROWS // SHARDS)
        store.write_table(f"shard-{number}.parquet", part)
    return rows


class Laptop:
    """A machine that submits: an empty home, a config, and no access to the object store."""

    def __init__(self, folder: Path, address: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.write()
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(folder),
            "RAY_API_SERVER_ADDRESS": address,
        }
        self.lake = Store(settings["output"])
        self._started: list[subprocess.Popen[str]] = []

    def write(self) -> None:
        (self.folder / "night.yaml").write_text(yaml.safe_dump(self.settings))

    def start(self, *words: str) -> Following:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "submit", "night.yaml", *words],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return Following(process)

    def submit(self, *words: str) -> Finished:
        return self.start(*words).finish()

    def rows(self, ds: str) -> pa.Table:
        """Published rows of this date, by key."""
        tables = []
        for path in assignment_files(self.lake, ds):
            with storage.open_input(path) as file:
                tables.append(pq.read_table(file))
        return pa.concat_tables(tables).sort_by("id")

    def stop(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()


class Following:
    """``dec submit`` under way, and what it has shown so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.out += line

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait until it holds while the command runs; returns what it gave."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.process.poll() is None, f"{self.out}{self.finish().err}"
            assert time.monotonic() < deadline, self.out
            time.sleep(0.05)
        return found

    def wait_for_line(self, text: str) -> None:
        self.wait_for(lambda: text in self.out)

    def finish(self) -> Finished:
        code = self.process.wait(timeout=PATIENCE_S)
        self._reader.join()
        return Finished(code, self.out, self.process.stderr.read())


@pytest.fixture
def laptop(tmp_path: Path, table: pa.Table) -> Iterator[Callable[..., Laptop]]:
    made: list[Laptop] = []

    def make(address: str, name: str, **execution: Any) -> Laptop:
        settings = {
            "source": {
                "path": f"s3://{BUCKET}/items",
                "features": ["x"],
                "keys": ["id"],
                "fit_rows": 600,
                "held_out": 0,
            },
            "output": f"s3://{BUCKET}/{name}",
            "clusters": 3,
            **SMALL,
            "execution": {"target_slice_mib": 1, "checkpoint_seconds": 1, **execution},
        }
        made.append(Laptop(tmp_path, address, settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def assert_every_row_once(laptop: Laptop, table: pa.Table) -> None:
    rows = laptop.rows(DS)
    np.testing.assert_array_equal(rows["id"].to_numpy(), table["id"].to_numpy())
    assert set(rows["ds"].to_pylist()) == {DS}


def test_two_nodes(
    two_nodes: Machines, line: Line, laptop: Callable[..., Laptop], table: pa.Table
) -> None:
    from ray.job_submission import JobSubmissionClient

    night = laptop(line.address, "two", workers=1, cpus_per_worker=1)
    night.settings["augment"] = {"function": "own:brighter"}
    night.write()
    (night.folder / "own").mkdir()
    (night.folder / "own" / "own.py").write_text(
        "def brighter(rows, generator):\n    return rows + 0.1\n"
    )
    words = ("--ds", DS, "--run-id", "night", "--working-dir", "own")

    # Stopped by somebody, after some stages; meanwhile nobody else gets in.
    endless = ("--set", "refine.passes=100000", "--set", "refine.tol=0")
    first = night.start(*words, "--follow", *endless)
    first.wait_for_line("pin             started")
    line.cut()
    time.sleep(3)  # long enough to be asked
    line.mend()
    first.wait_for_line("refine          started")
    second = night.submit(*words)
    assert second.code == 9
    assert second.err.startswith(f"error: night-{DS} is on this cluster already, RUNNING; ")
    assert len(second.err.splitlines()) == 1
    client = JobSubmissionClient(two_nodes.address)
    job = client.get_job_info(f"night-{DS}")
    shown = job.model_dump_json()
    assert not [secret for secret in (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN) if secret in shown]
    assert job.metadata is not None
    assert job.metadata.items() >= {"pipeline": "night", "ds": DS, "run_id": "night"}.items()
    assert client.stop_job(f"night-{DS}")
    stopped = first.finish()
    assert stopped.code == 130
    failure = night.lake.read_json("runs/night/failure.json")  # the run itself had the time for it
    assert (failure["kind"], failure["stage"]) == ("Interrupted", "refine")
    assert stopped.err == f"night-{DS} was stopped; submit again to resume it\n"
    for stage in ("pin", "sample", "pretrain", "refine"):
        assert stopped.out.count(f"{stage:<15} started") == 1

    # The same again goes on, and shows its own log alone; of two at once, one does.
    both = [night.start(*words, "--follow") for _ in range(2)]
    again, refused = sorted((one.finish() for one in both), key=lambda result: result.code)
    assert refused.code == 9, refused.out + refused.err
    assert "is on this cluster already" in refused.err
    assert again.code == 0, again.out + again.err
    assert again.out.count("pretrain        already complete") == 1
    assert "refine          done in" in again.out
    assert f"assignments  s3://{BUCKET}/two/" in again.out
    assert "\x1b" not in again.out
    assert_every_row_once(night, table)

    # Complete: shown again, by the job's own code.
    shown = night.submit(*words, "--json", "--wait")
    assert shown.code == 0, shown.err
    assert shown.json == {
        "submission_id": f"night-{DS}",
        "address": line.address,
        "status": "SUCCEEDED",
        "exit_code": 0,
    }
    # Each node has unpacked the job's files for itself.
    unpacked = two_nodes.folder.glob("*/session_*/runtime_resources/working_dir_files/*/own.py")
    assert {path.relative_to(two_nodes.folder).parts[0] for path in unpacked} == {"0", "1"}


def test_the_jobs_own_exit_code(two_nodes: Machines, laptop: Callable[..., Laptop]) -> None:
    night = laptop(two_nodes.address, "errors", workers=1)
    nowhere = f"source.path=s3://{BUCKET}/nowhere"
    ended = night.submit("--set", nowhere, "--wait", "--name", "broken")
    assert ended.code == 3
    error, last = ended.err.splitlines()
    assert error.startswith("error: source.path=")
    assert last == "broken-undated failed: exit code 3"


@pytest.mark.skipif(not FULL, reason="faults/test_nodes.py kills a node of a cluster like this")
def test_three_nodes_of_which_one_is_killed(
    three_nodes: Machines, laptop: Callable[..., Laptop], table: pa.Table
) -> None:
    night = laptop(
        three_nodes.address, "three", workers=2, cpus_per_worker=1.5, node_wait_seconds=3
    )
    following = night.start(
        *("--ds", DS, "--run-id", "night", "--follow"),
        *("--set", "pretrain.passes=200", "--set", "pretrain.batch_rows=32"),
    )
    checkpoint = "runs/night/stages/pretrain/checkpoint.safetensors"
    following.wait_for(lambda: night.lake.exists(checkpoint))

    def training() -> list[Any]:
        return [
            node
            for node in three_nodes.cluster.worker_nodes
            if ray_processes("RayTrainWorker", node.all_processes["raylet"][0].process.pid)
        ]

    lost = following.wait_for(training)[0]
    assert not night.lake.exists("runs/night/stages/pretrain/done.json")
    three_nodes.cluster.remove_node(lost, allow_graceful=False)
    ended = following.finish()
    assert ended.code == 0, ended.out + ended.err
    workers = night.lake.read_json("runs/night/stages/pretrain/done.json")["artifact"]["workers"]
    assert (workers[0], workers[-1]) == (2, 1)
    assert_every_row_once(night, table)
