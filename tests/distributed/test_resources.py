"""What clusters of many shapes can hold, what they are told to set, and who waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import Execution
from pipeline.distributed import resources
from pipeline.distributed.growth import saved_by_growth
from pipeline.distributed.resources import (
    Claim,
    Node,
    Outage,
    assign_crew,
    fitting,
    share_out,
    shortage,
    task_crew,
    training_crew,
)
from pipeline.errors import ConfigError, NodesLost

HEAD = Node(0)  # as on Kubernetes
DATA, CARDS = Node(8), Node(8, 4)  # nodes for data, and for training


@pytest.mark.parametrize(
    ("claim", "node", "places"),
    [
        (Claim(0.5), Node(2), 4),
        (Claim(0.1), Node(1), 10),  # and not the 9 of a floor of floats
        (Claim(3), Node(8), 2),
        (Claim(1), HEAD, 0),
        (Claim(1, 1), DATA, 0),
        (Claim(1, 1), CARDS, 4),
        (Claim(4, 1), CARDS, 2),  # its CPUs are used up first
        (Claim(0.5, 0.25), CARDS, 16),
        (Claim(0.1, 0.1), Node(8, 1), 10),
        (Claim(0.5, 0.4), CARDS, 8),  # two on each card: nobody computes on two halves
        (Claim(0.5, 0.6), CARDS, 4),
    ],
)
def test_places_on_a_node(claim: Claim, node: Node, places: int) -> None:
    assert claim.places_on(node) == places


@pytest.mark.parametrize(
    ("nodes", "claim", "fit"),
    [
        ([Node(2)], Claim(0.5), 3),  # a laptop: half a CPU is for Ray Data
        ([Node(2)], Claim(2), 0),
        ([HEAD, Node(2), Node(2)], Claim(1.5), 2),
        ([HEAD, Node(2), Node(2)], Claim(2), 1),  # the second would leave nothing
        ([HEAD, DATA, CARDS, CARDS], Claim(2, 1), 8),
        ([HEAD, DATA, CARDS, CARDS], Claim(8, 1), 2),  # Ray Data has the node for data
        ([HEAD, CARDS, CARDS], Claim(8, 1), 1),
        ([HEAD, DATA], Claim(1, 1), 0),
        ([], Claim(1), 0),
        ([HEAD], Claim(0.5), 0),
    ],
)
def test_processes_on_a_cluster(nodes: list[Node], claim: Claim, fit: int) -> None:
    assert fitting(nodes, claim) == fit


def refusal(nodes: Sequence[Node], settings: dict[str, Any]) -> str | None:
    """What the check before a run says, on a cluster that nobody adds nodes to."""
    run = Execution(**settings)
    crews = training_crew(run), assign_crew(run)
    return next(filter(None, (shortage(nodes, crew) for crew in crews)), None)


HOLD: list[tuple[list[Node], dict[str, Any]]] = [
    ([Node(2)], {"workers": 2}),
    ([HEAD, DATA, CARDS], {"workers": 4, "gpus_per_worker": 1}),
    ([HEAD, DATA, CARDS], {"gpus_per_worker": 1, "actors": 16, "gpus_per_actor": 0.25}),
    ([HEAD, DATA, CARDS], {"workers": 8, "min_workers": 4, "gpus_per_worker": 1}),
    ([HEAD, DATA], {"workers": 1, "actors": 8, "min_actors": 2, "cpus_per_actor": 2}),
    ([HEAD, DATA, CARDS], {"cpus_per_worker": 6, "gpus_per_worker": 1, "workers": 1}),
]


@pytest.mark.parametrize(("nodes", "settings"), HOLD)
def test_a_cluster_that_holds_it(nodes: list[Node], settings: dict[str, Any]) -> None:
    assert refusal(nodes, settings) is None


REFUSED: list[tuple[list[Node], dict[str, Any], str]] = [
    (
        [HEAD, Node(4)],
        {"workers": 50},
        "execution.workers=50 needs 25.5 CPUs (0.5 CPUs on one node for each, and 0.5 for Ray "
        "Data); the cluster has 4 CPUs (1 with 4 CPUs): room for 7. "
        "Set execution.workers to 7 or add nodes",
    ),
    (
        [HEAD, DATA],
        {"gpus_per_worker": 1},
        "execution.gpus_per_worker=1 needs nodes with GPUs; the cluster has 8 CPUs (1 with 8 CPUs)."
        " Set execution.gpus_per_worker to 0 or add nodes with GPUs",
    ),
    (
        [HEAD, DATA, DATA],
        {"gpus_per_actor": 0.25},
        "execution.gpus_per_actor=0.25 needs nodes with GPUs; the cluster has 16 CPUs (2 with 8 "
        "CPUs). Set execution.gpus_per_actor to 0 or add nodes with GPUs",
    ),
    (
        [HEAD, DATA, CARDS],
        {"workers": 5, "gpus_per_worker": 1, "cpus_per_worker": 1},
        "execution.workers=5 needs 5.5 CPUs and 5 GPUs (1 CPU and 1 GPU on one node for each, "
        "and 0.5 for Ray Data); the cluster has 16 CPUs and 4 GPUs (1 with 8 CPUs and 4 GPUs, 1 "
        "with 8 CPUs): room for 4. Set execution.workers to 4 or add nodes",
    ),
    (
        [HEAD, DATA, CARDS],
        {"workers": 8, "min_workers": 3, "gpus_per_worker": 1, "cpus_per_worker": 4},
        "execution.min_workers=3 needs 12.5 CPUs and 3 GPUs (4 CPUs and 1 GPU on one node for "
        "each, and 0.5 for Ray Data); the cluster has 16 CPUs and 4 GPUs (1 with 8 CPUs and 4 "
        "GPUs, 1 with 8 CPUs): room for 2. Set execution.min_workers to 2 or add nodes",
    ),
    (
        [HEAD, DATA, DATA],
        {"cpus_per_worker": 16},
        "execution.workers=2 needs 32.5 CPUs (16 CPUs on one node for each, and 0.5 for Ray Data); "
        "the cluster has 16 CPUs (2 with 8 CPUs): room for 0. "
        "Lower execution.cpus_per_worker or add nodes",
    ),
    (
        [HEAD, DATA, CARDS],
        {"actors": 20, "gpus_per_actor": 0.25},
        "execution.actors=20 needs 10.5 CPUs and 5 GPUs (0.5 CPUs and 0.25 GPUs on one node for "
        "each, and 0.5 for Ray Data); the cluster has 16 CPUs and 4 GPUs (1 with 8 CPUs and 4 "
        "GPUs, 1 with 8 CPUs): room for 16. Set execution.actors to 16 or add nodes",
    ),
    (
        [HEAD],
        {},
        "execution.workers=2 needs 1.5 CPUs (0.5 CPUs on one node for each, and 0.5 for Ray Data); "
        "the cluster has no CPUs: room for 0. Add nodes",
    ),
]


@pytest.mark.parametrize(("nodes", "settings", "line"), REFUSED)
def test_a_cluster_that_never_holds_it(
    nodes: list[Node], settings: dict[str, Any], line: str
) -> None:
    assert refusal(nodes, settings) == line


def nodes_of_ray(monkeypatch: pytest.MonkeyPatch, nodes: Sequence[Node]) -> None:
    """Let Ray report these nodes, in its own form, and one that is gone."""
    offers = [{"CPU": node.cpus, "GPU": node.gpus, "memory": 1e9} for node in nodes]
    found = [{"Alive": True, "Resources": {k: v for k, v in o.items() if v}} for o in offers]
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(resources.ray, "nodes", lambda: [*found, gone])


@pytest.mark.parametrize(
    ("nodes", "settings", "workers", "threads"),
    [
        ([Node(2)], {}, 2, 1),
        ([Node(16)], {}, 2, 8),
        ([HEAD, Node(64), Node(8, 1)], {"workers": 1, "gpus_per_worker": 1}, 1, 8),  # not 72
        ([HEAD, DATA, CARDS], {"gpus_per_worker": 1, "cpus_per_worker": 2}, 2, 2),
        ([HEAD, Node(4), Node(4)], {"workers": 1}, 1, 4),
        ([HEAD, CARDS], {"workers": 6, "min_workers": 2, "gpus_per_worker": 1}, 4, 2),
    ],
)
def test_threads_are_of_the_nodes_that_hold_the_worker(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[Node],
    settings: dict[str, Any],
    workers: int,
    threads: int,
) -> None:
    nodes_of_ray(monkeypatch, nodes)
    found = share_out(Execution(**settings, actors=1))
    assert (found.workers, found.threads) == (workers, threads)


def test_tasks_ask_for_no_more_than_nodes_for_data_have(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_of_ray(monkeypatch, [HEAD, Node(4), Node(16, 4)])
    crew = task_crew(Execution(cpus_per_worker=12, gpus_per_worker=1))
    assert (crew.claim, crew.threads) == (Claim(4), 4)
    nodes_of_ray(monkeypatch, [HEAD, Node(16, 4)])
    assert task_crew(Execution(cpus_per_worker=12, gpus_per_worker=1)).claim == Claim(12)


def test_actors_have_what_workers_have_unless_told_otherwise() -> None:
    as_workers = assign_crew(Execution(workers=3, cpus_per_worker=4, gpus_per_worker=1))
    assert (as_workers.claim, as_workers.fewest, as_workers.begin, as_workers.most) == (
        Claim(4), 1, 3, 3,
    )  # fmt: skip
    own = assign_crew(
        Execution(actors=9, min_actors=2, cpus_per_actor=0.5, gpus_per_actor=0.2, cpus_per_worker=4)
    )
    assert (own.claim, own.fewest, own.begin, own.most) == (Claim(0.5, 0.2), 2, 2, 9)


def test_a_static_cluster_is_refused_at_once(ray_address: str) -> None:
    with pytest.raises(ConfigError, match="gpus_per_worker=1 needs nodes with GPUs"):
        share_out(Execution(gpus_per_worker=1), on_wait=pytest.fail)


def test_an_outage_ends_work_only_after_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, clock = [Node(4)], [0.0]
    monkeypatch.setattr(resources, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(resources.time, "monotonic", lambda: clock[0])
    outage = Outage(Execution(node_wait_seconds=60), Claim(2), processes=1)

    def lasts(after_s: float) -> bool:
        clock[0] += after_s
        return outage.lasts()

    assert not lasts(0)
    lost = nodes.pop()
    assert not lasts(5)  # a replacement has a minute
    assert not lasts(55)
    nodes.append(lost)
    assert not lasts(5)  # it came in time
    nodes.pop()
    assert not lasts(100)  # the second outage is not as old as the first
    assert not lasts(55)
    assert lasts(5)
    with pytest.raises(NodesLost, match="no longer has room for 1 processes of 2 CPUs"):
        outage.check()


def test_a_worker_has_a_whole_gpu_or_none() -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        Execution(gpus_per_worker=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Execution(gpus_per_worker=2)


def test_what_growth_saves() -> None:
    assert saved_by_growth(1, 2, 600) == 300
    assert saved_by_growth(8, 9, 90) == pytest.approx(10)
