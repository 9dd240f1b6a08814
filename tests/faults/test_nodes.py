"""SIGKILL of processes that Ray runs the work in; loss of whole nodes, replaced or not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from faults.ledger import FULL, Ledger
from faults.nights import (
    WIDE_ROWS,
    Night,
    assert_every_row_once,
    pacing,
    ray_processes,
    wide_settings,
)

pytestmark = pytest.mark.faults

REPLACED = "loss of a whole node, with a replacement"
GONE = "loss of a whole node, without a replacement"
# Both go on in the same way.
TRAININGS = ("pretrain", "refine") if FULL else ("pretrain",)
# What works on these stages; RayTrainWorker on the others.
TITLES = {"sample": "MapBatches(read)", "assign": "MapBatches(Assigner"}
# Gone nodes are noticed within 3 s; Ray takes 15, in which other things happen (in the full form).
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 2,
}


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head that only the driver is on, as on Kubernetes; tests add nodes."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": request.param}
    found = Cluster(initialize_head=True, head_node_args=head)
    yield found
    found.shutdown()


@pytest.fixture
def night(tmp_path: Path, cluster: Cluster) -> Iterator[Night]:
    settings = wide_settings(tmp_path / "wide")
    settings["augment"] = {"function": "paced:paced"}
    settings["pretrain"] |= {"batch_rows": 300}  # two updates a pass
    settings["refine"] = {"passes": 200, "batch_rows": 300, "tol": 0} if FULL else {"passes": 0}
    # One worker a node, and a bit for reading tasks.
    settings["execution"] |= {"cpus_per_worker": 1.5, "node_wait_seconds": 8, "retries": 1}
    found = Night(tmp_path / "night", settings, cluster.address)
    yield found
    found.stop()


def changed_at(file: Path) -> int:
    """In nanoseconds; 0 before it is there."""
    return file.stat().st_mtime_ns if file.exists() else 0


def lose(fault: str, cluster: Cluster, night: Night, stage: str) -> None:
    """Kill a process that works on the stage, or its whole node, amid it."""

    def at_work() -> list[tuple[Any, psutil.Process]]:
        found = []
        for node in cluster.worker_nodes:
            raylet = node.all_processes["raylet"][0].process.pid
            processes = ray_processes(TITLES.get(stage, "RayTrainWorker"), raylet)
            found += [(node, process) for process in processes]
        return found

    node, process = night.wait_for(at_work, step_s=0.01)[0]
    if fault in (REPLACED, GONE):
        cluster.remove_node(node, allow_graceful=False)
    else:
        process.kill()
    assert not night.complete(stage)
    if fault == REPLACED:
        cluster.add_node(num_cpus=2)


@pytest.mark.parametrize(
    "cluster", [QUICK_TO_NOTICE, {}] if FULL else [QUICK_TO_NOTICE], indirect=True
)
def test_lost_with_and_without_a_replacement_in_each_stage(
    cluster: Cluster, night: Night, ledger: Ledger
) -> None:
    hit: list[tuple[str, str]] = []

    def injure(fault: str, stage: str) -> None:
        lose(fault, cluster, night, stage)
        ledger.injected(fault, stage)
        hit.append((fault, stage))

    pace = pacing(night.folder)
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    night.start()
    injure("SIGKILL of a Ray Data task's worker", "sample")
    for stage in TRAININGS:
        pace.touch()
        checkpoint, saved_at = night.marker(stage).with_name("checkpoint.safetensors"), 0
        night.wait_for(lambda name=stage: f"night {name}] worker 0 of 2 on node" in night.log)
        for fault in ("SIGKILL of a train worker", REPLACED, GONE):
            # A loss without any progress since the last one would count as a second in a row.
            night.wait_for(lambda file=checkpoint, then=saved_at: changed_at(file) > then)
            workers = 1 if fault == GONE else 2
            line = re.compile(rf"night {stage}\] resumes after pass \d+ with {workers} workers")
            before = len(line.findall(night.log))
            injure(fault, stage)
            saved_at = changed_at(checkpoint)
            night.wait_for(lambda line=line, n=before: len(line.findall(night.log)) > n)
        pace.unlink()
        if stage != TRAININGS[-1]:
            cluster.add_node(num_cpus=2)

    parts = night.lake / "runs/night/assignments"
    night.wait_for(lambda: list(parts.glob("part-*")), step_s=0.005)
    injure(GONE, "assign")  # the last one
    result = night.finish()  # and does not wait for ever
    assert result.code == 6, result.err
    assert "the cluster has no room for 1 actor" in result.err
    assert len(result.err.splitlines()) == 1
    assert night.snapshots() == []
    log = night.logs()
    assert "1 of execution.workers=2 fit on" in log
    for stage in TRAININGS:  # one line each, and not from the start again
        assert log.count(f"training for runs/night/stages/{stage}: retry ") == 3
        assert {2, 1} <= set(night.artifact(stage)["workers"])
    kept = set(parts.glob("part-*"))
    assert kept

    for _ in range(2):
        cluster.add_node(num_cpus=2)
    night.start()
    for fault in ("SIGKILL of an assign actor", REPLACED):
        written = set(parts.glob("part-*"))
        night.wait_for(lambda then=written: set(parts.glob("part-*")) - then, step_s=0.005)
        injure(fault, "assign")
    result = night.finish()
    assert result.code == 0, result.err
    assert_every_row_once(night)
    assert kept <= set(parts.iterdir())
    for fault, stage in hit:
        ledger.survived(fault, stage, rows=WIDE_ROWS)
