"""What nights add: the champion, the decision, permanent ids and the gate."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel, InitialCentroids, PretrainedAutoencoder
from pipeline.artifacts.records import Artifact, Name, Record, StoredFile


class Reference(Record):
    """The frozen reference sample of a champion: rows that later models label as well."""

    sample: Sample  # sample with keys and raw features, as drawn by the run that fitted the model
    features: tuple[FeatureColumn, ...]  # its feature columns, in order
    # Parquet file with one row a feature: ``edges``, float64, the inner edges of at most ten bins
    # of about equal size, and ``rows``, int64, rows of the sample in each bin.
    bins: StoredFile


class Champion(Artifact):
    """The model in use: what labels rows until a challenger takes its place."""

    model: ClusteringModel
    run_id: Name
    ds: Name
    refit_ds: Name  # logical date of the last run that fitted from scratch; later ones refreshed it
    # Parquet file, one row a centroid in the order of the model's file: ``position`` and
    # ``cluster_id``, int32, and ``most_distance``, float32: farther rows are outliers by the rule
    # of ``assign.outliers``; infinite without one.
    ids: StoredFile
    reference: Reference
    settings: str  # fingerprint of the settings that it was fitted with


Action = Literal["refit", "refresh", "assign"]


class NightDecision(Artifact):
    """Action of a run, and its reason."""

    # "refit": fit from scratch; "refresh": from the champion's encoder and centroids; "assign": the
    # champion labels the rows.
    action: Action
    why: str
    entry: int  # number of the newest registry entry; 0 before the first
    champion: Champion | None  # champion of that entry; None before the first
    # Whether that champion can label tonight's rows: its files are there, and it was fitted on the
    # same features.
    usable: bool


class Identity(Artifact):
    """The permanent ids of a challenger's clusters, valid once it is promoted."""

    challenger: Champion  # champion that it becomes
    clusters: StoredFile  # Parquet file: the ``clusters`` table; see ``pipeline.registry.entries``
    transitions: StoredFile  # Parquet file: the rows that it adds to ``cluster_transitions``
    survived: int
    split: int
    merged: int
    born: int  # number of new ids
    died: int  # number of ids that end, those of merged clusters too
    # Share of the champion's reference sample whose id changes; None without champion.
    churn: float | None


class GateRule(Record):
    """One rule of the gate."""

    name: str
    value: float | None  # measured value; None where the rule does not apply
    limit: float | None  # limit in the config; None: the rule is off
    passed: bool  # whether the rule holds, or does not apply
    detail: str = ""  # details in words: the feature, the cluster, or why the rule does not apply


class Verdict(Artifact):
    """The gate's verdict on a challenger."""

    passed: bool
    rules: tuple[GateRule, ...]  # all rules, also those that are off or do not apply
    # Why no rule was applied: ``dec run`` applies none, and a fit may fail; else empty.
    reason: str = ""


class Serving(Artifact):
    """The model that labels tonight's rows."""

    champion: Champion  # challenger where it passed; else the previous champion
    entry: int
    # Whether the gate refused the run's own challenger. Then the previous champion serves, or the
    # challenger where no champion can label these rows.
    refused: bool


class WarmStart(Artifact):
    """The start of a refresh: the champion, as the artifacts of the first stages of a fit."""

    sample: Sample
    autoencoder: PretrainedAutoencoder
    centroids: InitialCentroids
