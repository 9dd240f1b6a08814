"""Work on the cluster, where there is little of it left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import ray

from pipeline.distributed.tasks import map_slices


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
        results = pool.submit(lambda: list(map_slices(slices, count, cpus=0.25)))
        rows = [row for table in results.result(timeout=60) for row in table["rows"].to_pylist()]
    finally:
        ray.kill(holder)  # and whoever waits for its CPUs
        pool.shutdown()
    assert sorted(rows) == [1, 2, 3, 4, 5]
