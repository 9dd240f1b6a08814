"""What the stages explain and describe have left, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.artifacts.explanations import Description
from pipeline.artifacts.records import StoredFile
from pipeline.report.reading import RunFiles


@dataclass(frozen=True)
class Rule:
    """A cluster in words of the features.

    Attributes:
        text: Of the surrogate tree.
        note: How far it can be believed; a rule is never shown without.
        more: How many further rules the cluster has.
    """

    text: str
    note: str
    more: int = 0


@dataclass(frozen=True)
class Explained:
    """Empty where a run has not explained itself.

    Attributes:
        profile: The table ``cluster_profile``.
        exemplars: The table ``cluster_exemplars``.
        names: Of clusters.
        rules: The rule of each cluster that has most of its rows.
        description: What the rules rest on, and how far they can be believed.
        times: Columns of points in time, which the profile has in seconds since 1970.
    """

    profile: StoredFile | None = None
    exemplars: StoredFile | None = None
    names: dict[int, str] = field(default_factory=dict)
    rules: dict[int, Rule] = field(default_factory=dict)
    description: Description | None = None
    times: frozenset[str] = frozenset()


def explained(run: RunFiles) -> Explained:
    """Read what is there."""
    description = run.description
    return Explained(
        profile=run.stored("explain", "profile"),
        exemplars=run.stored("explain", "exemplars"),
        names=_names(run, description),
        rules=_rules(run, description),
        description=description,
        times=_times(run),
    )


def _times(run: RunFiles) -> frozenset[str]:
    explanation = run.explanation
    columns = explanation.columns if explanation else ()
    return frozenset(c.name for c in columns if c.type.startswith(("timestamp", "date")))


def _names(run: RunFiles, description: Description | None) -> dict[int, str]:
    table = run.table(description.clusters) if description else None
    if table is None:
        return {}
    rows = table.select(["cluster_id", "name"]).to_pylist()
    return {row["cluster_id"]: row["name"] for row in rows if row["name"]}


def _rules(run: RunFiles, description: Description | None) -> dict[int, Rule]:
    table = run.table(description.rules) if description else None
    if table is None:
        return {}
    found: dict[int, Rule] = {}
    columns = ["cluster_id", "rule", "held_out", "correct", "precision", "rows"]
    rows = sorted(table.select(columns).to_pylist(), key=lambda row: -row["rows"])
    for row in rows:
        cluster = row["cluster_id"]
        if cluster is None:  # of clusters that are too small to have rules
            continue
        if cluster in found:
            one = found[cluster]
            found[cluster] = Rule(one.text, one.note, one.more + 1)
            continue
        share = "never tried on held-out rows"
        if row["precision"] is not None:
            share = f"correct for {row['correct']:,} of {row['held_out']:,} held-out rows"
        found[cluster] = Rule(row["rule"], share)
    return found
