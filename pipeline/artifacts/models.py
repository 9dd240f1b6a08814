"""Artifacts of a fit: the autoencoder, the first centroids, the model, and its comparison."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.records import Artifact, Record, StoredFile


class PretrainedAutoencoder(Artifact):
    """The trained autoencoder.

    Attributes:
        weights: safetensors file with encoder and decoder.
        losses: Mean squared error per scaled feature, one per pass.
        rows: Number of rows learnt from in the last pass.
        products: Precision of the workers' matrix products, "float32" or "bfloat16".
        workers: Number of workers in each pass; it changes when nodes are lost or join.
    """

    weights: StoredFile
    losses: tuple[float, ...]
    rows: int
    products: str = "float32"
    workers: tuple[int, ...] = ()


class MergeStep(Record):
    """One number of clusters on the path of merges.

    Attributes:
        agreement: Mean adjusted Rand index between any two of the partitions.
        connectivity: Mean connectivity of the two clusters that are merged next, relative to their
            own halves; see ``pipeline.clustering.merging``. About 1 = as if there were no boundary,
            0 = nothing crosses it.
    """

    clusters: int
    agreement: float
    connectivity: float


class ClusterChoice(Record):
    """Choice of the number of clusters by ``clusters: auto``.

    Attributes:
        cells: Number of cells that merging started from.
        trees: Number of independent starts.
        rows: Number of rows of the sample that were merged.
        votes: Number of clusters by each start, ascending; ``clusters`` is their geometric mean, 2
            at least.
        path: Every number of clusters on the way, descending.
        boundary: Connectivity below which two clusters were kept apart, geometric mean of the
            starts.
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
        objective: Lowest of them, whose centroids are kept.
        sample_rows: Number of rows that were clustered.
        cluster_rows: Number of those rows in each cluster.
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
        model_id: Id derived from the content of its files.
        kind: "dec"; "autoencoder": k-means on the pretrained embedding; "kmeans": on the scaled
            features themselves, without an encoder.
        weights: safetensors file with encoder and decoder; None for "kmeans".
        centroids: Parquet file: cluster_id and centroid.
        scaler: Parquet file with one row a feature.
    """

    model_id: str
    kind: ModelKind
    weights: StoredFile | None
    centroids: StoredFile
    scaler: StoredFile
    scaling: str


class RefinedModel(ClusteringModel):
    """Model refined by DEC from the pretrained autoencoder and the first centroids.

    Attributes:
        stopped_by: "tol", "passes", or "collapse" where every attempt to continue collapsed.
        rows: Number of rows of the training set.
        workers: Number of workers at each update; it changes when nodes are lost or join.
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
    """Quality of a partition in one of the three spaces.

    Attributes:
        space: "features" (scaled), "pretrained" (embedding) or "refined" (embedding).
        objective_ratio: Share of the variance left within clusters.
    """

    space: str
    silhouette: float
    objective_ratio: float


class Candidate(Record):
    """One of the three compared partitions of the reference sample.

    Attributes:
        modularity: How much more often neighbours in scaled features share a cluster than by
            chance; it decides. See ``pipeline.clustering.quality.modularity``.
        balance: Entropy of the sizes of its clusters over log K; 1 = all of one size.
        empty_clusters: Number of clusters without a row of the sample.
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
    """DEC and its baselines, compared by the same label-free rule on the same rows.

    Attributes:
        candidates: "kmeans", "autoencoder" and "dec", best first: by empty clusters, then by
            modularity to three decimals, then the simpler method.
        winner: The first of them, which ``refine.select: auto`` ships.
        margin: Lead of the winner over the second in modularity, to three decimals, >= 0; 0 where
            the simpler method or the one with fewer empty clusters won without a lead.
        rows: Number of rows of the sample that the candidates were measured on.
        held_out_rows: Number of those rows that training did not see.
        generalisation: DEC's mean KL(P‖Q) per row on the others over that on held-out rows; near 1
            where it has learnt, small where it has memorised (G in Xie et al. 2016, section 5.2).
            None: nothing was held out, or the divisor is 0.
        centroids: Parquet file: centroids of "kmeans", in scaled features.
        restarts: Number of k-means runs that these are the best of.
    """

    candidates: tuple[Candidate, ...]
    winner: ModelKind
    margin: float
    rows: int
    held_out_rows: int
    generalisation: float | None
    centroids: StoredFile
    restarts: int
