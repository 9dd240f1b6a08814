"""Loss of whole nodes of a cluster, with and without a replacement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from faults.ledger import FULL, Ledger
from faults.nights import WIDE_ROWS, Night, assert_every_row_once, ray_processes, wide_settings

pytestmark = pytest.mark.faults

REPLACED = "loss of a whole node, with a replacement"
GONE = "loss of a whole node, without a replacement"
# What is at work on a node in these stages; both trainings go on in the same way.
TITLES = {"pretrain": "RayTrainWorker", "assign": "MapBatches(Assigner"}
if FULL:
    TITLES = {"pretrain": "RayTrainWorker", "refine": "RayTrainWorker", **TITLES}
# Gone nodes are noticed within 3 s; Ray takes 15, in which other things happen (in the full form).
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(params=[{}])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head that only the driver is on, as on Kubernetes; tests add nodes."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": request.param}
    found = Cluster(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


@pytest.fixture
def night_with(tmp_path: Path, cluster: Cluster) -> Iterator[Callable[..., Night]]:
    nights: list[Night] = []

    def make(**execution: Any) -> Night:
        settings = wide_settings(tmp_path / "wide")
        # One worker a node, and a bit for reading tasks.
        settings["execution"] |= {"cpus_per_worker": 1.5, **execution}
        nights.append(Night(tmp_path / "night", settings, cluster.address))
        return nights[-1]

    yield make
    for night in nights:
        night.stop()


def lose_a_node(cluster: Cluster, night: Night, stage: str) -> None:
    """Kill a node that works on the stage, amid it: when there is a checkpoint or a part file."""
    left = night.marker(stage).with_name("checkpoint.safetensors")
    if stage == "assign":
        parts = night.lake / "runs/night/assignments"
        night.wait_for(lambda: list(parts.glob("part-*")), step_s=0.005)
    else:
        night.wait_for(left.exists)

    def at_work() -> list[Any]:
        return [
            node
            for node in cluster.worker_nodes
            if ray_processes(TITLES[stage], node.all_processes["raylet"][0].process.pid)
        ]

    cluster.remove_node(night.wait_for(at_work, step_s=0.02)[0], allow_graceful=False)
    assert not night.complete(stage)


@pytest.mark.parametrize("cluster", [{} if FULL else QUICK_TO_NOTICE], indirect=True)
def test_lost_and_replaced_in_each_stage(
    cluster: Cluster, night_with: Callable[..., Night], ledger: Ledger
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    night = night_with(node_wait_seconds=240)
    night.start()
    for stage in TITLES:
        lose_a_node(cluster, night, stage)
        cluster.add_node(num_cpus=2)
        ledger.injected(REPLACED, stage)
    result = night.finish()
    assert result.code == 0, result.err
    trainings = [stage for stage in TITLES if stage != "assign"]
    for stage in trainings:
        assert set(night.artifact(stage)["workers"]) == {2}
    assert night.logs().count("resumes after pass") >= len(trainings)
    assert_every_row_once(night)
    for stage in TITLES:
        ledger.survived(REPLACED, stage, rows=WIDE_ROWS)


@pytest.mark.parametrize("cluster", [QUICK_TO_NOTICE], indirect=True)
def test_lost_for_good_until_none_is_left(
    cluster: Cluster, night_with: Callable[..., Night], ledger: Ledger
) -> None:
    nodes = len(TITLES)
    for _ in range(nodes):
        cluster.add_node(num_cpus=2)
    night = night_with(node_wait_seconds=3)
    night.start()
    for stage in TITLES:
        lose_a_node(cluster, night, stage)
        ledger.injected(GONE, stage)
    result = night.finish()  # and does not wait for ever
    assert result.code == 6, result.err
    assert "the cluster has no room for 1 actor" in result.err
    assert len(result.err.splitlines()) == 1
    assert night.snapshots() == []
    # Two nodes are enough, one goes on.
    workers = night.artifact("pretrain")["workers"]
    assert (workers[0], workers[-1]) == (2, min(2, nodes - 1))
    assert night.artifact("refine")["workers"][-1] == 1
    assert "1 of execution.workers=2 fit on" in night.logs()
    kept = {path.name for path in (night.lake / "runs/night/assignments").glob("part-*")}
    assert kept

    for _ in range(2):
        cluster.add_node(num_cpus=2)
    result = night.run()
    assert result.code == 0, result.err
    assert_every_row_once(night)
    assert kept <= {path.name for path in (night.lake / "runs/night/assignments").iterdir()}
    for stage in TITLES:
        ledger.survived(GONE, stage, rows=WIDE_ROWS)
