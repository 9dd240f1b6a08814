"""What the clusters are: profiles, exemplars, names, rules, and the report."""

from __future__ import annotations

from typing import Literal

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import Artifact, Record, StoredFile


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
