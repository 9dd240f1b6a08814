"""What the estimate multiplies with: rates of one core, fixed costs, and the cluster.

The rates are those of two cores with AVX512-BF16 (tests/benchmarks/THROUGHPUT.md, decision 0022).
Another machine is told apart by factors on them, from ``--measure`` or from a run, never by editing
them: a factor says how far off the figures are.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.inputs import Manifest
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


@dataclass(frozen=True)
class Rates:
    """Default rates; per core where not said otherwise. Times in s, ns where named.

    Attributes:
        train_gflop_s: Products of a training step, bfloat16: 2,048 rows of 784 features a core in
            88 ms without the exchange.
        encode_gflop_s: Products of an encoder alone: 3.3 MFLOP in 7.5 µs.
        float32_share: Rates of products in float32 over those in bfloat16: 1 / 3.8.
        update_s: Python, small kernels and the scheduler, an update.
        update_ns: Gradients, Adam's moments and the weight, each parameter and update: 256 rows of
            784 features take 10.8 ms on two cores, 5 of them products.
        learn_ns: Student's t, its target and both gradients, each row and cluster: 0.9 s for 256
            rows of 100,000 clusters on two cores.
        measure_ns: Soft assignment alone, each row and cluster.
        nearest_ns: The nearest two, each row and cluster: 236,000 rows/s of 1,000 clusters.
        value_ns: Reading Parquet, each feature: 2.4 million rows/s of 64.
        moments_ns: The scaler's statistics, each feature.
        profile_ns: Those of the clusters, each feature.
        augment_ns: Shifting, turning and zooming, each pixel.
        write_ns: Sorting and writing an assignment.
        kmeans_gflop_s: FAISS with few clusters.
        distance_gflop_s: Distances of many points to many, in float32.
        point_ns: FAISS, each point and iteration, however few the clusters.
        exchange_mb_s: Gradients between two processes of one machine: 13 MB in 7.5 ms.
        network_mb_s: A node's, 12.5 Gbit/s.
        request_s: Until the first byte from an object store.
        gpu_gflop_s: Products of a GPU: 30 % of an H100's stated 989 TFLOP/s. No figure of a GPU was
            measured: all of them are those of decision 0011.
        gpu_update_s: Starting some 60 kernels, an update.
        gpu_update_ns: As ``update_ns``, by its memory's stated 3 TB/s.
        gpu_learn_ns: As ``learn_ns``, by the same.
        ray_s: Starting Ray on this machine.
        tasks_s: Starting the first tasks or actors of a stage on Ray Data.
        workers_s: Starting Ray Train's workers; a single one on a single node is not started.
        alone_s: The same where nothing is started.
    """

    train_gflop_s: float = 480.0
    encode_gflop_s: float = 440.0
    float32_share: float = 0.26
    update_s: float = 0.0008
    update_ns: float = 1.5
    learn_ns: float = 70.0
    measure_ns: float = 15.0
    nearest_ns: float = 4.0
    value_ns: float = 3.0
    moments_ns: float = 10.0
    profile_ns: float = 5.0
    augment_ns: float = 20.0
    write_ns: float = 600.0
    kmeans_gflop_s: float = 16.0
    distance_gflop_s: float = 80.0
    point_ns: float = 100.0
    exchange_mb_s: float = 1_800.0
    network_mb_s: float = 1_500.0
    request_s: float = 0.05
    gpu_gflop_s: float = 300_000.0
    gpu_update_s: float = 0.0012
    gpu_update_ns: float = 0.01
    gpu_learn_ns: float = 0.05
    ray_s: float = 6.0
    tasks_s: float = 1.8
    workers_s: float = 13.0
    alone_s: float = 1.8


@dataclass(frozen=True)
class InputFacts:
    """What the footers say of the input.

    Attributes:
        rows: Rows of all shards.
        wanted_bytes: Of the wanted columns, as stored.
        shards: Parquet files.
        row_groups: Row groups with rows.
        slices: Units of work of the assign stage.
        width: F, the features of a row.
        row_bytes: A raw row in memory.
    """

    rows: int
    wanted_bytes: int
    shards: int
    row_groups: int
    slices: int
    width: int
    row_bytes: int

    @classmethod
    def of(cls, manifest: Manifest) -> InputFacts:
        """The facts of a pinned input."""
        return cls(
            rows=manifest.rows,
            wanted_bytes=manifest.wanted_bytes,
            shards=manifest.shard_count,
            row_groups=manifest.row_groups,
            slices=manifest.slice_count,
            width=manifest.width,
            row_bytes=manifest.width * np.dtype(manifest.dtype).itemsize,
        )


@dataclass(frozen=True)
class Cluster:
    """Where it runs: nodes that are alike.

    Attributes:
        nodes: How many.
        cpus_per_node: Of each.
        gpus_per_node: Of each; paid for, whoever uses them.
        workers: That train.
        threads: Each computes with.
        actors: That assign.
        actor_threads: Each computes with.
        worker_gpus: Of each worker, 0 or 1.
        actor_gpus: Of each actor, a share of one.
        started_here: Whether ``dec run`` starts it on this machine.
    """

    nodes: int
    cpus_per_node: float
    gpus_per_node: float
    workers: int
    threads: int
    actors: int
    actor_threads: int
    worker_gpus: int = 0
    actor_gpus: float = 0.0
    started_here: bool = False

    @classmethod
    def running(cls, execution: Execution) -> Cluster:
        """The one that works here; what the settings ask for where all work was done before."""
        nodes = working_nodes()
        if not nodes:
            return cls.of(execution)
        return cls.of(
            execution,
            nodes=len(nodes),
            cpus_per_node=sum(node.cpus for node in nodes) / len(nodes),
            gpus_per_node=sum(node.gpus for node in nodes) / len(nodes),
        )

    @classmethod
    def of(
        cls,
        execution: Execution,
        *,
        nodes: int | None = None,
        cpus_per_node: float | None = None,
        gpus_per_node: float | None = None,
    ) -> Cluster:
        """The given nodes; without any, as much as the settings ask for, or this machine."""
        training, assigning = training_crew(execution), assign_crew(execution)
        count, asked = nodes or 1, nodes is None and cpus_per_node is None
        most = max(crew.most * (crew.threads or 0) for crew in (training, assigning))
        cpus = cpus_per_node or (
            math.ceil(most + READER.cpus) if asked and most else float(os.cpu_count() or 1)
        )
        gpus = gpus_per_node
        if gpus is None:
            crews = (training, assigning) if asked else ()
            gpus = max((crew.most * crew.claim.gpus for crew in crews), default=0.0)
        threads, actor_threads = (
            max(1, int(crew.threads or min(cpus, count * cpus / crew.most)))
            for crew in (training, assigning)
        )
        return cls(
            nodes=count,
            cpus_per_node=cpus,
            gpus_per_node=math.ceil(gpus),
            workers=training.most,
            threads=threads,
            actors=assigning.most,
            actor_threads=actor_threads,
            worker_gpus=execution.gpus_per_worker,
            actor_gpus=execution.gpus_per_actor,
            started_here=asked and not most,
        )

    def check_fits(self, execution: Execution) -> None:
        """Look whether it holds what the settings ask for, as a run does before its first stage.

        Raises:
            ConfigError: It does not.
        """
        nodes = [Node(self.cpus_per_node, self.gpus_per_node)] * self.nodes
        for crew in (training_crew(execution), assign_crew(execution)):
            if short := shortage(nodes, crew):
                raise ConfigError(f"{short}, or plan for others with --nodes and --cpus-per-node")

    @property
    def cores(self) -> float:
        """Of all nodes: what is paid for."""
        return self.nodes * self.cpus_per_node

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def compute(self) -> int:
        """Cores that training uses."""
        return self.workers * self.threads

    @property
    def in_place(self) -> bool:
        """Whether the only worker trains in the driver's process."""
        return self.workers == 1 and self.nodes == 1
