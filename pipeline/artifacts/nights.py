"""What nights add: the champion, the decision, permanent ids and the gate."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel, InitialCentroids, PretrainedAutoencoder
from pipeline.artifacts.records import Artifact, Name, Record, StoredFile


class Reference(Record):
    """The frozen reference sample of a champion: rows that later models label as well.

    Attributes:
        sample: Sample with keys and raw features, as drawn by the run that fitted the model.
        features: Its feature columns, in order.
        bins: Parquet file with one row a feature: ``edges``, float64, the inner edges of at most
            ten bins of about equal size, and ``rows``, int64, rows of the sample in each bin.
    """

    sample: Sample
    features: tuple[FeatureColumn, ...]
    bins: StoredFile


class Champion(Artifact):
    """The model in use: what labels rows until a challenger takes its place.

    Attributes:
        refit_ds: Logical date of the last run that fitted from scratch; later ones refreshed it.
        ids: Parquet file, one row a centroid in the order of the model's file: ``position`` and
            ``cluster_id``, int32, and ``most_distance``, float32: farther rows are outliers by the
            rule of ``assign.outliers``; infinite without one.
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
    """Action of a run, and its reason.

    Attributes:
        action: "refit": fit from scratch; "refresh": from the champion's encoder and centroids;
            "assign": the champion labels the rows.
        entry: Number of the newest registry entry; 0 before the first.
        champion: Champion of that entry; None before the first.
        usable: Whether that champion can label tonight's rows: its files are there, and it was
            fitted on the same features.
    """

    action: Action
    why: str
    entry: int
    champion: Champion | None
    usable: bool


class Identity(Artifact):
    """The permanent ids of a challenger's clusters, valid once it is promoted.

    Attributes:
        challenger: Champion that it becomes.
        clusters: Parquet file: the ``clusters`` table; see ``pipeline.registry.entries``.
        transitions: Parquet file: the rows that it adds to ``cluster_transitions``.
        born: Number of new ids.
        died: Number of ids that end, those of merged clusters too.
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
        value: Measured value; None where the rule does not apply.
        limit: Limit in the config; None: the rule is off.
        passed: Whether the rule holds, or does not apply.
        detail: Details in words: the feature, the cluster, or why the rule does not apply.
    """

    name: str
    value: float | None
    limit: float | None
    passed: bool
    detail: str = ""


class Verdict(Artifact):
    """The gate's verdict on a challenger.

    Attributes:
        rules: All rules, also those that are off or do not apply.
        reason: Why no rule was applied: ``dec run`` applies none, and a fit may fail; else empty.
    """

    passed: bool
    rules: tuple[GateRule, ...]
    reason: str = ""


class Serving(Artifact):
    """The model that labels tonight's rows.

    Attributes:
        champion: Challenger where it passed; else the previous champion.
        refused: Whether the gate refused the run's own challenger. Then the previous champion
            serves, or the challenger where no champion can label these rows.
    """

    champion: Champion
    entry: int
    refused: bool


class WarmStart(Artifact):
    """The start of a refresh: the champion, as the artifacts of the first stages of a fit."""

    sample: Sample
    autoencoder: PretrainedAutoencoder
    centroids: InitialCentroids
