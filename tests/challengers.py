"""A champion and its challengers in a small lake: real files, real models, three clear groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts.inputs import FeatureColumn, Manifest, Sample, encode_schema
from pipeline.artifacts.models import Candidate, ClusteringModel, Comparison
from pipeline.artifacts.nights import Champion, Identity, NightDecision, Reference
from pipeline.artifacts.records import Artifact, StoredFile
from pipeline.clustering.drift import bin_counts, bin_edges
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.input.samples import FEATURES, HELD_OUT
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.scaling import Scaler
from pipeline.registry.entries import CLUSTER_SCHEMA, TRANSITION_SCHEMA, Entry, append
from pipeline.registry.models import centroids_bytes, scaler_bytes, store_model, weights_bytes
from pipeline.registry.reference import bins_bytes
from pipeline.runs import Marker
from pipeline.storage import parquet_bytes

WIDTH = 4
# Centers of the groups, and of the clusters of a good model.
CENTERS = np.array([[-6.0], [0.0], [6.0]]) * np.ones((3, WIDTH))


def rows(count: int = 600, seed: int = 0) -> NDArray[np.float32]:
    """Rows of three groups of about equal size."""
    random = np.random.default_rng(seed)
    which = random.integers(0, 3, count)
    return (CENTERS[which] + random.normal(size=(count, WIDTH))).astype(np.float32)


@dataclass
class Lake:
    """What runs have left, written as they write it."""

    config: Config
    context: Context
    features: tuple[FeatureColumn, ...] = (FeatureColumn(name="x", width=WIDTH, vector=True),)
    scaler: Scaler = field(
        default_factory=lambda: Scaler("none", np.zeros(WIDTH), np.zeros(WIDTH), np.ones(WIDTH))
    )

    def store(self, name: str, content: bytes) -> StoredFile:
        return self.context.store(f"{self.context.run_path}/{name}", content)

    def at(self, run_id: str, ds: str | None = None) -> Lake:
        """The same lake as another run sees it."""
        return Lake(self.config, Context(run_id, ds or self.context.ds, self.context.lake))

    def scaler_file(self) -> bytes:
        return bytes(scaler_bytes(self.scaler, self.features))

    def limited(self, **limits: float | None) -> Lake:
        """The same with other limits of the gate."""
        gate = self.config.gate.model_copy(update=limits)
        return Lake(self.config.model_copy(update={"gate": gate}), self.context)

    def weights(self, factor: float = 1.0) -> bytes:
        """Of an encoder that hands rows on, times a factor: x = relu(x) - relu(-x)."""
        model = self.config.model
        autoencoder = Autoencoder(WIDTH, model.hidden, model.embedding)
        assert (model.hidden, model.embedding) == ([2 * WIDTH], WIDTH)
        first, _, last = autoencoder.encoder
        eye = torch.eye(WIDTH)
        with torch.no_grad():
            first.weight.copy_(torch.cat([eye, -eye]))
            last.weight.copy_(torch.cat([eye, -eye], dim=1) * factor)
            first.bias.zero_()
            last.bias.zero_()
        return weights_bytes(autoencoder)

    def sample(self, x_NF: NDArray[Any], name: str = "sample") -> Sample:
        vectors = pa.FixedSizeListArray.from_arrays(x_NF.ravel(), WIDTH)
        table = pa.table(
            {"id": np.arange(len(x_NF)), FEATURES: vectors, HELD_OUT: np.zeros(len(x_NF), bool)}
        )
        return Sample(
            parts=(self.store(f"{name}/part-0.parquet", bytes(parquet_bytes(table))),),
            rows=len(x_NF),
            scanned_rows=len(x_NF),
            missing_values=0,
            scaler=self.store(f"{name}/scaler.parquet", self.scaler_file()),
            scaling="none",
        )

    def model(self, centroids_KF: NDArray[Any], weights: bytes | None = None) -> ClusteringModel:
        """k-means in the features themselves, or on embeddings where there are weights."""
        return store_model(
            self.config,
            self.context,
            "dec" if weights else "kmeans",
            weights=weights,
            centroids=bytes(centroids_bytes(np.asarray(centroids_KF, np.float32))),
            scaler=self.scaler_file(),
            scaling="none",
        )

    def champion(
        self,
        centroids_KF: NDArray[Any] = CENTERS,
        *,
        ids: tuple[int, ...] = (1, 2, 3),
        x_NF: NDArray[Any] | None = None,
        weights: bytes | None = None,
    ) -> Champion:
        x_NF = rows() if x_NF is None else x_NF
        edges_FB = bin_edges(x_NF)
        table = pa.table(
            {
                "position": np.arange(len(ids), dtype=np.int32),
                "cluster_id": np.array(ids, np.int32),
                "most_distance": np.full(len(ids), np.inf, np.float32),
            }
        )
        return Champion(
            model=self.model(centroids_KF, weights),
            run_id=self.context.run_id,
            ds=self.context.ds,
            refit_ds=self.context.ds,
            ids=self.store("ids.parquet", bytes(parquet_bytes(table))),
            reference=Reference(
                sample=self.sample(x_NF, "reference"),
                features=self.features,
                bins=self.store("bins.parquet", bins_bytes(edges_FB, bin_counts(x_NF, edges_FB))),
            ),
            settings="0",
        )

    def manifest(self, count: int = 600, shards: int = 10) -> Manifest:
        manifest = Manifest(
            shards=self.store("shards.parquet", b""),
            rows=count,
            bytes=1,
            wanted_bytes=1,
            shard_count=shards,
            row_groups=shards,
            slice_count=1,
            target_slice_mib=1,
            features=self.features,
            dtype="float32",
            carried=encode_schema(pa.schema([("id", pa.int64())])),
            nulls="error",
            keys=("id",),
            label=None,
        )
        path = f"{self.context.run_path}/manifest.json"
        self.context.lake.write_json(path, manifest.model_dump(mode="json"))
        return manifest

    def clusters(self, died: dict[int, str | None], **names: str) -> StoredFile:
        """A clusters table: ids, and when they died; names as ``_1="birds"``."""
        dim = [0.0] * WIDTH
        table = pa.Table.from_pylist(
            [
                {
                    "cluster_id": number,
                    "name": names.get(f"_{number}"),
                    "born": "2026-01-01",
                    "died": when,
                    "parents": [],
                    "size": 200,
                    "model_id": "m",
                    "centroid": dim,
                    "exemplars": [],
                }
                for number, when in died.items()
            ],
            schema=CLUSTER_SCHEMA,
        )
        return self.store("clusters.parquet", bytes(parquet_bytes(table)))

    def identity(
        self, challenger: Champion, clusters: StoredFile | None = None, churn: float | None = 0.0
    ) -> Identity:
        transitions = parquet_bytes(TRANSITION_SCHEMA.empty_table())
        return Identity(
            challenger=challenger,
            clusters=clusters or self.clusters({1: None, 2: None, 3: None}),
            transitions=self.store("transitions.parquet", bytes(transitions)),
            survived=3,
            split=0,
            merged=0,
            born=0,
            died=0,
            churn=churn,
        )

    def promoted(self, identity: Identity, before: Entry | None = None) -> Entry:
        """The registry's entry that a night appends for its challenger."""
        return append(
            self.context.lake,
            before.number if before else 0,
            action="promote",
            commit_id=self.context.run_id,
            who=f"run {self.context.run_id}",
            reason="refit: for the test",
            champion=identity.challenger,
            clusters=identity.clusters,
            transitions=(*(before.transitions if before else ()), identity.transitions),
        )

    def mark(self, stage: str, artifact: Artifact) -> None:
        """Leave a stage's marker as the engine does."""
        marker = Marker(
            stage=stage,
            fingerprint="0",
            seconds=0,
            finished_at="2026-01-01T00:00:00+00:00",
            artifact=artifact.model_dump(mode="json"),
        )
        path = self.context.stage_path(stage, "done.json")
        self.context.lake.write_json(path, marker.model_dump(mode="json"))

    def named(self) -> None:
        """Leave ``run.json``."""
        identity = {"run_id": self.context.run_id, "ds": self.context.ds, "version": "0"}
        self.context.lake.write_json(f"{self.context.run_path}/run.json", identity)


def decided(champion: Champion | None, entry: int = 1, *, usable: bool = True) -> NightDecision:
    return NightDecision(
        action="refit",
        why="the last refit was 7 days before (schedule.refit.every_days)",
        entry=entry if champion else 0,
        champion=champion,
        usable=usable and champion is not None,
    )


def compared(**separation: float) -> Comparison:
    """A comparison of kmeans, autoencoder and dec with these separations; 0.6 without."""
    return Comparison(
        candidates=tuple(
            Candidate(
                kind=kind,
                separation=separation.get(kind, 0.6),
                spaces=(),
                balance=1,
                empty_clusters=0,
                stability=None,
                scores=None,
            )
            for kind in ("kmeans", "autoencoder", "dec")
        ),
        winner="dec",
        margin=0,
        rows=600,
        held_out_rows=0,
        generalisation=None,
        centroids=StoredFile(path="none", sha256="0", bytes=0),
        restarts=1,
    )
