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


class MergedCells(Record):
    """Merged cells that refinement starts from; see ``pipeline.clustering.starts``.

    Attributes:
        cells: Parquet file with one row a cell: the cluster that it was merged into, its centroid.
        count: Number of cells.
        space: Whether they are cells of embeddings, or of scaled rows.
        starts: Number of starts, of which this is the one that agrees most with the others.
        rule: Rule of merging.
        agreement: How far the starts agree, by rule.
        firmness: For each cluster, how far the starts agree on it, from 0 to 1.
    """

    cells: StoredFile
    count: int
    space: Literal["embeddings", "features"]
    starts: int
    rule: str
    agreement: dict[str, float]
    firmness: tuple[float, ...]


class InitialCentroids(Artifact):
    """First clusters of the sample's embeddings.

    Attributes:
        weights: safetensors file of the pretrained autoencoder, its embedding scaled.
        centroids: Parquet file with one row a cluster: first centroids of refinement.
        kmeans: Parquet file with one row a cluster: centroids of k-means.
        objectives: Σ‖z − μ‖² of each run of k-means.
        objective: Lowest of them, whose centroids are kept.
        sample_rows: Number of rows that were clustered.
        cluster_rows: Number of those rows in each cluster of k-means.
        merged: Merged cells, where they are the start.
    """

    weights: StoredFile
    centroids: StoredFile
    kmeans: StoredFile
    objectives: tuple[float, ...]
    objective: float
    sample_rows: int
    cluster_rows: tuple[int, ...]
    merged: MergedCells | None = None
    choice: ClusterChoice | None = None


class RefineRecord(Record):
    """The state at one update of the target; see ``pipeline.model.updates.RefineUpdate``."""

    number: int
    taught: float | None = None
    label_change: float | None
    kl: float | None
    loss: float | None
    learning_rate: float
    cluster_rows: tuple[int, ...]
    event: str | None


ModelKind = Literal["kmeans", "autoencoder", "merged", "dec"]


class ClusteringModel(Artifact):
    """A complete model: scaler, encoder and centroids, under ``models/<model_id>/``.

    Attributes:
        model_id: Id derived from the content of its files.
        kind: "dec"; "autoencoder": k-means on the pretrained embedding; "merged": merged
            cells, as the encoder was taught them; "kmeans": on the scaled features themselves,
            without an encoder.
        weights: safetensors file with encoder and decoder; None for "kmeans".
        centroids: Parquet file: cluster_id and centroid.
        scaler: Parquet file with one row a feature.
        firmness: See ``MergedCells``, by position; empty where clusters do not come from them.
    """

    model_id: str
    kind: ModelKind
    weights: StoredFile | None
    centroids: StoredFile
    scaler: StoredFile
    scaling: str
    firmness: tuple[float, ...] = ()


class TaughtModel(Record):
    """The model as teaching left it, before refinement.

    Attributes:
        weights: safetensors file with encoder and decoder.
        centroids: Parquet file with one row a cluster.
    """

    weights: StoredFile
    centroids: StoredFile


class RefinedModel(ClusteringModel):
    """Model refined by DEC from the pretrained autoencoder and the first centroids.

    Attributes:
        stopped_by: "tol", "passes", or "collapse" where every attempt to continue collapsed.
        rows: Number of rows of the training set.
        workers: Number of workers at each update; it changes when nodes are lost or join.
        teaching_passes: Number of the first updates that taught the encoder merged cells.
        taught: The model that refinement began with, where the encoder was taught merged cells.
    """

    kind: ModelKind = "dec"
    weights: StoredFile
    updates: tuple[RefineRecord, ...]
    stopped_by: str
    rows: int
    workers: tuple[int, ...] = ()
    teaching_passes: int = 0
    taught: TaughtModel | None = None


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
    """One of the compared partitions of the reference sample.

    Attributes:
        separation: How far its clusters lie apart by neighbours in scaled features; it decides.
            See ``pipeline.clustering.quality.separation``.
        balance: Entropy of the sizes of its clusters over log K; 1 = all of one size.
        empty_clusters: Number of clusters without a row of the sample.
        stability: ARI between the starts of merged cells, for what came from them; otherwise of two
            fits on disjoint halves of the sample; None: too few rows.
        scores: Agreement with the label column; decides nothing.
    """

    kind: ModelKind
    separation: float
    spaces: tuple[SpaceQuality, ...]
    balance: float
    empty_clusters: int
    stability: float | None
    scores: Scores | None


class Comparison(Artifact):
    """DEC and its baselines, compared by the same label-free rule on the same rows.

    Attributes:
        candidates: One of each kind, "merged" only where the encoder was taught; best first: by
            empty clusters, then by separation to two decimals, then the simpler method.
        winner: The first of them, which ``refine.select: auto`` ships.
        margin: Lead of the winner over the second in separation, to two decimals, >= 0; 0 where
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
