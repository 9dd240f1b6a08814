"""Work over slices by Ray Data: tasks or an actor pool, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from pipeline.distributed.failures import pipeline_error
from pipeline.lake.ray_data import quiet_ray_data


def map_slices(
    slices: list[pa.Table],
    work: Callable[[pa.Table], pa.Table] | type,
    *,
    cpus: float,
    actors: int | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[pa.Table]:
    """Apply work to every slice, each once; results come in any order.

    Args:
        slices: Pieces of each slice. Only these travel, never rows.
        work: A function, or with ``actors`` a class whose instances are called.
        cpus: What each task or actor claims.
        actors: Size of the actor pool; None for tasks.
        arguments: For the constructor of the class.

    Raises:
        PipelineError: What stopped it.
    """
    quiet_ray_data()
    pool: dict[str, Any] = {}
    if actors is not None:
        pool = {
            "compute": ray.data.ActorPoolStrategy(size=min(actors, len(slices))),
            "fn_constructor_args": arguments,
        }
    try:
        results = ray.data.from_arrow(slices).map_batches(
            work,
            batch_size=None,  # a slice is a block, and is worked on as a whole
            batch_format="pyarrow",
            num_cpus=cpus,
            **pool,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        raise pipeline_error(error) from error
