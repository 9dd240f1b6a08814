"""The cluster that an estimate is for."""

from __future__ import annotations

import math
import os

from pipeline.bill.records import Cluster
from pipeline.config import Execution
from pipeline.distributed.resources import (
    READER,
    Node,
    assign_crew,
    shortage,
    training_crew,
    working_nodes,
)
from pipeline.errors import ConfigError


def running_cluster(execution: Execution) -> Cluster:
    """The cluster that this process is connected to, or else ``cluster_of`` the settings."""
    nodes = working_nodes()
    if not nodes:
        return cluster_of(execution)
    cpus, gpus = (sum(each) / len(nodes) for each in zip(*nodes, strict=True))
    return cluster_of(execution, len(nodes), cpus, gpus)


def cluster_of(
    execution: Execution,
    nodes: int | None = None,
    cpus_per_node: float | None = None,
    gpus_per_node: float | None = None,
) -> Cluster:
    """The given nodes; without any, as much as the settings ask for, or this machine."""
    crews = training, assigning = training_crew(execution), assign_crew(execution)
    by_settings = nodes is None and cpus_per_node is None
    claimed = max(crew.most * (crew.threads or 0) for crew in crews)
    cpus = cpus_per_node or float(os.cpu_count() or 1)
    if by_settings and claimed:
        cpus = math.ceil(claimed + READER.cpus)
    if gpus_per_node is None:
        gpus_per_node = by_settings * max(crew.most * crew.claim.gpus for crew in crews)
    threads, actor_threads = (
        max(1, int(crew.threads or min(cpus, (nodes or 1) * cpus / crew.most))) for crew in crews
    )
    return Cluster(
        nodes=nodes or 1,
        cpus_per_node=cpus,
        gpus_per_node=math.ceil(gpus_per_node),
        workers=training.most,
        threads=threads,
        actors=assigning.most,
        actor_threads=actor_threads,
        worker_gpus=execution.gpus_per_worker,
        actor_gpus=execution.gpus_per_actor,
        started_here=by_settings and not claimed,
    )


def check_fits(cluster: Cluster, execution: Execution) -> None:
    """Check that a cluster holds what the settings ask for, as a run does before its first stage.

    Raises:
        ConfigError: It does not.
    """
    nodes = [Node(cluster.cpus_per_node, cluster.gpus_per_node)] * cluster.nodes
    for crew in (training_crew(execution), assign_crew(execution)):
        if short := shortage(nodes, crew):
            raise ConfigError(f"{short}, or plan for others with --nodes and --cpus-per-node")
