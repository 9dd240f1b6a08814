"""Work on the cluster: one task, or Ray Data over slices with results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import faiss
import pyarrow as pa
import ray
import torch

from pipeline.config import Execution
from pipeline.distributed.failures import pipeline_error
from pipeline.distributed.resources import share_out
from pipeline.lake.ray_data import quiet_ray_data

P = ParamSpec("P")
R = TypeVar("R")


def run_task(settings: Execution, work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call ``work`` on a node of the cluster, with a worker's CPUs and threads.

    Raises:
        PipelineError: What stopped it.
    """
    resources = share_out(settings)

    def task() -> R:
        torch.set_num_threads(resources.threads)
        faiss.omp_set_num_threads(resources.threads)
        return work(*arguments, **named)

    try:
        result: R = ray.get(ray.remote(num_cpus=resources.cpus_per_worker)(task).remote())
    except ray.exceptions.RayError as error:
        raise pipeline_error(error) from error
    return result


def map_slices(
    slices: list[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    *,
    cpus: float,
    actors: int | None = None,
    calls: int = 1,
    arguments: tuple[Any, ...] = (),
) -> Iterator[pa.Table]:
    """Apply work to every slice, each once; results come in any order.

    Args:
        slices: Pieces of each slice. Only these travel, never rows.
        work: A function, or with ``actors`` a class whose instances are called.
        cpus: What each task or actor claims.
        actors: Size of the actor pool; None for tasks.
        calls: Slices that an actor works on at a time, in as many threads.
        arguments: For the constructor of the class.

    Raises:
        PipelineError: What stopped it.
    """
    quiet_ray_data()
    pool: dict[str, Any] = {}
    if actors is not None:
        pool = {
            "compute": ray.data.ActorPoolStrategy(
                size=min(actors, len(slices)),
                enable_true_multi_threading=calls > 1,
                max_concurrent_calls_per_actor=calls,
            ),
            "fn_constructor_args": arguments,
        }
    try:
        results = ray.data.from_blocks(slices).map_batches(
            work,
            batch_size=None,  # a slice is a block, and is worked on as a whole
            batch_format="pyarrow",
            num_cpus=cpus,
            **pool,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise pipeline_error(error) from error
