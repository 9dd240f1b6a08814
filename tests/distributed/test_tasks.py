"""Work on the cluster, where there is little of it left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from pipeline.config import Execution
from pipeline.distributed.resources import Claim
from pipeline.distributed.tasks import map_slices, run_task
from pipeline.errors import ConfigError, OutOfMemory


def test_half_a_cpu_is_enough_to_work_on_slices(ray_address: str) -> None:
    @ray.remote(num_cpus=3.5)  # of four
    class Holder:
        def ready(self) -> bool:
            return True

    def count(pieces: pa.Table) -> pa.Table:
        return pa.table({"rows": [len(pieces)]})

    slices = [pa.table({"shard": [0] * (1 + number)}) for number in range(5)]
    holder = Holder.remote()
    assert ray.get(holder.ready.remote())
    pool = ThreadPoolExecutor(1)
    try:
        results = pool.submit(
            lambda: list(map_slices(Execution(), slices, count, claim=Claim(0.25)))
        )
        rows = [row for table in results.result(timeout=60) for row in table["rows"].to_pylist()]
    finally:
        ray.kill(holder)  # and whoever waits for its CPUs
        pool.shutdown()
    assert sorted(rows) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(2**50, np.uint8),
        lambda: torch.empty(2**50, dtype=torch.uint8),
        lambda: pa.allocate_buffer(2**50),
    ],
    ids=["numpy", "torch", "arrow"],
)
def test_an_allocation_that_fails_is_told_from_a_defect(
    ray_address: str, allocate: Callable[[], object]
) -> None:
    def work(pieces: pa.Table) -> pa.Table:
        allocate()
        return pieces

    with pytest.raises(OutOfMemory, match="a worker ran out of memory"):
        list(map_slices(Execution(), [pa.table({"shard": [0]})], work, claim=Claim(0.25)))


def test_a_task_out_of_memory_gives_the_advice_of_its_caller(ray_address: str) -> None:
    def allocate() -> None:
        np.empty(2**50, np.uint8)

    with pytest.raises(ConfigError, match=r"To need less, lower explain\.exemplars$"):
        run_task(Execution(retries=0), "lower explain.exemplars", allocate)
