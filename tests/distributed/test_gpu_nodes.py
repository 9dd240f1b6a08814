"""Clusters with nodes for data, nodes with GPUs, and a head that has neither.

The GPUs are Ray's alone: where things are placed is what is tested, and that workers compute all
the same on a node whose GPU torch cannot use.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, blobs, write_shards
from faults.nights import WIDE_ROWS, Night, assert_every_row_once, pacing, ray_processes
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, a node for data, and one of two nodes with a GPU."""
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    found.add_node(num_cpus=4)  # room for the reading tasks of all slices
    with_gpu(found)
    yield found
    found.shutdown()


def with_gpu(cluster: Cluster) -> Any:
    """One more node with a GPU."""
    return cluster.add_node(num_cpus=2, num_gpus=1)


class Placement:
    """Watches which of Ray's processes are at work on which node.

    Attributes:
        seen: Node ids by what works there.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.seen: dict[str, set[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Placement:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for node in self._cluster.list_all_nodes():
                for process in node.all_processes.get("raylet", []):
                    for title in ("RayTrainWorker", "MapBatches(read", "MapBatches(Assigner"):
                        if ray_processes(title, process.process.pid):
                            self.seen.setdefault(title, set()).add(node.node_id)


POOL = """
import sys, time
import pyarrow as pa, ray
from pipeline.config import Execution
from pipeline.distributed.resources import Claim
from pipeline.distributed.tasks import map_slices

ray.init(sys.argv[1], log_to_driver=False)

class Slow:
    def __call__(self, pieces):
        time.sleep(1)
        return pa.table({"node": [ray.get_runtime_context().get_node_id()]})

slices = [pa.table({"shard": [number]}) for number in range(300)]
results = map_slices(Execution(), slices, Slow, claim=Claim(1, 1), actors=(1, 2))
for result in results:
    print(result["node"][0], flush=True)
"""


def test_a_pool_of_actors_takes_a_node_that_comes(cluster: Cluster) -> None:
    words = [sys.executable, "-c", POOL, cluster.address]
    pool = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert pool.stdout is not None
    first = pool.stdout.readline().strip()
    later = with_gpu(cluster)
    try:
        nodes = [first]
        while later.node_id not in nodes:
            nodes.append(pool.stdout.readline().strip())
            assert nodes[-1], "it ended without a slice on the node that came"
        assert first != later.node_id
    finally:
        pool.kill()
        pool.wait()
        cluster.remove_node(later)


def test_a_run_that_grows(cluster: Cluster, tmp_path: Path) -> None:
    pace = pacing(tmp_path / "night")
    table = write_shards(tmp_path / "table", blobs(WIDE_ROWS), 8, compression="none")
    settings = {
        "source": {
            "path": str(table),
            "features": ["x"],
            "keys": ["id"],
            "fit_rows": 640,
            "held_out": 0,
        },
        "clusters": 3,
        **SMALL,
        "augment": {"function": "paced:paced"},
        # Paced, five minutes for one worker and as many for two: 4 updates a pass.
        "pretrain": {"passes": 300, "min_updates": 0, "batch_rows": 160},
        "execution": {
            "workers": 2,
            "min_workers": 1,
            "cpus_per_worker": 1,
            "gpus_per_worker": 1,
            "actors": 2,
            "min_actors": 1,
            "cpus_per_actor": 0.5,
            "gpus_per_actor": 0.25,
            "target_slice_mib": 1,
        },
    }
    sizes = {node.get_resource_and_label_spec().num_gpus: node for node in cluster.worker_nodes}
    data, card = sizes[0], sizes[1]
    night = Night(tmp_path / "night", settings, cluster.address)
    try:
        with Placement(cluster) as placement:
            night.start()
            night.wait_for(lambda: f"worker 0 of 1 on node {card.node_id}" in night.log)
            second = with_gpu(cluster)
            night.wait_for(lambda: f"of 2 on node {second.node_id}" in night.log)
            pace.unlink()
            result = night.finish()
    finally:
        night.stop()
    assert result.code == 0, result.err
    assert_every_row_once(night)

    workers = night.artifact("pretrain")["workers"]
    assert workers == sorted(workers)
    assert set(workers) == {1, 2}
    assert set(night.artifact("refine")["workers"]) == {2}
    logs = night.logs()
    assert "room for 2 workers instead of 1" in logs
    assert "retry 1 of" not in logs  # growing is no failure

    cards = {card.node_id, second.node_id}
    trained = re.findall(r"worker \d of \d on node (\w+) uses cpu", logs)
    assert set(trained) == cards
    assert set(re.findall(r"assign: actor on node (\w+) computes on cpu", logs)) <= cards
    assert "does not find CUDA on every worker" in logs
    tasks = re.findall(r"(\w+): ran in a task on node (\w+)", logs)
    assert dict(tasks) == dict.fromkeys(
        ("embed_and_cluster", "measure", "identify", "explain", "fitted"), data.node_id
    )
    assert placement.seen["RayTrainWorker"] == cards
    assert placement.seen["MapBatches(read"] == {data.node_id}
    assert placement.seen["MapBatches(Assigner"] <= cards


def test_what_can_never_be_is_refused_before_any_work(cluster: Cluster, tmp_path: Path) -> None:
    table = write_shards(tmp_path / "table", blobs(600))
    source = {"path": str(table), "features": ["x"]}
    settings = {"source": source, "clusters": 3, **SMALL}
    settings["execution"] = {"workers": 9, "gpus_per_worker": 1}
    night = Night(tmp_path / "night", settings, cluster.address)
    result = night.run()
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "execution.workers=9 needs 5 CPUs and 9 GPUs" in line
    assert "Set execution.workers to" in line
    assert not night.complete("sample")


def test_folders_that_nodes_do_not_share_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    table = write_shards(tmp_path / "table", blobs(600))
    settings = {
        "source": {"path": f"{table}/shard-[0-9].parquet", "features": ["x"]},
        "output": "/proc/self/cwd/lake",  # another folder for every process
        "clusters": 3,
        **SMALL,
    }
    result = Night(tmp_path / "night", settings, cluster.address).run()
    assert result.code == 2, result.err
    (line,) = result.err.splitlines()
    assert "/proc/self/cwd/lake does not exist on every node of the cluster; use s3://" in line
