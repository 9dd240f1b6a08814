"""Measure the rates of this machine on a sample of the input, with the product's own functions.

No Ray: one process reads, trains and assigns, from random weights, with the config's network, batch
and clusters. Each time is divided by what the stage declares for the same work on this machine.
"""

from __future__ import annotations

import os
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile, store_file
from pipeline.bill.costs import CostInputs
from pipeline.bill.records import Cluster, StageFactor
from pipeline.clustering.first_clusters import spread_factor
from pipeline.clustering.kmeans import kmeans
from pipeline.config import Config, sized
from pipeline.engine import Stage
from pipeline.errors import InputError, NumericalError
from pipeline.input.feed import WorkerRows
from pipeline.input.pinning import PinnedInput
from pipeline.input.reading import Reader, manifest_of, pieces_of_shards
from pipeline.input.slices import training_share
from pipeline.input.statistics import RowStatistics, fit_scaler
from pipeline.labelling.assigning import Assigner, AssignJob
from pipeline.model.augmentation import augmentation_of
from pipeline.model.autoencoder import Autoencoder, products_here
from pipeline.model.clusters import ClusterModel
from pipeline.model.devices import embeddings
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Scaler
from pipeline.model.training import update_rows
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.models import centroids_bytes, scaler_bytes, weights_bytes
from pipeline.registry.reference import bins_bytes
from pipeline.schema import UNDATED
from pipeline.storage import Store, parquet_bytes

# Maximum size of the sample: two cores learn from so much in two seconds, with the default network.
_ROWS, _RAW_BYTES = 20_000, 64 * 2**20
# Maximum estimated time of a pass of pretraining, and of k-means; each is repeated.
_PASS_SECONDS, _KMEANS_SECONDS = 1.5, 1.5
_REPEATS = 3
_ENDLESS = 10**9  # passes
# So small that no cluster dies: seeding it again would be work that a run seldom has.
_NO_LEARNING = 1e-9


@dataclass(frozen=True)
class Measured:
    """Rates measured on this machine."""

    rows: int
    threads: int
    load: float  # load average before; where it exceeds the cores, others kept the machine busy
    seconds: float
    # Rates by work: "read" and "assign" on one thread; "pretrain", "refine" (a pass and the
    # measuring after it) and "kmeans" on all of them.
    rows_per_second: dict[str, float]
    factors: dict[str, StageFactor]  # corrections of the default rates, by stage
    left_out: dict[str, str]


def measure(config: Config, pinned: PinnedInput, stages: Sequence[Stage[..., Any]]) -> Measured:
    """Measure for about 20 seconds; nothing is written but a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="dec-measure-") as folder:
        return _Sample(config, pinned, stages, Store(folder)).measure()


class _Sample:
    def __init__(
        self, config: Config, pinned: PinnedInput, stages: Sequence[Stage[..., Any]], lake: Store
    ) -> None:
        self.lake, self.costs = lake, {stage.name: stage.cost for stage in stages}
        manifest = manifest_of(config, pinned, self._store("shards", pinned.shards))
        fit_rows = min(manifest.rows, config.source.fit_rows or manifest.rows)
        # As in the run, all rows of the sample in batches of the table's size; but without an end.
        endless = {"min_updates": 0, "passes": _ENDLESS}
        still = {"learning_rate": _NO_LEARNING, "tol": 0.0, "update_interval_rows": None}
        batches = {n: update_rows(getattr(config, n), fit_rows) for n in ("pretrain", "refine")}
        changes: dict[str, dict[str, Any]] = {
            "source": {"fit_rows": None, "held_out": 0.0},
            "pretrain": {"batch_rows": batches["pretrain"], **endless},
            "refine": {"batch_rows": batches["refine"], **endless, **still},
        }
        sections = {n: getattr(config, n).model_copy(update=c) for n, c in changes.items()}
        self.config = sized(config, manifest.width, manifest.rows).model_copy(update=sections)
        self.threads, self.manifest = torch.get_num_threads(), manifest
        row_bytes = manifest.width * np.dtype(manifest.dtype).itemsize
        self.rows = max(1, min(manifest.rows, _ROWS, _RAW_BYTES // row_bytes))
        if (pass_s := self._expected("pretrain") / _ENDLESS) > _PASS_SECONDS:  # a wide network
            few = min(self.rows, 4 * self.config.pretrain.batch_rows)
            self.rows = max(few, int(self.rows * _PASS_SECONDS / pass_s))
        pieces = pieces_of_shards(pinned.shards, manifest.target_slice_mib)
        if not len(pieces):
            raise InputError("there is no row to measure on; give a table that has some")
        share = training_share(pieces, 0, 1, fit_rows=self.rows, seed=config.seed)
        self.pieces = share.sort_by([("shard", "ascending"), ("row_group", "ascending")])
        self.found: dict[str, float] = {}
        self.factors: dict[str, StageFactor] = {}
        self.left_out: dict[str, str] = {}

    def measure(self) -> Measured:
        begun, load = time.perf_counter(), os.getloadavg()[0]
        config, network = self.config, self.config.model
        x_NF, scaler = self._read()
        augmentation = augmentation_of(config.augment, config.source.image_shape)
        autoencoder = Autoencoder(
            scaler.width,
            network.widths,
            network.embedding,
            config.seed,
            precision=network.precision,
            categories=scaler.categories,
        )
        pretraining = Pretraining(autoencoder, scaler, config.pretrain, augmentation=augmentation)
        self._train("pretrain", pretraining, warm_up=1)
        with torch.inference_mode():
            z_ND = embeddings(autoencoder.encoder, scaler, torch.from_numpy(x_NF)).numpy()
        # As refinement starts: gradients of an embedding that was not spread are denormal,
        # which take a processor fifty times as long.
        mean_square = float(z_ND.var(axis=0).sum())
        factor = spread_factor(config.embedding.spread, mean_square, network.embedding)
        autoencoder.transform_embedding(torch.eye(network.embedding) * factor)
        centroids_KD = self._cluster(z_ND * np.float32(factor))
        refinement = Refinement(
            ClusterModel(autoencoder.encoder, torch.from_numpy(centroids_KD), 1.0),
            scaler,
            config.refine,
            decoder=autoencoder.decoder,
            augmentation=augmentation,
        )
        try:
            self._train("refine", refinement, warm_up=2)  # the first is the k-means partition
        except NumericalError:
            self.left_out["refine"] = f"{self.rows:,} rows do not fill every cluster"
        self._assign(autoencoder, scaler, centroids_KD)
        return Measured(
            rows=self.rows,
            threads=self.threads,
            load=load,
            seconds=time.perf_counter() - begun,
            rows_per_second=self.found,
            factors=self.factors,
            left_out=self.left_out,
        )

    def _read(self) -> tuple[NDArray[Any], Scaler]:
        """Read the sample, shape (rows, features), and fit the scaler."""
        reader, features = Reader.of(self.config, self.manifest, carry=True), self.manifest.features
        start = time.perf_counter()
        read = list(reader.blocks(self.pieces))
        blocks = [np.array(block.x_BF) for block in read]
        statistics = RowStatistics.merged(RowStatistics.of(block, features) for block in read)
        self._keep("read", time.perf_counter() - start, self._expected("sample", 1), "sample")
        return np.concatenate(blocks), fit_scaler(self.config, features, statistics)

    def _train(self, stage: str, training: Any, *, warm_up: int) -> None:
        """Time passes after the first ones, which read and warm up."""
        updates: Iterator[Any] = training.run(
            WorkerRows(
                Reader.of(self.config, self.manifest, carry=False),
                self.pieces,
                total_rows=self.rows,
                cache_bytes=2**40,
                parallel_reads=self.threads,
                seed=self.config.seed,
            )
        )
        for _ in range(warm_up):
            next(updates)
        seconds = _fastest(partial(next, updates))
        self._keep(stage, seconds, self._expected(stage) / _ENDLESS, stage)

    def _cluster(self, z_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Time k-means, and return centroids."""
        clusters = self.config.most_clusters
        few = len(z_ND) < clusters
        expected = self._inputs().kmeans_s(*z_ND.shape, restarts=1, iterations=10) / self.threads
        if few or expected > _KMEANS_SECONDS:
            why = f"{len(z_ND):,} rows are fewer than" if few else "it takes too long for"
            self.left_out["k-means"] = f"{why} {clusters=}"
            return z_ND[np.random.default_rng(0).choice(len(z_ND), clusters, replace=few)]
        fit = partial(kmeans, z_ND, clusters, restarts=1, iterations=10, seed=0)
        centroids_KD = fit().centroids_KD
        self._keep("kmeans", _fastest(fit), expected, "init_centroids", "evaluate")
        return centroids_KD

    def _assign(
        self, autoencoder: Autoencoder, scaler: Scaler, centroids_KD: NDArray[np.float32]
    ) -> None:
        """The sample as a slice: read, encoded, assigned, sorted and written by one thread."""
        model = ClusteringModel(
            model_id="m-measured",
            kind="dec",
            weights=self._store("weights", weights_bytes(autoencoder)),
            centroids=self._store("centroids", centroids_bytes(centroids_KD)),
            scaler=self._store("scaler", scaler_bytes(scaler, self.manifest.features)),
            scaling=scaler.mode,
        )
        edges_FB = np.zeros((self.manifest.width, 9))
        rows_FB = np.ones((self.manifest.width, 10), np.int64)
        job = AssignJob(
            self.config,
            self.manifest,
            model,
            self._store("ids", parquet_bytes(ClusterIds.positions(len(centroids_KD)).table())),
            self._store("bins", bins_bytes(edges_FB, rows_FB)),
            self.lake,
            folder="parts",
            run_id="measured",
            ds=UNDATED,
            threads=1,
        )
        assigner = Assigner(job)
        try:
            seconds = timeit.timeit(lambda: assigner(self.pieces), number=1)
        finally:
            torch.set_num_threads(self.threads)  # it takes one
        self._keep("assign", seconds, self._expected("assign", 1), "assign")

    def _inputs(self, threads: int | None = None) -> CostInputs:
        """The sample as a table of its own, on this machine."""
        threads, products = threads or self.threads, products_here(self.config.model.precision)
        cluster = Cluster(
            nodes=1,
            cpus_per_node=threads,
            gpus_per_node=0,
            workers=1,
            threads=threads,
            actors=1,
            actor_threads=threads,
        )
        wanted_bytes = self.manifest.wanted_bytes * self.rows // max(1, self.manifest.rows)
        figures = {"rows": self.rows, "wanted_bytes": wanted_bytes, "row_groups": 1}
        manifest = self.manifest.model_copy(update=figures | {"shard_count": 1, "slice_count": 1})
        return CostInputs(self.config, manifest, cluster, products)

    def _expected(self, stage: str, threads: int | None = None) -> float:
        """Seconds that a stage declares for the sample."""
        seconds: float = self.costs[stage](self._inputs(threads)).work_seconds
        return seconds

    def _keep(self, name: str, seconds: float, expected: float, *stages: str) -> None:
        self.found[name] = self.rows / seconds
        factor = StageFactor(work=round(seconds / expected, 4))
        self.factors.update(dict.fromkeys(stages, factor))

    def _store(self, name: str, content: bytes | pa.Table) -> StoredFile:
        data = content if isinstance(content, bytes) else parquet_bytes(content)
        return store_file(self.lake, name, data)


def _fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some repeats: the one that other processes disturbed least."""
    return min(timeit.repeat(work, number=1, repeat=_REPEATS))
