"""What a run asks of the cluster, checked before anything waits for it."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from pipeline.config import Execution
from pipeline.errors import ConfigError

# Half a CPU is enough of a claim to keep Ray's scheduler from placing other work on it, and two
# workers on a laptop's two CPUs leave one for the tasks that draw the sample.
_LEAST_CPUS_PER_WORKER = 0.5
# What is left must run at least one task of Ray Data, which waits for ever otherwise.
_LEAST_CPUS_FOR_TASKS = 0.5

READER_CPUS = 0.25
"""CPUs that a reading task claims: it mostly waits for storage."""


@dataclass(frozen=True)
class Resources:
    """How the cluster's CPUs are shared out.

    Attributes:
        workers: Training workers, and actors of the assign stage.
        cpus_per_worker: What each claims from Ray's scheduler.
        threads: Threads that each computes with: workers × threads = CPUs.
    """

    workers: int
    cpus_per_worker: float
    threads: int

    @property
    def per_worker(self) -> dict[str, float]:
        """As Ray's schedulers want it."""
        return {"CPU": self.cpus_per_worker}


def share_out(settings: Execution) -> Resources:
    """Share the cluster's CPUs between the workers, and leave some to Ray Data.

    Raises:
        ConfigError: The cluster can't hold that many workers, which would wait for ever.
    """
    nodes = [
        node["Resources"].get("CPU", 0.0)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    cpus, workers = sum(nodes), settings.workers
    claim = settings.cpus_per_worker or _LEAST_CPUS_PER_WORKER
    needed = workers * claim + _LEAST_CPUS_FOR_TASKS
    places = sum(int(node // claim) for node in nodes)  # a worker cannot span two nodes
    if needed > cpus or workers > places:
        fit = min(places, int((cpus - _LEAST_CPUS_FOR_TASKS) / claim))
        advice = f"Set execution.workers to {fit} or add nodes"
        if fit < 1:
            advice = "Lower execution.cpus_per_worker or add nodes"
        raise ConfigError(
            f"execution.workers={workers} needs {needed:g} CPUs ({claim:g} each and "
            f"{_LEAST_CPUS_FOR_TASKS:g} for Ray Data); the cluster has {cpus:g} on "
            f"{len(nodes)} nodes. {advice}"
        )
    threads = max(1, int(settings.cpus_per_worker or cpus / workers))
    return Resources(workers, claim, threads)
