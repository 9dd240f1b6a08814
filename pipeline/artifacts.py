"""What stages leave for one another: frozen, typed, and fingerprinted by their content.

An artifact is a small JSON document. Anything large is a file beside it that the document names
together with its digest, so that an artifact's fingerprint covers the bytes of its files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen part of an artifact; reading one back refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(Record):
    """A file of the run: its path below the output, and its content's digest."""

    path: str
    sha256: str
    bytes: int


class Artifact(Record):
    """What one stage leaves."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content: equal fingerprints mean equal artifacts."""
        return fingerprint_of(self.model_dump(mode="json"))


def fingerprint_of(content: Any) -> str:
    """Digest of a JSON value, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class FeatureColumn(Record):
    """A column that rows are clustered by: a scalar, or a vector of fixed width."""

    name: str
    width: int
    vector: bool


class Manifest(Artifact):
    """The pinned input.

    Attributes:
        shards: Parquet file with one row a shard: url, name, bytes, version, rows, row groups.
        rows: Rows of all shards.
        bytes: Size of all shards.
        wanted_bytes: Size of the wanted columns in them, as stored.
        shard_count: Shards, empty ones included.
        row_groups: Row groups of all shards.
        slice_count: Units of work.
        target_slice_mib: What the slices were cut for.
        features: The feature columns in the order of the config, globs resolved.
        dtype: numpy name of the type that a raw row has in memory.
        carried: Arrow schema of the key columns and the label, base64 of its IPC form.
        nulls: What a missing feature does; see ``source.nulls``.
        keys: Names of the key columns; empty: shard name and row number stand in.
        label: Name of the label column.
    """

    shards: StoredFile
    rows: int
    bytes: int
    wanted_bytes: int
    shard_count: int
    row_groups: int
    slice_count: int
    target_slice_mib: int
    features: tuple[FeatureColumn, ...]
    dtype: str
    carried: str
    nulls: str
    keys: tuple[str, ...]
    label: str | None

    @property
    def width(self) -> int:
        """F, the width of a row of features."""
        return sum(column.width for column in self.features)

    @property
    def carried_schema(self) -> pa.Schema:
        """Names and types of the key columns and of the label."""
        return decode_schema(self.carried)


def encode_schema(schema: pa.Schema) -> str:
    """The form in which JSON keeps a schema."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def decode_schema(text: str) -> pa.Schema:
    """The schema that ``encode_schema`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


class Sample(Artifact):
    """The reference sample and what was learnt from it.

    Attributes:
        parts: Parquet files with the sampled rows: keys, label, and ``features`` as a vector.
        rows: Rows in them.
        scanned_rows: Rows that the scaler's statistics come from.
        missing_values: Null, NaN or infinite features among those.
        scaler: Parquet file with one row a feature: mean, offset, factor.
        scaling: How the scaler works; see ``pipeline.model.scaling.Scaler``.
    """

    parts: tuple[StoredFile, ...]
    rows: int
    scanned_rows: int
    missing_values: int
    scaler: StoredFile
    scaling: str


class PretrainedAutoencoder(Artifact):
    """The trained autoencoder.

    Attributes:
        weights: safetensors file with encoder and decoder.
        losses: Mean squared error per scaled feature, one a pass.
        rows: Rows learnt from in the last pass.
        products: Precision of the workers' matrix products, "float32" or "bfloat16".
    """

    weights: StoredFile
    losses: tuple[float, ...]
    rows: int
    products: str = "float32"


class InitialCentroids(Artifact):
    """k-means on the sample's embeddings.

    Attributes:
        centroids: Parquet file with one row a cluster.
        objectives: Σ‖z − μ‖² of each restart.
        objective: The lowest, which was kept.
        sample_rows: Rows that k-means saw.
        cluster_rows: Those in each cluster.
    """

    centroids: StoredFile
    objectives: tuple[float, ...]
    objective: float
    sample_rows: int
    cluster_rows: tuple[int, ...]


class RefineRecord(Record):
    """The state at one update of the target; see ``pipeline.model.refinement.RefineUpdate``."""

    number: int
    label_change: float | None
    kl: float | None
    loss: float | None
    learning_rate: float
    cluster_rows: tuple[int, ...]
    event: str | None


ModelKind = Literal["kmeans", "autoencoder", "dec"]


class ClusteringModel(Artifact):
    """A complete model: scaler, encoder and centroids, under ``models/<model_id>/``.

    Attributes:
        model_id: Derived from the content of its files.
        kind: "dec"; "autoencoder": k-means on the pretrained embedding; "kmeans": on the scaled
            features themselves, without an encoder.
        weights: safetensors file with encoder and decoder; None for "kmeans".
        centroids: Parquet file: cluster_id and centroid.
        scaler: Parquet file with one row a feature.
        scaling: How the scaler works.
    """

    model_id: str
    kind: ModelKind
    weights: StoredFile | None
    centroids: StoredFile
    scaler: StoredFile
    scaling: str


class RefinedModel(ClusteringModel):
    """What DEC made of the pretrained autoencoder and the first centroids.

    Attributes:
        updates: History of the refinement.
        stopped_by: "tol", "passes", or "collapse" of every attempt to go on from the last update.
        rows: Rows of the training set.
    """

    kind: ModelKind = "dec"
    weights: StoredFile
    updates: tuple[RefineRecord, ...]
    stopped_by: str
    rows: int


class PartFile(Record):
    """One file of the assignments table."""

    path: str
    rows: int
    bytes: int


class Scores(Record):
    """Agreement with the label column; see ``pipeline.clustering.agreement``."""

    acc: float
    nmi: float
    ari: float
    rows: int


class SpaceQuality(Record):
    """A partition, measured in one of the three spaces.

    Attributes:
        space: "features" as scaled, "pretrained" embedding or "refined" embedding.
        silhouette: See ``pipeline.clustering.quality.macro_silhouette``.
        objective_ratio: Share of the variance left within clusters.
    """

    space: str
    silhouette: float
    objective_ratio: float


class Candidate(Record):
    """One of the three partitions of the reference sample.

    Attributes:
        kind: Which.
        modularity: How much more often neighbours in scaled features share a cluster than chance
            explains; decides. See ``pipeline.clustering.quality.modularity``.
        spaces: Its quality in every space.
        balance: Entropy of the sizes of its clusters over log K; 1 = all of one size.
        empty_clusters: Clusters without a row of the sample.
        stability: ARI of two fits on disjoint halves of the sample; None: too few rows.
        scores: Agreement with the label column; decides nothing.
    """

    kind: ModelKind
    modularity: float
    spaces: tuple[SpaceQuality, ...]
    balance: float
    empty_clusters: int
    stability: float | None
    scores: Scores | None


class Comparison(Artifact):
    """DEC and its baselines, by the same label-free rule on the same rows.

    Attributes:
        candidates: "kmeans", "autoencoder" and "dec", best first: by empty clusters, then by
            modularity to three decimals, then the simpler method.
        winner: The first of them, which ``refine.select: auto`` ships.
        margin: Its modularity less that of the second.
        rows: Rows of the sample that all was measured on.
        held_out_rows: Those among them that training did not see.
        generalisation: DEC's mean KL(P‖Q) a row on the others over that on held-out rows; near 1
            where it has learnt, small where it has memorised (G in Xie et al. 2016, section 5.2).
            None: nothing was held out, or there was nothing left to divide by.
        centroids: Parquet file: those of "kmeans", in scaled features.
        restarts: k-means runs that they are the best of.
    """

    candidates: tuple[Candidate, ...]
    winner: ModelKind
    margin: float
    rows: int
    held_out_rows: int
    generalisation: float | None
    centroids: StoredFile
    restarts: int


class Assignments(Artifact):
    """The written, not yet published, assignments of every row.

    Attributes:
        files: JSON file that lists the part files.
        file_count: How many.
        rows_in: Rows of the input.
        rows_dropped: Rows left out by ``source.nulls: drop``.
        rows: Rows written; rows_in = rows + rows_dropped.
        cluster_rows: Rows of each cluster id.
        mean_confidence: Mean of the ``confidence`` column.
        scores: Agreement with the label column, where there is one.
    """

    files: StoredFile
    file_count: int
    rows_in: int
    rows_dropped: int
    rows: int
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    scores: Scores | None


class Snapshot(Artifact):
    """A publish: ``snapshots/<number>.json`` now names this run's files for its ds."""

    number: int
    path: str


class StageTime(Record):
    """What a stage took when it ran."""

    stage: str
    seconds: float


class Summary(Artifact):
    """The end of a run, also ``metrics.json``: everything the closing table shows."""

    run_id: str
    ds: str
    model_id: str
    snapshot: int
    rows_in: int
    rows_out: int
    rows_dropped: int
    shards: int
    features: int
    clusters: int
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    products: str
    pretrain_passes: int
    pretrain_loss: float
    kmeans_objective: float
    refine_updates: int
    refine_stopped_by: str
    refine_events: tuple[str, ...]
    kl: float | None
    label_change: float | None
    scores: Scores | None
    comparison: Comparison
    shipped: ModelKind
    stages: tuple[StageTime, ...]
    output: str
    assignments: str
    model: str
