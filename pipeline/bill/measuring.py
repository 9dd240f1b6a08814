"""Rates of this machine, measured on a sample of the input by the product's own functions.

No Ray: one process reads, trains and assigns, from random weights, with the config's network, batch
and clusters. Each figure is compared with what the estimate says of the same work here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts.estimates import StageFactor
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile
from pipeline.bill.estimate import estimate, kmeans_core_seconds
from pipeline.bill.rates import Cluster, InputFacts, Rates
from pipeline.clustering.kmeans import kmeans
from pipeline.config import Config
from pipeline.errors import InputError, NumericalError
from pipeline.input.feed import WorkerRows
from pipeline.input.pinning import PinnedInput
from pipeline.input.reading import Reader, manifest_of, pieces_of_shards
from pipeline.input.statistics import RowStatistics, fit_scaler
from pipeline.labelling.assigning import Assigner, AssignJob
from pipeline.model.augmentation import augmentation_of
from pipeline.model.autoencoder import Autoencoder, products_here
from pipeline.model.devices import embeddings
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import ClusterModel, Refinement, embedding_factor
from pipeline.model.scaling import Scaler
from pipeline.model.training import update_rows
from pipeline.registry.models import centroids_bytes, scaler_bytes, weights_bytes
from pipeline.storage import Store, parquet_bytes, sha256

# Of the input, at most: what two cores learn from in two seconds, with the default network.
_ROWS, _RAW_BYTES = 20_000, 64 * 2**20
# A pass of a training should take about this long, and k-means no longer; each is repeated.
_PASS_SECONDS, _KMEANS_SECONDS = 1.5, 1.5
_REPEATS = 3
# So small that no cluster dies: seeding it again would be work that a run seldom has.
_STANDING_STILL = 1e-9


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        rows: Of the sample.
        threads: That the trainings used.
        load: Processes that wanted a core of this machine before; more than it has cores, and the
            rates are what others left of it.
        seconds: That measuring took.
        rows_per_second: By what was done: "read" and "assign" on one thread, "pretrain" and
            "refine" (a pass and the measuring after it) on all of them.
        factors: On the default rates, by stage.
        left_out: What could not be measured, and why.
    """

    rows: int
    threads: int
    load: float
    seconds: float
    rows_per_second: dict[str, float]
    factors: dict[str, StageFactor]
    left_out: dict[str, str]


def measure(config: Config, pinned: PinnedInput) -> Measured:
    """Measure for about 20 seconds; nothing is written but a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="dec-measure-") as folder:
        return _Sample(config, pinned, Store(folder)).measure()


class _Sample:
    def __init__(self, config: Config, pinned: PinnedInput, lake: Store) -> None:
        self.lake, self.rates = lake, Rates()
        self.manifest = manifest_of(config, pinned, self._store("shards", pinned.shards))
        self.pieces = _some_pieces(config, pinned, self.manifest)
        self.rows = int(self.pieces["rows"].to_numpy().sum())
        self.threads = torch.get_num_threads()
        fit_rows = min(self.manifest.rows, config.source.fit_rows or self.manifest.rows)
        # As in the run: all rows of the sample, in batches of the size that the table gives.
        fixed = {
            stage: {"batch_rows": update_rows(settings, fit_rows), "min_updates": 0}
            for stage, settings in (("pretrain", config.pretrain), ("refine", config.refine))
        }
        still = {"learning_rate": _STANDING_STILL, "tol": 0.0, "update_interval_rows": None}
        self.config = config.model_copy(
            update={
                "source": config.source.model_copy(update={"fit_rows": None, "held_out": 0.0}),
                "pretrain": config.pretrain.model_copy(update=fixed["pretrain"]),
                "refine": config.refine.model_copy(update=fixed["refine"] | still),
            }
        )
        self.mean_square = 0.0  # distance to the nearest centroid, in the embedding
        self.found: dict[str, float] = {}
        self.factors: dict[str, StageFactor] = {}
        self.left_out: dict[str, str] = {}

    def measure(self) -> Measured:
        begun, load = time.perf_counter(), os.getloadavg()[0]
        scaler = self._read()
        network = self.config.model
        autoencoder = Autoencoder(
            scaler.width,
            network.hidden,
            network.embedding,
            self.config.seed,
            precision=network.precision,
            categories=scaler.categories,
        )
        augmentation = augmentation_of(self.config.augment, self.config.source.image_shape)
        self._train(
            "pretrain",
            Pretraining(autoencoder, scaler, self._endless("pretrain"), augmentation=augmentation),
        )
        with torch.inference_mode():
            z_ND = embeddings(autoencoder.encoder, scaler, torch.from_numpy(self.raw_NF)).numpy()
            x_NF = scaler(torch.from_numpy(self.raw_NF)).numpy()
        centroids = self._cluster(z_ND, x_NF)
        # As refinement starts: gradients of an embedding that nobody spread are denormal numbers,
        # which take a processor fifty times as long.
        spread = self.config.refine.start_spread
        factor = embedding_factor(spread, self.mean_square, network.embedding)
        autoencoder.rescale_embedding(factor)
        centroids = centroids * np.float32(factor)
        model = ClusterModel(autoencoder.encoder, torch.from_numpy(centroids), 1.0)
        try:
            self._train(
                "refine",
                Refinement(
                    model,
                    scaler,
                    self._endless("refine"),
                    decoder=autoencoder.decoder,
                    augmentation=augmentation,
                ),
            )
        except NumericalError:
            self.left_out["refine"] = f"{self.rows:,} rows do not fill every cluster"
        self._assign(autoencoder, scaler, centroids)
        return Measured(
            rows=self.rows,
            threads=self.threads,
            load=load,
            seconds=time.perf_counter() - begun,
            rows_per_second=self.found,
            factors=self.factors,
            left_out=self.left_out,
        )

    # ------------------------------------------------------------------------------- the stages

    def _read(self) -> Scaler:
        """Read the sample, and fit the scaler."""
        reader = Reader.of(self.config, self.manifest, carry=True)
        start = time.perf_counter()
        read = list(reader.blocks(self.pieces))
        blocks = [np.array(block.x_BF) for block in read]
        features = self.manifest.features
        statistics = RowStatistics.merged(RowStatistics.of(block, features) for block in read)
        seconds = time.perf_counter() - start
        self.raw_NF = np.concatenate(blocks)
        self._keep("sample", "read", seconds, self._planned("sample", threads=1))
        return fit_scaler(self.config, features, statistics)

    def _train(self, stage: str, trainee: Any) -> None:
        """Passes after the first, which reads and warms up."""
        planned = {n: self._planned(stage, passes=n) for n in (1, 2)}
        a_pass = planned[2] - planned[1]
        rows = self.rows
        if a_pass > _PASS_SECONDS:  # a wide network: of fewer rows
            rows = max(
                min(rows, 4 * self._endless(stage).batch_rows), int(rows * _PASS_SECONDS / a_pass)
            )
        share = rows / self.rows
        pieces = _first(self.pieces, rows)
        updates: Iterator[Any] = trainee.run(
            WorkerRows(
                Reader.of(self.config, self.manifest, carry=False),
                pieces,
                total_rows=rows,
                cache_bytes=2**40,
                parallel_reads=self.threads,
                seed=self.config.seed,
            )
        )
        next(updates)
        if stage == "refine":  # the first is the k-means partition
            next(updates)
        seconds = _least(partial(next, updates))
        self._keep(stage, stage, seconds, a_pass * share, rows)

    def _cluster(self, z_ND: NDArray[np.float32], x_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        """k-means on embeddings and on scaled features, and the centroids of the first."""
        clusters = self.config.most_clusters
        self.mean_square = float(z_ND.var(axis=0).sum())
        if len(z_ND) < clusters:
            self.left_out["k-means"] = f"{len(z_ND):,} rows are fewer than clusters={clusters}"
            drawn = np.random.default_rng(0).normal(size=(clusters, z_ND.shape[1]))
            spread: NDArray[np.float64] = drawn * z_ND.std(axis=0) + z_ND.mean(axis=0)
            return spread.astype(np.float32)
        chosen = np.random.default_rng(0).permutation(len(z_ND))[:clusters]
        centroids: NDArray[np.float32] = np.ascontiguousarray(z_ND[chosen])
        for stage, points in (("init_centroids", z_ND), ("evaluate", x_NF)):
            shape = (*points.shape, clusters)
            planned = kmeans_core_seconds(self.rates, shape, restarts=1, iterations=10)
            if planned / self.threads > _KMEANS_SECONDS:
                self.left_out[stage] = "k-means on so many clusters takes too long"
                continue
            fit = partial(kmeans, points, clusters, restarts=1, iterations=10, seed=0)
            result = fit()
            self._keep(stage, stage, _least(fit), planned / self.threads)
            if stage == "init_centroids":
                centroids = result.centroids_KD
                self.mean_square = result.objective / len(points)
        return centroids

    def _assign(
        self, autoencoder: Autoencoder, scaler: Scaler, centroids: NDArray[np.float32]
    ) -> None:
        """The sample as a slice: read, encoded, assigned, sorted and written by one thread."""
        model = ClusteringModel(
            model_id="m-measured",
            kind="dec",
            weights=self._store("weights", weights_bytes(autoencoder)),
            centroids=self._store("centroids", centroids_bytes(centroids)),
            scaler=self._store("scaler", scaler_bytes(scaler, self.manifest.features)),
            scaling=scaler.mode,
        )
        folder, run, ds = "parts", "measured", "undated"
        job = AssignJob(self.config, self.manifest, model, self.lake, folder, run, ds, threads=1)
        assigner = Assigner(job)
        try:
            seconds = _seconds(lambda: assigner(self.pieces))
        finally:
            torch.set_num_threads(self.threads)  # it takes one
        self._keep("assign", "assign", seconds, self._planned("assign", threads=1))

    # ----------------------------------------------------------------------------- what they share

    def _planned(self, stage: str, *, passes: int = 1, threads: int | None = None) -> float:
        """Seconds of work that the estimate has for the sample, on this machine."""
        config = self.config.model_copy(
            update={
                "pretrain": self.config.pretrain.model_copy(update={"passes": passes}),
                "refine": self.config.refine.model_copy(update={"passes": passes}),
            }
        )
        threads = threads or self.threads
        found = estimate(
            config,
            InputFacts(
                rows=self.rows,
                wanted_bytes=round(
                    self.manifest.wanted_bytes * self.rows / max(1, self.manifest.rows)
                ),
                shards=len(set(self.pieces["shard"].to_pylist())),
                row_groups=len(self.pieces),
                slices=1,
                width=self.manifest.width,
                row_bytes=self.raw_NF.shape[1] * self.raw_NF.itemsize,
            ),
            Cluster(1, threads, 0, 1, threads, actors=1, actor_threads=threads),
            products=products_here(config.model.precision),
            rates=self.rates,
        )
        return next(s.work_seconds for s in found.stages if s.stage == stage)

    def _keep(
        self, stage: str, name: str, seconds: float, planned: float, rows: int | None = None
    ) -> None:
        self.found[name] = (rows or self.rows) / seconds
        self.factors[stage] = StageFactor(work=round(seconds / planned, 4))

    def _endless(self, stage: str) -> Any:
        """Settings of a training that does not end while somebody measures it."""
        return getattr(self.config, stage).model_copy(update={"passes": 10**9})

    def _store(self, name: str, content: bytes | pa.Table) -> StoredFile:
        data = content if isinstance(content, bytes) else parquet_bytes(content)
        self.lake.write_bytes(name, data)
        return StoredFile(path=name, sha256=sha256(data), bytes=len(data))


def _some_pieces(config: Config, pinned: PinnedInput, manifest: Manifest) -> pa.Table:
    """Row groups of a seeded choice, as one slice, until there are rows enough."""
    pieces = pieces_of_shards(pinned.shards, manifest.target_slice_mib)
    if not len(pieces):
        raise InputError("there is no row to measure on; give a table that has some")
    row_bytes = manifest.width * np.dtype(manifest.dtype).itemsize
    most = max(1, min(_ROWS, _RAW_BYTES // row_bytes))
    order = np.random.default_rng(config.seed).permutation(len(pieces))
    needed = int(np.searchsorted(np.cumsum(pieces["rows"].to_numpy()[order]), most)) + 1
    chosen = pieces.take(pa.array(np.sort(order[:needed])))
    slice_number = pa.array(np.zeros(len(chosen), np.int32))
    place = chosen.schema.get_field_index("slice")
    return _first(chosen.set_column(place, "slice", slice_number), most)


def _first(pieces: pa.Table, rows: int) -> pa.Table:
    """As many pieces as hold so many rows, the last one cut."""
    counts = pieces["rows"].to_numpy()
    left = np.clip(rows - (np.cumsum(counts) - counts), 0, counts)
    place = pieces.schema.get_field_index("rows")
    return pieces.set_column(place, "rows", pa.array(left)).filter(pa.array(left > 0))


def _least(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some repeats: the one that the fewest others disturbed."""
    return min(_seconds(work) for _ in range(_REPEATS))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
