"""Resources that a run claims from the cluster, checked before anything waits for them."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import Execution
from pipeline.distributed.autoscaler import Autoscaler
from pipeline.distributed.private_ray import unclaimed_resources
from pipeline.errors import ConfigError, NodesLost

log = logging.getLogger(__name__)

# Half a CPU is enough to keep Ray from placing other work there; two workers on a laptop's two CPUs
# leave one for the tasks that draw the sample.
_LEAST_CPUS_PER_WORKER = 0.5
# What is left must hold at least one task of Ray Data, which would wait for ever.
_LEAST_CPUS_FOR_TASKS = 0.5
# Time between two looks at the cluster: each asks its head, and nodes do not return faster.
_LOOK_SECONDS = 2.0
# Longer than a cluster's head needs to notice that a node is gone (5 checks, 3 s apart).
_SILENCE_SECONDS = 30.0
# 1 / 0.1 counts as 10 despite rounding; Ray itself counts in ten-thousandths.
_ROUNDING = 1e-6


class Node(NamedTuple):
    """Resources of a node, as Ray's scheduler sees them."""

    cpus: float
    gpus: float = 0.0


class Claim(NamedTuple):
    """Resources that a process claims from Ray's scheduler, all on one node."""

    cpus: float
    gpus: float = 0.0  # a whole number, or a share of a single GPU

    def places_on(self, node: Node) -> int:
        """Number of processes that fit on a node."""
        places = int(node.cpus / self.cpus + _ROUNDING)
        if self.gpus:
            # A share comes from one GPU, never from the rests of two.
            each, gpus = (int(1 / self.gpus + _ROUNDING), 1) if self.gpus < 1 else (1, self.gpus)
            places = min(places, int(node.gpus / gpus + _ROUNDING) * each)
        return places

    @property
    def resources(self) -> dict[str, float]:
        """In the form that Ray's schedulers take."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        """For messages."""
        gpus = f" and {_amount(self.gpus, 'GPU')}" if self.gpus else ""
        return _amount(self.cpus, "CPU") + gpus


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}" + "s" * (number != 1)


READER = Claim(cpus=0.5)
"""Claim of a reading task, which waits for storage half of its time."""


@dataclass(frozen=True)
class Crew:
    """Processes of one kind that work together."""

    kind: str  # "worker", "actor" or "task", as in the settings of execution
    claim: Claim  # claim of each process
    fewest: int  # minimum number later in a run, after a loss of nodes
    most: int  # maximum number
    begin: int  # minimum number that a run starts with
    threads: float | None = None  # threads of each; None divides the CPUs of their nodes

    def bundles(self, processes: int) -> list[dict[str, float]]:
        """Resources to request for this many processes and a task of Ray Data."""
        return [self.claim.resources] * processes + [READER.resources]


@dataclass(frozen=True)
class Resources:
    """Resources of a crew that fits the cluster: workers × threads = CPUs of their nodes."""

    workers: int
    claim: Claim  # claim of each process
    threads: int  # threads of each process


def training_crew(settings: Execution) -> Crew:
    """The training workers."""
    claim = Claim(settings.cpus_per_worker or _LEAST_CPUS_PER_WORKER, settings.gpus_per_worker)
    fewest, most = settings.min_workers, settings.workers
    threads = settings.cpus_per_worker
    return Crew("worker", claim, fewest or 1, most, begin=fewest or most, threads=threads)


def assign_crew(settings: Execution) -> Crew:
    """The actors that assign rows."""
    threads = settings.cpus_per_actor or settings.cpus_per_worker
    claim = Claim(threads or _LEAST_CPUS_PER_WORKER, settings.gpus_per_actor)
    fewest, most = settings.min_actors, settings.actors or settings.workers
    return Crew("actor", claim, fewest or 1, most, begin=fewest or most, threads=threads)


def task_crew(settings: Execution) -> Crew:
    """The single task that works on a sample, on a node without GPUs where there is one.

    It has as many threads as a worker, or as such a node has CPUs.
    """
    nodes = cluster_nodes()
    sizes = [node.cpus for node in nodes if node.cpus and not node.gpus]
    largest = max(sizes or [node.cpus for node in nodes], default=0.0)
    cpus = min(settings.cpus_per_worker or _LEAST_CPUS_PER_WORKER, largest or math.inf)
    shared = sum(node.cpus for node in nodes) / settings.workers
    threads = cpus if settings.cpus_per_worker else min(largest, shared)
    return Crew("task", Claim(cpus), fewest=1, most=1, begin=1, threads=threads)


def share_out(settings: Execution, on_wait: Callable[[str], None] = log.info) -> Resources:
    """The resources that training begins with, if the cluster can hold the whole run.

    Missing nodes are requested from the autoscaler, which has ``scale_up_seconds`` to add them;
    ``on_wait`` is called once with a line that says what is waited for.

    Raises:
        ConfigError: The cluster can never hold the run: it would wait for ever.
        NodesLost: An autoscaler did not add the nodes in time.
    """
    training = training_crew(settings)
    for crew in (training, assign_crew(settings)):
        _scale_up(settings, crew, on_wait)
    nodes = cluster_nodes()
    return _shared(training, nodes, min(training.most, fitting(nodes, training.claim)))


def shortage(nodes: Sequence[Node], crew: Crew) -> str | None:
    """Which setting these nodes cannot satisfy, what they have, and what to set; None: they can.

    ``nodes`` include the head. ``begin`` of the crew's processes must fit, and a task of Ray Data
    beside them.
    """
    fit, claim = fitting(nodes, crew.claim), crew.claim
    if fit >= crew.begin:
        return None
    kind = crew.kind
    setting = f"execution.{'min_' if crew.begin < crew.most else ''}{kind}s"
    has = f"the cluster has {_in_words(nodes)}"
    if claim.gpus and not any(node.gpus for node in nodes):
        return (
            f"execution.gpus_per_{kind}={claim.gpus:g} needs nodes with GPUs; {has}. "
            f"Set execution.gpus_per_{kind} to 0 or add nodes with GPUs"
        )
    needs = Claim(crew.begin * claim.cpus + _LEAST_CPUS_FOR_TASKS, crew.begin * claim.gpus)
    advice = f"Set {setting} to {fit} or add nodes"
    if fit < 1:
        advice = f"Lower execution.cpus_per_{kind} or add nodes"
        if not any(node.cpus for node in nodes):
            advice = "Add nodes"
    return (
        f"{setting}={crew.begin} needs {needs} ({claim} on one node for each, and "
        f"{_LEAST_CPUS_FOR_TASKS:g} for Ray Data); {has}: room for {fit}. {advice}"
    )


def _scale_up(settings: Execution, crew: Crew, on_wait: Callable[[str], None]) -> None:
    """Have an autoscaler add the nodes that are missing at the start, if it can."""
    if not shortage(cluster_nodes(), crew):
        return
    deadline = time.monotonic() + settings.scale_up_seconds
    with Autoscaler(crew.bundles(crew.begin)) as autoscaler:
        announced = False
        while short := shortage(cluster_nodes(), crew):
            if not autoscaler.may_add():
                raise ConfigError(short)
            if time.monotonic() >= deadline:
                raise NodesLost(
                    f"{short}: the autoscaler added none within execution.scale_up_seconds="
                    f"{settings.scale_up_seconds}"
                )
            if not announced:
                seconds = settings.scale_up_seconds
                on_wait(f"waits up to {seconds} s for the autoscaler to add nodes: {short}")
                announced = True
            autoscaler.renew()
            time.sleep(_LOOK_SECONDS)


def _wait_for_room(settings: Execution, crew: Crew, *, lost: bool) -> None:
    """Wait for lost nodes to return, or for an autoscaler to add some, within the settings."""
    begun = time.monotonic()
    wanted = crew.most if lost else crew.begin
    if fitting(cluster_nodes(), crew.claim) >= wanted:
        return

    def patience_s(fit: int) -> float:
        enough = fit >= crew.fewest
        if autoscaler.may_add() and not (enough and lost):
            return settings.scale_up_seconds
        # With the minimum the run continues, but not at once where nodes were just lost.
        return settings.node_wait_seconds if lost or not enough else 0

    with Autoscaler(crew.bundles(wanted)) as autoscaler:
        while (fit := fitting(cluster_nodes(), crew.claim)) < wanted:
            if time.monotonic() - begun >= patience_s(fit):
                return
            autoscaler.renew()
            time.sleep(_LOOK_SECONDS)


def share_out_what_is_left(settings: Execution, crew: Crew, *, wait: bool = False) -> Resources:
    """Resources for as many of a crew as fit later in a run, when nodes may have been lost.

    With ``wait``, some were just lost: only nodes that answer count, and a replacement has
    ``node_wait_seconds`` to arrive, as it always has where fewer than ``fewest`` fit.

    Raises:
        NodesLost: Fewer than ``fewest`` fit.
    """
    if wait:
        _forget_silent_nodes()
    _wait_for_room(settings, crew, lost=wait)
    nodes = cluster_nodes()
    fit = min(crew.most, fitting(nodes, crew.claim))
    if fit < crew.fewest:
        raise no_room(settings, crew)
    if fit < crew.most:
        used = sum(crew.claim.places_on(node) > 0 for node in nodes)
        log.warning("%d of execution.%ss=%d fit on %d nodes", fit, crew.kind, crew.most, used)
    return _shared(crew, nodes, fit)


def _forget_silent_nodes() -> None:
    """Wait until every node that counts as alive answers.

    A cluster's head notices a lost node 15 s late. Workers that are placed there meanwhile never
    start, and Ray Train waits a minute for them.
    """
    deadline = time.monotonic() + _SILENCE_SECONDS
    ask = partial(_on_node, work=lambda: True, max_retries=0)
    asked = {node["NodeID"]: ask(node["NodeID"]) for node in _alive()}
    while asked and time.monotonic() < deadline:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=1)
        alive = {node["NodeID"] for node in _alive()}
        for node, answered in list(asked.items()):
            if node not in alive:
                del asked[node]
            elif ray.wait([answered], timeout=0)[0]:
                try:
                    ray.get(asked.pop(node))
                except ray.exceptions.RayError:
                    time.sleep(1)
                    asked[node] = ask(node)


def check_shared(locations: Sequence[str]) -> None:
    """Check that every node of the cluster sees the local files, folders and globs among these.

    Raises:
        ConfigError: A node does not see a folder.
    """
    folders = [_folder(location) for location in locations if "://" not in location]
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in _alive() if node["NodeID"] != here]
    if not folders or not others:
        return

    def missing() -> str | None:
        return next((folder for folder in folders if not os.path.isdir(folder)), None)

    asked = [_on_node(node, missing) for node in others]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_SILENCE_SECONDS)
    for answer in answered:  # silent and lost nodes are dealt with elsewhere
        try:
            gone = ray.get(answer)
        except ray.exceptions.RayError:
            continue
        if gone:
            raise ConfigError(
                f"{gone} does not exist on every node of the cluster; use s3://…, or a folder "
                "that all nodes share"
            )


def _on_node(node: str, work: Callable[[], Any], **options: Any) -> Any:
    """Start a task on that node; an object reference."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, **options)(work).options(scheduling_strategy=there).remote()


def _folder(location: str) -> str:
    """The innermost existing folder of a local location, which may be a glob."""
    folder = os.path.abspath(location)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def no_room(settings: Execution, crew: Crew) -> NodesLost:
    """Error for too few nodes."""
    processes = f"{crew.fewest} {crew.kind}{'s' * (crew.fewest > 1)}"
    return NodesLost(
        f"the cluster has no room for {processes} of {crew.claim}, after execution."
        f"node_wait_seconds={settings.node_wait_seconds}; run the same run id again when there are "
        "nodes: it continues where this one stopped"
    )


class Outage:
    """Detects that the cluster no longer has room for so many processes of a claim.

    A replacement may take ``node_wait_seconds``.
    """

    def __init__(self, settings: Execution, claim: Claim, processes: int) -> None:
        self._wait_s, self._claim, self._processes = settings.node_wait_seconds, claim, processes
        self._looked_at, self._since = -math.inf, math.inf

    def lasts(self) -> bool:
        """Whether room has been missing for ``node_wait_seconds``."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            missing = fitting(cluster_nodes(), self._claim) < self._processes
            self._since = min(self._since, now) if missing else math.inf
        return now - self._since >= self._wait_s

    def check(self) -> None:
        """Raise NodesLost when it lasts."""
        if self.lasts():
            raise NodesLost(
                f"nodes were lost: the cluster no longer has room for {self._processes} processes "
                f"of {self._claim}, after execution.node_wait_seconds={self._wait_s}"
            )


def cluster_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [_node(node["Resources"]) for node in _alive()]


def working_nodes() -> list[Node]:
    """Nodes with CPUs of the cluster that this process is connected to; none without one."""
    return [n for n in cluster_nodes() if n.cpus] if ray.is_initialized() else []


def free_nodes() -> list[Node]:
    """Unclaimed resources of the nodes that are alive."""
    return [_node(offer) for offer in unclaimed_resources()]


def _node(offer: dict[str, float]) -> Node:
    return Node(offer.get("CPU", 0.0), offer.get("GPU", 0.0))


def _alive() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def fitting(nodes: Sequence[Node], claim: Claim) -> int:
    """Number of processes that fit, each on one node, beside a task of Ray Data."""
    places = sum(claim.places_on(node) for node in nodes)
    beside = (sum(node.cpus for node in nodes) - _LEAST_CPUS_FOR_TASKS) / claim.cpus
    return max(0, min(places, math.floor(beside + _ROUNDING)))


def _shared(crew: Crew, nodes: Sequence[Node], processes: int) -> Resources:
    threads = crew.threads
    if threads is None:
        theirs = [node.cpus for node in nodes if crew.claim.places_on(node)]
        threads = min(max(theirs), sum(theirs) / processes)
    return Resources(processes, crew.claim, max(1, int(threads)))


def _in_words(nodes: Sequence[Node]) -> str:
    """Total resources of nodes, and the number of each size, largest first."""
    sizes = Counter(node for node in nodes if node.cpus or node.gpus)
    if not sizes:
        return "no CPUs"
    total = Claim(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    largest_first = sorted(sizes.items(), reverse=True)
    each = ", ".join(f"{count} with {Claim(*node)}" for node, count in largest_first)
    return f"{total} ({each})"
