"""What stages declare their costs with: each has a function ``CostInputs -> StageCosts``."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Action
from pipeline.bill.records import Cluster, StageCosts
from pipeline.clustering.kmeans import WORK, affordable
from pipeline.config import Config, Optimization, sized
from pipeline.input.slices import MAX_SAMPLED_ROW_GROUPS, held_out_share
from pipeline.model.training import update_rows
from pipeline.storage import S3_SCHEME

MIB = 2**20
LISTED_KEYS = 1_000  # in the answer to a LIST
# Requests to an object store, counted with a proxy in between (tests/bill/test_run.py).
TABLE_GETS = 3  # a Parquet file: size, footer, content
_VISIT_GETS = 4  # a shard opened to read rows: version before and after, size, footer
_GROUP_BYTES = 32 * MIB  # pyarrow reads columns of a row group in one request of at most this
# A streamed pass has two windows of this size in memory.
_WINDOW_BYTES = 2**27


# Default rates, measured on two cores with AVX512-BF16 (tests/benchmarks/THROUGHPUT.md, decision
# 0022). Factors from ``--measure`` or the last run correct them for other machines.
@dataclass(frozen=True)
class Device:
    """Rates of a core or a GPU; the defaults are a core's."""

    train_gflop_s: float = 480.0  # bfloat16 products of a training step: 2,048 × 784 in 88 ms
    encode_gflop_s: float = 440.0  # and of an encoder alone: 3.3 MFLOP in 7.5 µs
    update_s: float = 0.0008  # Python, small kernels and the scheduler, an update
    # Gradients, Adam's moments and the weight, each parameter and update: 256 rows of 784 features
    # take 10.8 ms on two cores, 5 of them products.
    update_ns: float = 1.5
    # Student's t, its target and both gradients, each row and cluster: 0.9 s for 256 rows of
    # 100,000 clusters on two cores; then soft assignment alone.
    learn_ns: float = 70.0
    measure_ns: float = 15.0
    nearest_ns: float = 4.0  # the nearest two, each row and cluster: 236,000 rows/s of 1,000
    augment_ns: float = 20.0  # shifting, turning and zooming, each pixel


@dataclass(frozen=True)
class Rates:
    """All default rates."""

    core: Device = Device()
    # None was measured: 30 % of an H100's stated 989 TFLOP/s, 60 kernels an update, and its
    # memory's stated 3 TB/s (decision 0011).
    gpu: Device = Device(300_000.0, 300_000.0, 0.0012, 0.01, 0.05, 0.05, 0.05, 0.05)
    float32_share: float = 0.26  # rate of float32 products over that of bfloat16, on a core
    value_ns: float = 8.0  # reading a value of Parquet; 3 decodes it, the sample takes 13
    write_ns: float = 600.0  # sorting and writing an assignment
    kmeans_gflop_s: float = 16.0  # FAISS with few clusters
    point_ns: float = 100.0  # FAISS, each point and iteration, however few the clusters
    distance_gflop_s: float = 80.0  # distances of many points to many, in float32
    network_mb_s: float = 1_500.0  # of a node, 12.5 Gbit/s, and between two of its processes
    request_s: float = 0.05  # until the first byte from an object store
    ray_s: float = 6.0  # starting Ray on this machine
    start_s: float = 1.8  # starting a stage's first tasks or actors, or training in the run itself
    workers_s: float = 13.0  # starting Ray Train's workers


class Network(NamedTuple):
    """Weights of the encoder and of its first layer, and parameters of both halves."""

    encoder: int
    first: int
    encoder_parameters: int
    decoder_parameters: int


@dataclass(frozen=True)
class CostInputs:
    """Everything that the cost of a stage may depend on."""

    config: Config
    manifest: Manifest
    cluster: Cluster
    products: str  # precision of matrix products there, "float32" or "bfloat16"
    action: Action = "refit"
    # Share of the rows that are labelled; the labels of the others are carried over.
    labelled: float = 1.0
    passes: int | None = None  # number of passes that refinement makes; None: as many as it may
    rates: Rates = Rates()

    @cached_property
    def network(self) -> Network:
        """Sizes of the autoencoder."""
        model = sized(self.config, self.manifest.width, self.manifest.rows).model
        widths = [self.manifest.width, *model.widths, model.embedding]
        pairs = list(itertools.pairwise(widths))
        return Network(
            encoder=sum(a * b for a, b in pairs),
            first=widths[0] * widths[1],
            encoder_parameters=sum((a + 1) * b for a, b in pairs),
            decoder_parameters=sum((b + 1) * a for a, b in pairs),
        )

    @cached_property
    def core(self) -> Device:
        """Rates of a core at the precision of the products."""
        core, share = self.rates.core, self.rates.float32_share
        if self.products == "bfloat16":
            return core
        train, encode = core.train_gflop_s * share, core.encode_gflop_s * share
        return replace(core, train_gflop_s=train, encode_gflop_s=encode)

    @property
    def refine_passes(self) -> int:
        """Number of passes that refinement makes, or may make."""
        refreshes = self.action == "refresh"
        most = self.config.schedule.refresh.passes if refreshes else self.config.refine.passes
        return most if self.passes is None else self.passes

    @property
    def from_s3(self) -> bool:
        """Whether the input is in an object store."""
        return any(path.startswith(S3_SCHEME) for path in self.config.source.locations)

    @property
    def row_bytes(self) -> int:
        """Size of a raw row in memory."""
        return self.manifest.width * np.dtype(self.manifest.dtype).itemsize

    @property
    def augments(self) -> bool:
        """Whether training changes rows before it learns from them."""
        return self.config.source.image_shape is not None or bool(self.config.augment.function)

    @property
    def group_bytes(self) -> float:
        """Mean size of a row group in memory."""
        return self.manifest.rows * self.row_bytes / max(1, self.manifest.row_groups)

    @property
    def fit_rows(self) -> int:
        """Rows that training reads."""
        return min(self.manifest.rows, self.config.source.fit_rows or self.manifest.rows)

    @property
    def share_bytes(self) -> float:
        """Memory for the rows of a training worker."""
        return self.fit_rows * self.row_bytes / self.cluster.workers

    @property
    def cached(self) -> bool:
        """Whether these fit ``execution.cache_mib``; otherwise every pass reads them again."""
        return self.share_bytes <= self.config.execution.cache_mib * MIB

    @property
    def sample_rows(self) -> int:
        """Rows of the reference sample."""
        return min(self.manifest.rows, self.config.centroids.sample_rows)

    @property
    def sampled_groups(self) -> int:
        """Row groups that the sample is drawn from."""
        rows, groups = self.manifest.rows, self.manifest.row_groups
        needed = math.ceil(self.sample_rows * groups / max(1, rows))
        return min(groups, max(MAX_SAMPLED_ROW_GROUPS, needed))

    @property
    def sample_parts(self) -> int:
        """Files of the sample: one for each slice that a row group is drawn from."""
        return max(1, min(self.manifest.slice_count, self.sampled_groups))

    def input_gets(self, visits: float, row_groups: float, read_bytes: float) -> float:
        """Requests to open shards this often and read this many row groups."""
        return visits * _VISIT_GETS + max(row_groups, read_bytes / _GROUP_BYTES)

    def encode_s(self, rows: int) -> float:
        """Core-seconds to encode some rows."""
        return rows * 2 * self.network.encoder / (self.core.encode_gflop_s * 1e9)

    def distance_s(self, points: int, others: int, width: int) -> float:
        """Core-seconds for the distances of points to many others."""
        return 2 * points * others * width / (self.rates.distance_gflop_s * 1e9)

    def kmeans_s(
        self, rows: int, width: int, clusters: int = 0, work: int = WORK, **settings: int
    ) -> float:
        """Core-seconds of ``pipeline.clustering.kmeans`` with its arguments, or the config's."""
        centroids = self.config.centroids
        given = {"restarts": centroids.restarts, "iterations": centroids.iterations} | settings
        products = max(1, rows * width * (clusters or self.config.most_clusters))
        restarts, iterations = affordable(products, work=work, **given)
        seconds = 2 * products / (self.rates.kmeans_gflop_s * 1e9)
        seconds += rows * self.rates.point_ns * 1e-9
        return restarts * (iterations + 1) * seconds  # and once more for the objective


def task_costs(run: CostInputs, core_s: float, reads: int = 1, puts: int = 1) -> StageCosts:
    """Costs of a stage that is one task, with one worker's threads, and reads the sample so often.

    It holds up to three copies of the sample, as features and as embeddings, in float32.
    """
    threads, values = run.cluster.threads, run.manifest.width + run.config.model.embedding
    return StageCosts(
        rows=run.sample_rows,
        fixed_seconds=0.2,
        work_seconds=core_s / threads,
        cores=threads,
        gets=2 + TABLE_GETS * (3 + reads * run.sample_parts),
        puts=puts,
        held_bytes=run.sample_rows * values * 12,
    )


def training_costs(
    run: CostInputs,
    settings: Optimization,
    *,
    row_flop: float,
    parameters: int,
    copies: int,
    files: int,
    clusters: int = 0,
    measuring: int = 0,
    **costs: Any,
) -> StageCosts:
    """Costs of a training: passes that learn, and passes that only measure.

    Learning from a row takes ``row_flop`` operations. The workers exchange gradients of
    ``parameters``, of which a checkpoint has ``copies`` floats each; each worker loads ``files``
    files. ``clusters`` centroids learn too; ``measuring`` passes only measure. ``costs`` are
    ``passes`` that learn, and what else ``StageCosts`` should have.
    """
    manifest, cluster, rates, passes = run.manifest, run.cluster, run.rates, costs["passes"]
    network, device, units = run.network, run.core, cluster.compute
    if cluster.worker_gpus:
        device, units = rates.gpu, cluster.workers * cluster.worker_gpus
    rows = round(run.fit_rows * (1 - held_out_share(run.config.source.held_out, manifest.rows)))
    row_s = row_flop / (device.train_gflop_s * 1e9) + clusters * device.learn_ns * 1e-9
    row_s += run.augments * manifest.width * device.augment_ns * 1e-9
    measure_s = 2 * network.encoder / (device.encode_gflop_s * 1e9)
    measure_s += clusters * device.measure_ns * 1e-9
    # A ring: each worker sends and receives all but its own part of the gradients, twice.
    moved_bytes = 2 * (cluster.workers - 1) / cluster.workers * parameters * 4
    update_s = device.update_s + parameters * device.update_ns * 1e-9
    update_s += moved_bytes / (rates.network_mb_s * 1e6)
    updates = passes * math.ceil(rows / update_rows(settings, run.fit_rows))
    reads = 1 if run.cached else passes + measuring
    read_s = reads * run.fit_rows * manifest.width * rates.value_ns * 1e-9 / cluster.compute
    work_s = (passes * row_s + measuring * measure_s) * rows / units + updates * update_s + read_s
    share = run.fit_rows / max(1, manifest.rows)
    pieces = math.ceil(manifest.row_groups * share) + cluster.workers - 1  # some are cut
    checkpoints = 1 + int(work_s / run.config.execution.checkpoint_seconds)
    in_place = cluster.workers == cluster.nodes == 1  # trains in the driver's process
    return StageCosts(
        rows=(passes + measuring) * rows,
        measuring_passes=measuring,
        read_bytes=reads * manifest.wanted_bytes * share,
        written_bytes=4 * checkpoints * copies * parameters
        + 4 * (network.encoder_parameters + network.decoder_parameters),
        input_gets=reads * run.input_gets(pieces, pieces, manifest.wanted_bytes * share),
        gets=cluster.workers * (files * TABLE_GETS + 1) + 2 * (files + 1) * TABLE_GETS,
        puts=checkpoints + files + 1,
        readers=cluster.compute,
        fixed_seconds=rates.start_s if in_place else rates.workers_s,
        work_seconds=work_s,
        cores=cluster.compute,
        held_bytes=(copies + 1) * 4 * parameters
        + (run.share_bytes if run.cached else 2 * _WINDOW_BYTES),
        **costs,
    )
