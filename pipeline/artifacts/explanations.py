"""Artifacts that explain clusters: profiles, exemplars, names, rules, and the report."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import Artifact, Record, StoredFile


class ProfiledColumn(Record):
    """A column that clusters are profiled by."""

    name: str
    # "number": a scalar feature, a number, or a timestamp in seconds since 1970; "category": text,
    # booleans; "vector": a vector of features; "code": a feature that raw rows hold as a code, with
    # a "category" column for its original values beside it.
    kind: Literal["number", "category", "vector", "code"]
    type: str  # Arrow type of the values in the source
    clustered: bool  # whether rows are clustered by it; otherwise it is one of ``explain.columns``
    width: int = 1  # number of values in a vector, else 1


class Explanation(Artifact):
    """Profiles and exemplars of a run's clusters; ``pipeline.schema`` lists the columns."""

    profile: StoredFile  # Parquet file, ``PROFILE_SCHEMA``: one row per cluster and feature
    # Parquet file, ``exemplar_schema``: representative rows of each cluster. When rows are
    # forgotten, another file replaces it: see ``pipeline.insight.profiles.files.as_it_is_now``.
    exemplars: StoredFile
    clusters: int
    rows: int
    columns: tuple[ProfiledColumn, ...]  # profiled columns, in the order of the table
    exemplars_kept: int  # maximum number of exemplars per cluster and kind
    # Maximum number of values that approximate a number's distribution in a cluster of one part; 0:
    # there are no quantiles.
    quantile_points: int
    # Descriptions of what exceeded the bounds; empty where nothing did.
    left_out: tuple[str, ...] = ()


class Description(Artifact):
    """Names of a run's clusters, and rules that predict them; see ``pipeline.schema``."""

    # Parquet file, ``DESCRIBED_SCHEMA``: name of each cluster, and precision and recall of its
    # rules.
    clusters: StoredFile
    # Parquet file, ``RULE_SCHEMA``: leaves of the surrogate tree; None: there is no tree.
    rules: StoredFile | None
    # Share of held-out rows of the sample for which rules and model agree. Rules are never shown
    # without it. None without rules.
    fidelity: float | None
    # Share of held-out rows in the largest cluster: the fidelity of a constant guess.
    baseline: float | None
    fitted_rows: int
    held_out_rows: int  # number of sample rows that fidelity was measured on
    considered_features: int  # number of features that the tree could use
    depth: int
    no_rules_reason: str  # why there are no rules; empty where there are some
    named: int  # number of clusters that got a name in this run
    entry: int  # registry entry with those names; 0: none
    model: ClusteringModel  # model that the rules approximate
    features: tuple[FeatureColumn, ...]
    sample: Sample  # raw rows that the rules come from
    ids: StoredFile  # permanent ids, see ``Champion.ids``


class Report(Artifact):
    """The HTML report of a run."""

    page: StoredFile  # HTML file without external resources; see ``pipeline.report``
    # Parquet file with the rows of the map; see ``pipeline.insight.maps``. None: there are too few
    # rows, or they cannot be read.
    map: StoredFile | None
    sections: tuple[str, ...]
