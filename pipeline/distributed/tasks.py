"""Work on the cluster: one task, or Ray Data over slices with results as they come."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import faiss
import pyarrow as pa
import ray
import torch
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.annotations import RayDeprecationWarning

from pipeline import logs
from pipeline.config import Execution
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.ray_data import quiet_ray_data
from pipeline.distributed.resources import (
    Claim,
    Outage,
    cluster_nodes,
    fitting,
    no_room,
    share_out_what_is_left,
    task_crew,
)
from pipeline.distributed.retries import with_retries
from pipeline.distributed.workers import enter
from pipeline.errors import NodesLost

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_WAIT_SECONDS = 1.0  # between two looks at whether there still is a node for a task


def run_task(settings: Execution, work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call ``work`` on a node of the cluster, one for data where there are any.

    Raises:
        PipelineError: What stopped it.
    """

    def attempt() -> R:
        crew, place = task_crew(settings), logs.here()
        resources = share_out_what_is_left(settings, crew)

        def task() -> tuple[str, R]:
            enter(place)
            torch.set_num_threads(resources.threads)
            faiss.omp_set_num_threads(resources.threads)
            return ray.get_runtime_context().get_node_id(), work(*arguments, **named)

        # Ray keeps what claims no GPU off nodes that have one, as long as there are others.
        waiting = [ray.remote(num_cpus=crew.claim.cpus, max_retries=0)(task).remote()]
        outage = Outage(settings, crew.claim, 1)
        while not ray.wait(waiting, timeout=_WAIT_SECONDS)[0]:
            if outage.lasts():  # Ray would wait for ever
                ray.cancel(waiting[0], force=True)
                raise no_room(settings, crew)
        node, result = ray.get(waiting[0])
        log.info("%s: a task on node %s", name, node)
        return result

    name = work.__name__.strip("_")
    memory = "lower centroids.sample_rows or give nodes more memory"
    return with_retries(settings, name, attempt, memory=memory)


def map_slices(
    settings: Execution,
    slices: list[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    *,
    claim: Claim,
    actors: tuple[int, int] | None = None,
    calls: int = 1,
    arguments: tuple[Any, ...] = (),
) -> Iterator[pa.Table]:
    """Apply work to every slice; results come in any order, one a slice.

    Ray repeats what a process was at when it died, ``retries`` times a slice. What it would wait
    for in vain ends here: room for actors and tasks that nodes took with them, and that is still
    missing after ``node_wait_seconds``.

    Args:
        settings: ``retries`` and ``node_wait_seconds``.
        slices: Pieces of each slice. Only these travel, never rows.
        work: A function, or with ``actors`` a class whose instances are called.
        claim: What each task or actor claims.
        actors: Fewest and most of the actor pool, which takes nodes that come; None for tasks.
        calls: Slices that an actor works on at a time, in as many threads.
        arguments: For the constructor of the class.

    Raises:
        PipelineError: What stopped it.
    """
    context, nodes = quiet_ray_data(), cluster_nodes()
    options: dict[str, Any] = {"max_retries": settings.retries}
    fewest = 1
    if actors is not None:
        fewest, most = (min(number, len(slices)) for number in actors)
        options = {
            # An actor may come back as often as it likes: what it works on may not.
            "max_task_retries": settings.retries,
            "compute": ray.data.ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                initial_size=max(fewest, min(most, fitting(nodes, claim))),
                enable_true_multi_threading=calls > 1,
                max_concurrent_calls_per_actor=calls,
            ),
            "fn_constructor_args": arguments,
        }
    if claim.gpus:
        options["num_gpus"] = claim.gpus
    elif any(node.gpus for node in nodes):
        # Spread over all nodes is Ray Data's own way, which would fill those with GPUs too.
        options["scheduling_strategy"] = "DEFAULT"
    context.custom_execution_callback_classes = [_room_watch(settings, claim, fewest)]
    try:
        with warnings.catch_warnings():
            # Ray Data repeats without end, and has no other way to say how often not to.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # The public one refuses slices as batches where GPUs are claimed: it knows nothing of
            # how many rows they hold, and less of the portions that are sent to a GPU.
            results = ray.data.from_blocks(slices).map_batches_internal(
                _placed(work, logs.here()),
                batch_size=None,  # a slice is a block, and is worked on as a whole
                batch_format="pyarrow",
                num_cpus=claim.cpus,
                **options,
            )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise pipeline_error(error) from error


def _placed(
    work: Callable[[pa.Table], pa.Table] | type, place: logs.Place
) -> Callable[[pa.Table], pa.Table] | type:
    """The same work, whose log lines say for which run, stage and slice it is done."""
    if not isinstance(work, type):

        @functools.wraps(work)  # Ray Data names what runs by it
        def placed(pieces: pa.Table) -> pa.Table:
            enter(place)
            with logs.in_slice(_number(pieces)):
                return work(pieces)

        return placed

    class Placed(work):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            enter(place)
            super().__init__(*arguments)

        def __call__(self, pieces: pa.Table) -> pa.Table:
            with logs.in_slice(_number(pieces)):
                return super().__call__(pieces)

    Placed.__name__ = Placed.__qualname__ = work.__name__
    return Placed


def _number(pieces: pa.Table) -> int | None:
    return pieces["slice"][0].as_py() if "slice" in pieces.column_names else None


def _room_watch(settings: Execution, claim: Claim, processes: int) -> type[ExecutionCallback]:
    """Ends an execution of Ray Data whose actors or tasks have lost their place for good."""

    class RoomWatch(ExecutionCallback):
        def __init__(self) -> None:
            self._outage = Outage(settings, claim, processes)

        def on_execution_step(self, executor: Any) -> None:
            if self._outage.lasts():
                raise NodesLost(
                    f"nodes were lost: the cluster no longer holds {processes} processes of "
                    f"{claim}, after execution.node_wait_seconds={settings.node_wait_seconds}"
                )

    return RoomWatch
