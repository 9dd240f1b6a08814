"""What stages leave for one another: frozen, typed, and fingerprinted by their content.

An artifact is a small JSON document. Anything large is a file beside it that the document names
together with its digest, so that an artifact's fingerprint covers the bytes of its files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pipeline.schema import NAME_PATTERN


def _inside(path: str) -> str:
    if not path.isprintable() or {"", ".", ".."} & set(path.replace("\\", "/").split("/")):
        raise ValueError("must be a path below the output, without '.' or '..'")
    return path


# A name or a path that is read back is checked: what it names is opened, published or removed.
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
LakePath = Annotated[str, AfterValidator(_inside)]


class Record(BaseModel):
    """A frozen part of an artifact; reading one back refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(Record):
    """A file of the run: its path below the output, and its content's digest."""

    path: LakePath
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


ColumnType = Literal["number", "boolean", "category", "timestamp", "vector"]


class FeatureColumn(Record):
    """A column that rows are clustered by: a scalar, or a vector of fixed width.

    Attributes:
        name: Of the column.
        width: Values of a raw row that it has.
        vector: Whether it holds vectors.
        type: How its values are understood; None: plain numbers, as ``source.scaling`` and
            ``source.nulls`` say. Left out of what is written where it is None.
    """

    name: str
    width: int
    vector: bool
    type: ColumnType | None = Field(default=None, exclude_if=lambda value: value is None)


class QuarantinedShard(Record):
    """A bad shard that the run goes on without; see ``source.on_bad_shard``.

    Attributes:
        name: Below the source.
        url: Where it lies.
        version: As it was listed.
        bytes: Its size, as it was listed.
        rows: By its footer; None where that could not be read.
        stage: That found it.
        reason: What is wrong with it.
    """

    name: str
    url: str
    version: str
    bytes: int
    rows: int | None
    stage: str
    reason: str


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
        quarantined: Bad shards that nothing is read of. Those that pin found are in none of the
            figures above; those that a later stage found are.
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
    quarantined: tuple[QuarantinedShard, ...] = ()

    @property
    def width(self) -> int:
        """F, the width of a row of features."""
        return sum(column.width for column in self.features)

    @property
    def typed(self) -> bool:
        """Whether rows hold more than plain numbers."""
        return any(column.type for column in self.features)

    @property
    def described_columns(self) -> tuple[str, ...]:
        """Feature columns that are told in their own values: what a raw row has of them is a code.

        Their values are in the column itself, and for a model's categories in its vocabulary; see
        ``pipeline.registry.models.load_vocabulary``.
        """
        told = ("category", "boolean")
        return tuple(column.name for column in self.features if column.type in told)

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


class PartFile(Record):
    """One file of the assignments table."""

    path: LakePath
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
        rows_in: Rows of the input, as far as footers could be read.
        rows_dropped: Rows left out by ``source.nulls: drop``.
        rows: Rows written; rows_in = rows + rows_dropped + rows_quarantined.
        cluster_rows: Rows of each cluster id.
        mean_confidence: Mean of the ``confidence`` column.
        scores: Agreement with the label column, where there is one.
        rows_quarantined: Rows of shards that were found bad after their footers had been read.
        quarantined: All shards that were left out.
        cluster_ids: Permanent ids, parallel to ``cluster_rows``; empty: ids are positions there.
        outliers: Rows of cluster id -1, which are in none of ``cluster_rows``.
        carried_files: Part files of earlier nights that are published again as they are.
        carried_rows: Rows in them, which nothing was read for.
        labelled_rows: Rows that this run labelled; rows = carried_rows + labelled_rows.
        max_psi: Drift of the feature that drifts most from the champion's reference sample, see
            ``pipeline.clustering.drift.psi``; None without a champion, and where no row is.
        max_psi_feature: Which feature that is.
    """

    files: StoredFile
    file_count: int
    rows_in: int
    rows_dropped: int
    rows: int
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    scores: Scores | None
    rows_quarantined: int = 0
    quarantined: tuple[QuarantinedShard, ...] = ()
    cluster_ids: tuple[int, ...] = ()
    outliers: int = 0
    carried_files: int = 0
    carried_rows: int = 0
    labelled_rows: int = 0
    max_psi: float | None = None
    max_psi_feature: str = ""


# ----------------------------------------------------------------------------- the second night


class Reference(Record):
    """The frozen reference sample of a model that serves: rows that later models label as well.

    Attributes:
        sample: As the run that fitted the model drew it, keys and raw features.
        features: The feature columns that it has, in their order.
        bins: Parquet file with one row a feature: ``edges``, float64, the inner edges of at most
            ten bins of about equal size, and ``rows``, int64, rows of the sample in each bin.
    """

    sample: Sample
    features: tuple[FeatureColumn, ...]
    bins: StoredFile


class Champion(Artifact):
    """The model in use: what labels rows until a challenger takes its place.

    Attributes:
        model: Scaler, encoder and centroids.
        run_id: That fitted it.
        ds: Of that run.
        refit_ds: Of the last run that fitted from scratch; later ones refreshed what it made.
        ids: Parquet file, one row a centroid in the order of the model's file: ``position`` and
            ``cluster_id``, int32, and ``most_distance``, float32: farther rows are outliers by the
            rule of ``assign.outliers``; infinite without one.
        reference: Its frozen sample.
        settings: Fingerprint of the settings that it was fitted with.
    """

    model: ClusteringModel
    run_id: Name
    ds: Name
    refit_ds: Name
    ids: StoredFile
    reference: Reference
    settings: str


Action = Literal["refit", "refresh", "assign"]


class NightDecision(Artifact):
    """What a night does, and why.

    Attributes:
        action: "refit": everything anew; "refresh": from the champion's encoder and centroids;
            "assign": the champion labels the rows.
        why: In words, for the log.
        entry: Number of the registry's entry that was the newest; 0 before the first.
        champion: Of that entry; None before the first.
        usable: Whether that champion can label tonight's rows: its files are there, and it was
            fitted on the same features.
    """

    action: Action
    why: str
    entry: int
    champion: Champion | None
    usable: bool


class Identity(Artifact):
    """The permanent ids of a challenger's clusters, as they are once it is promoted.

    Attributes:
        challenger: With those ids.
        clusters: Parquet file: the ``clusters`` table; see ``pipeline.registry.entries``.
        transitions: Parquet file: the rows that it adds to ``cluster_transitions``.
        survived: Clusters that keep their id.
        split: Clusters that broke in several.
        merged: Clusters that went up in another.
        born: Ids that are new.
        died: Ids that end, merged ones too.
        churn: Share of the champion's reference sample whose id changes; None without champion.
    """

    challenger: Champion
    clusters: StoredFile
    transitions: StoredFile
    survived: int
    split: int
    merged: int
    born: int
    died: int
    churn: float | None


class GateRule(Record):
    """One rule of the gate.

    Attributes:
        name: Of the rule, as in the config's ``gate``.
        value: What was measured; None where the rule does not apply.
        limit: What the config allows; None: the rule is off.
        passed: Whether it holds, or does not apply.
        detail: In words: which feature, which cluster, why it does not apply.
    """

    name: str
    value: float | None
    limit: float | None
    passed: bool
    detail: str = ""


class Verdict(Artifact):
    """What the gate says of a challenger.

    Attributes:
        passed: Every rule holds.
        rules: All of them, also those that are off or do not apply.
        reason: Where the challenger could not even be fitted: what went wrong; else empty.
    """

    passed: bool
    rules: tuple[GateRule, ...]
    reason: str = ""


class Serving(Artifact):
    """What labels tonight's rows.

    Attributes:
        champion: The challenger, where it passed; else the one before.
        entry: Number of its entry in the registry.
        refused: The gate refused the run's own challenger. The champion before serves; the
            challenger all the same where there is none that could label these rows.
    """

    champion: Champion
    entry: int
    refused: bool


class WarmStart(Artifact):
    """Where a refresh goes on from: what the champion is, in the words of the stages of a fit."""

    sample: Sample
    autoencoder: PretrainedAutoencoder
    centroids: InitialCentroids


class Snapshot(Artifact):
    """A publish: ``snapshots/<number>.json`` now names this run's files for its ds.

    Attributes:
        number: Of the snapshot.
        path: Of its file.
        table: The Iceberg or Delta table that has them too.
    """

    number: int
    path: str
    table: str | None = None


class ProfiledColumn(Record):
    """A column that clusters are profiled by.

    Attributes:
        name: The user's.
        kind: "number": a scalar feature, a number, or a point in time in seconds since 1970;
            "category": text, booleans; "vector": a vector of features; "code": a feature that raw
            rows have as a code, and that has a "category" of its own beside it.
        type: Of its values in the source, as Arrow calls it.
        clustered: Whether rows are clustered by it; else it is one of ``explain.columns``.
        width: Of a vector, else 1.
    """

    name: str
    kind: Literal["number", "category", "vector", "code"]
    type: str
    clustered: bool
    width: int = 1


class Explanation(Artifact):
    """What the clusters of a run are: two tables, whose columns ``pipeline.schema`` lists.

    Attributes:
        profile: Parquet file, ``PROFILE_SCHEMA``: one row a cluster and feature.
        exemplars: Parquet file, ``exemplar_schema``: rows that stand for each cluster. It may be
            another file by now, without rows that were forgotten: see
            ``pipeline.insight.profiles.read_exemplars``.
        clusters: That have rows.
        rows: In all of them.
        columns: That are profiled, in the order of the table.
        exemplars_kept: Of each kind, a cluster; at most.
        quantile_points: Values of a part that stand for a number's distribution in a cluster, at
            most; 0: there are no quantiles.
        left_out: What there was no room for, in words; empty where there was for all.
    """

    profile: StoredFile
    exemplars: StoredFile
    clusters: int
    rows: int
    columns: tuple[ProfiledColumn, ...]
    exemplars_kept: int
    quantile_points: int
    left_out: tuple[str, ...] = ()


class Description(Artifact):
    """What the clusters are called, and rules that tell them apart; see ``pipeline.schema``.

    Attributes:
        clusters: Parquet file, ``DESCRIBED_SCHEMA``: name of each cluster, and how well its rules
            describe it.
        rules: Parquet file, ``RULE_SCHEMA``: the surrogate tree, leaf by leaf; None: there is none.
        fidelity: Share of held-back rows of the sample that the rules put where the model does.
            Rules are never shown without it. None without rules.
        baseline: The same of always saying the largest cluster.
        fitted_rows: Rows of the sample that the tree was fitted on.
        held_back_rows: Rows that it was measured on.
        looked_at: Features that it looked at, of all that a row has.
        depth: Of the tree, at most.
        why_no_rules: In words; empty where there are some.
        named: Clusters that got a name in this run.
        entry: Of the registry, that has those names; 0: none has.
        model: That the rules imitate.
        features: Of its rows.
        sample: Raw rows that the rules come from.
        ids: Permanent ids, see ``Champion.ids``; None: cluster ids are positions.
    """

    clusters: StoredFile
    rules: StoredFile | None
    fidelity: float | None
    baseline: float | None
    fitted_rows: int
    held_back_rows: int
    looked_at: int
    depth: int
    why_no_rules: str
    named: int
    entry: int
    model: ClusteringModel
    features: tuple[FeatureColumn, ...]
    sample: Sample
    ids: StoredFile | None


class Report(Artifact):
    """The page that people look at.

    Attributes:
        page: HTML file that needs nothing else; see ``pipeline.report``.
        map: Parquet file with the rows of the map; see ``pipeline.insight.maps``. None: there are
            too few, or they cannot be read.
        sections: Ids of what is on the page.
    """

    page: StoredFile
    map: StoredFile | None
    sections: tuple[str, ...]


class StageTime(Record):
    """What a stage took when it ran."""

    stage: str
    seconds: float


class StageEstimate(Record):
    """What a stage takes, on paper; see ``pipeline.bill.estimate``.

    Attributes:
        stage: Its name; "run" for what belongs to none: Ray's start, the lease.
        at_most: Whether it may stop sooner, as refinement does.
        rows: Rows looked at, in all passes.
        passes: Over the training rows, learning.
        measuring_passes: The same without learning.
        read_bytes: From the input.
        written_bytes: To the output.
        gets: Requests to an object store that cost as a GET does, HEAD too; 0 for local paths.
        puts: Those that cost as a PUT does, LIST too.
        fixed_seconds: Until it works, and whatever does not grow with rows.
        work_seconds: The rest.
        busy_core_hours: Of cores at work.
        core_hours: Of the whole cluster meanwhile: what is paid.
        gpu_hours: The same of its GPUs.
        memory_mib: Of its largest process.
    """

    stage: str
    at_most: bool = False
    rows: int = 0
    passes: int = 0
    measuring_passes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    gets: int = 0
    puts: int = 0
    fixed_seconds: float = 0.0
    work_seconds: float = 0.0
    busy_core_hours: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    memory_mib: int = 0

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.fixed_seconds + self.work_seconds


class StageFactor(Record):
    """How a stage was found to differ from the default rates: took over planned."""

    fixed: float = 1.0
    work: float = 1.0


class Money(Record):
    """What it costs, by the config's ``prices``."""

    currency: str
    compute: float
    requests: float
    transfer: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.requests + self.transfer


class Estimate(Record):
    """What a run takes, on paper.

    Attributes:
        stages: In their order.
        nodes: Of the cluster that it is for.
        cpus_per_node: Of each.
        gpus_per_node: Of each.
        workers: That train and assign.
        threads: Of each.
        products: Precision of the matrix products, "float32" or "bfloat16".
        rates: Where the rates come from, in words.
        on_gpus: Whether anything computes on one.
        factors: On the default rates, by stage.
        money: None where the config has no prices.
    """

    stages: tuple[StageEstimate, ...]
    nodes: int
    cpus_per_node: float
    gpus_per_node: float
    workers: int
    threads: int
    products: str
    rates: str
    on_gpus: bool = False
    factors: dict[str, StageFactor] = {}
    money: Money | None = None

    @property
    def seconds(self) -> float:
        """Wall time of all."""
        return sum(stage.seconds for stage in self.stages)


class Summary(Artifact):
    """The end of a run, also ``metrics.json``: everything the closing table shows.

    ``estimate`` is what it was thought to take, before the work; None in runs of older versions.
    ``choice`` is how ``clusters: auto`` came to its number.
    """

    run_id: str
    ds: str
    model_id: str
    snapshot: int
    table: str | None = None
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
    rows_quarantined: int = 0
    quarantined: tuple[QuarantinedShard, ...] = ()
    estimate: Estimate | None = None
    choice: ClusterChoice | None = None


class NightSummary(Artifact):
    """The end of a night, also ``metrics.json``.

    Attributes:
        action: What the night did; see ``NightDecision``.
        why: The reason.
        refused: The gate refused the challenger.
        champion: Model that labelled the rows.
        challenger: Model that was fitted; None on a night that fitted none.
        entry: The registry's entry that serves.
        rows_labelled: Rows that were read and labelled.
        rows_carried: Rows whose results of an earlier night were carried over.
        cluster_ids: Permanent ids.
        cluster_rows: Rows of each, in that order.
        survived: See ``Identity``, like the four below; 0 on a night that fitted nothing.
        churn: Share of the reference sample whose id changes by the challenger.
        max_psi: Of the feature that moved most against the reference sample, from tonight's rows.
        max_psi_feature: Its name.
        verdict: The gate's.
        comparison: With plain k-means, where a model was fitted.
        refine_updates: Of the challenger's target; None where nothing was refined.
        estimate: See ``Summary``, like the next.
        choice: Of the challenger.
    """

    run_id: str
    ds: str
    action: Action
    why: str
    refused: bool
    champion: str
    challenger: str | None
    entry: int
    snapshot: int
    table: str | None
    rows_in: int
    rows_out: int
    rows_dropped: int
    rows_labelled: int
    rows_carried: int
    rows_quarantined: int
    outliers: int
    shards: int
    features: int
    cluster_ids: tuple[int, ...]
    cluster_rows: tuple[int, ...]
    mean_confidence: float
    survived: int
    split: int
    merged: int
    born: int
    died: int
    churn: float | None
    max_psi: float | None
    max_psi_feature: str
    scores: Scores | None
    verdict: Verdict | None
    comparison: Comparison | None
    quarantined: tuple[QuarantinedShard, ...]
    stages: tuple[StageTime, ...]
    output: str
    refine_updates: int | None = None
    estimate: Estimate | None = None
    choice: ClusterChoice | None = None
