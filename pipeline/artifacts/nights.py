"""What nights add: the champion, the decision, permanent ids and the gate."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel, InitialCentroids, PretrainedAutoencoder
from pipeline.artifacts.records import Artifact, Name, Record, StoredFile


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
        reason: Why no rule was applied: ``dec run`` applies none, and a fit may fail; else empty.
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
