"""What a fit leaves: the autoencoder, the first centroids, the model, and how it compares."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.records import Artifact, Record, StoredFile


class PretrainedAutoencoder(Artifact):
    """The trained autoencoder.

    Attributes:
        weights: safetensors file with encoder and decoder.
        losses: Mean squared error per scaled feature, one a pass.
        rows: Rows learnt from in the last pass.
        products: Precision of the workers' matrix products, "float32" or "bfloat16".
        workers: That shared each pass; fewer after nodes were lost, more after some came.
    """

    weights: StoredFile
    losses: tuple[float, ...]
    rows: int
    products: str = "float32"
    workers: tuple[int, ...] = ()


class MergeStep(Record):
    """One number of clusters that was looked at.

    Attributes:
        clusters: That number.
        agreement: Mean adjusted Rand index between any two of the partitions.
        connectivity: Mean over them of how strongly the two clusters are connected that are merged
            next, relative to their own halves; see ``pipeline.clustering.merging``. About 1 = as if
            there were no boundary, 0 = nothing crosses it.
    """

    clusters: int
    agreement: float
    connectivity: float


class ClusterChoice(Record):
    """How ``clusters: auto`` came to its number.

    Attributes:
        clusters: The number.
        cells: That merging started from.
        trees: Independent starts.
        rows: Rows of the sample that were merged.
        votes: What each start came to, least first; their geometric mean was taken, and 2 at least.
        path: Every number that was looked at, most first.
        why: In words.
        boundary: Connectivity under which two clusters stayed two; of the starts, the geometric
            mean.
    """

    clusters: int
    cells: int
    trees: int
    rows: int
    votes: tuple[int, ...]
    path: tuple[MergeStep, ...]
    why: str
    boundary: float = 0.4  # the same for all, before it was found in the paths


class InitialCentroids(Artifact):
    """k-means on the sample's embeddings.

    Attributes:
        centroids: Parquet file with one row a cluster.
        objectives: Σ‖z − μ‖² of each restart.
        objective: The lowest, which was kept.
        sample_rows: Rows that k-means saw.
        cluster_rows: Those in each cluster.
        choice: Where ``clusters`` is auto: why so many.
    """

    centroids: StoredFile
    objectives: tuple[float, ...]
    objective: float
    sample_rows: int
    cluster_rows: tuple[int, ...]
    choice: ClusterChoice | None = None


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
        workers: That came to each update; fewer after nodes were lost, more after some came.
    """

    kind: ModelKind = "dec"
    weights: StoredFile
    updates: tuple[RefineRecord, ...]
    stopped_by: str
    rows: int
    workers: tuple[int, ...] = ()


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
