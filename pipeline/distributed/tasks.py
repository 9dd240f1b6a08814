"""Work on the cluster: one task, or Ray Data over slices with results as they come."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import ray
import torch

from pipeline import logs
from pipeline.clustering.kmeans import use_threads
from pipeline.config import Execution
from pipeline.distributed import private_ray
from pipeline.distributed.failures import pipeline_error
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

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SAMPLE_IN_MEMORY = "lower centroids.sample_rows or give nodes more memory"
"""Advice of the tasks that hold the reference sample, for when they run out of memory."""

_WAIT_SECONDS = 1.0  # between two checks whether a node still has room for the task


def run_task(
    settings: Execution, memory: str, work: Callable[P, R], *arguments: P.args, **named: P.kwargs
) -> R:
    """Call ``work`` in a task on the cluster, on a node without GPUs where there is one.

    ``memory`` says what to change when the task runs out of memory, as an imperative.

    Raises:
        PipelineError: The task failed for good.
    """

    def attempt() -> R:
        crew, place = task_crew(settings), logs.here()
        resources = share_out_what_is_left(settings, crew)

        def task() -> tuple[str, R]:
            enter(place)
            torch.set_num_threads(resources.threads)
            use_threads(resources.threads)
            return ray.get_runtime_context().get_node_id(), work(*arguments, **named)

        # Ray places tasks that claim no GPU on nodes without one, as long as there are any.
        waiting = [ray.remote(num_cpus=crew.claim.cpus, max_retries=0)(task).remote()]
        outage = Outage(settings, crew.claim, 1)
        while not ray.wait(waiting, timeout=_WAIT_SECONDS)[0]:
            if outage.lasts():  # Ray would wait for ever
                ray.cancel(waiting[0], force=True)
                raise no_room(settings, crew)
        node, result = ray.get(waiting[0])
        log.info("%s: ran in a task on node %s", name, node)
        return result

    name = work.__name__.strip("_")
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
    """Apply work to every slice; results come in any order, one per slice.

    Ray retries a slice whose process died, ``retries`` times. Where Ray would wait for ever, for
    actors or tasks whose nodes are gone, this raises after ``node_wait_seconds``.

    Args:
        settings: ``retries`` and ``node_wait_seconds``.
        slices: Pieces of each slice. Only these are sent, never rows.
        work: A function, or with ``actors`` a class whose instances are called.
        claim: Resources of each task or actor.
        actors: Minimum and maximum size of the actor pool, which grows when nodes join; None for
            tasks.
        calls: Slices that an actor works on at a time, each in its own thread.
        arguments: For the constructor of the class.

    Raises:
        PipelineError: The work failed for good.
    """
    context, nodes = ray.data.DataContext.get_current(), cluster_nodes()
    context.enable_progress_bars = context.print_on_execution_start = False
    # Otherwise Ray Data wraps errors in an exception whose cause is lost on the way to the driver.
    context.raise_original_map_exception = True
    options: dict[str, Any] = {"max_retries": settings.retries}
    fewest = 1
    if actors is not None:
        fewest, most = (min(number, len(slices)) for number in actors)
        options = {
            # Restarts of an actor are unlimited; retries of a slice are not.
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
        # Ray Data's default spreads tasks over all nodes, those with GPUs too.
        options["scheduling_strategy"] = "DEFAULT"

    private_ray.call_at_each_step(context, lambda: Outage(settings, claim, fewest).check)
    try:
        results = private_ray.map_blocks(
            ray.data.from_blocks(slices),  # a slice is a block
            _placed(work, logs.here()),
            num_cpus=claim.cpus,
            **options,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise pipeline_error(error) from error


def _placed(
    work: Callable[[pa.Table], pa.Table] | type, place: logs.Place
) -> Callable[[pa.Table], pa.Table] | type:
    """The same work, with run, stage and slice in its log lines."""
    if not isinstance(work, type):

        @functools.wraps(work)  # Ray Data takes the operator's name from it
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
