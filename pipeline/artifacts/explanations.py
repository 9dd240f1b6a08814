"""Artifacts that explain clusters: profiles, exemplars, names, rules, and the report."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import Artifact, Record, StoredFile


class ProfiledColumn(Record):
    """A column that clusters are profiled by.

    Attributes:
        kind: "number": a scalar feature, a number, or a timestamp in seconds since 1970;
            "category": text, booleans; "vector": a vector of features; "code": a feature that raw
            rows hold as a code, with a "category" column for its original values beside it.
        type: Arrow type of the values in the source.
        clustered: Whether rows are clustered by it; otherwise it is one of ``explain.columns``.
        width: Number of values in a vector, else 1.
    """

    name: str
    kind: Literal["number", "category", "vector", "code"]
    type: str
    clustered: bool
    width: int = 1


class Explanation(Artifact):
    """Profiles and exemplars of a run's clusters; ``pipeline.schema`` lists the columns.

    Attributes:
        profile: Parquet file, ``PROFILE_SCHEMA``: one row per cluster and feature.
        exemplars: Parquet file, ``exemplar_schema``: representative rows of each cluster. When rows
            are forgotten, another file replaces it: see
            ``pipeline.insight.profiles.files.as_it_is_now``.
        columns: Profiled columns, in the order of the table.
        exemplars_kept: Maximum number of exemplars per cluster and kind.
        quantile_points: Maximum number of values that approximate a number's distribution in a
            cluster of one part; 0: there are no quantiles.
        left_out: Descriptions of what exceeded the bounds; empty where nothing did.
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
    """Names of a run's clusters, and rules that predict them; see ``pipeline.schema``.

    Attributes:
        clusters: Parquet file, ``DESCRIBED_SCHEMA``: name of each cluster, and precision and recall
            of its rules.
        rules: Parquet file, ``RULE_SCHEMA``: leaves of the surrogate tree; None: there is no tree.
        fidelity: Share of held-out rows of the sample for which rules and model agree. Rules are
            never shown without it. None without rules.
        baseline: Share of held-out rows in the largest cluster: the fidelity of a constant guess.
        held_out_rows: Number of sample rows that it was measured on.
        considered_features: Number of features that the tree could use.
        no_rules_reason: Why there are no rules; empty where there are some.
        named: Number of clusters that got a name in this run.
        entry: Registry entry with those names; 0: none.
        model: Model that the rules approximate.
        sample: Raw rows that the rules come from.
        ids: Permanent ids, see ``Champion.ids``.
    """

    clusters: StoredFile
    rules: StoredFile | None
    fidelity: float | None
    baseline: float | None
    fitted_rows: int
    held_out_rows: int
    considered_features: int
    depth: int
    no_rules_reason: str
    named: int
    entry: int
    model: ClusteringModel
    features: tuple[FeatureColumn, ...]
    sample: Sample
    ids: StoredFile


class Report(Artifact):
    """The HTML report of a run.

    Attributes:
        page: HTML file without external resources; see ``pipeline.report``.
        map: Parquet file with the rows of the map; see ``pipeline.insight.maps``. None: there are
            too few rows, or they cannot be read.
    """

    page: StoredFile
    map: StoredFile | None
    sections: tuple[str, ...]
