"""What the stages explain and describe have left, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.artifacts import StoredFile
from pipeline.report.reading import RunFiles


@dataclass(frozen=True)
class Rule:
    """A cluster in words of the features.

    Attributes:
        text: Of the surrogate tree.
        note: How far it can be believed.
    """

    text: str
    note: str


@dataclass(frozen=True)
class Explained:
    """Empty where a run has not explained itself.

    Attributes:
        profile: The table ``cluster_profile``.
        exemplars: The table ``cluster_exemplars``.
        names: Of clusters.
        rules: Of clusters.
        fidelity: Share of the sample on which the surrogate tree agrees with the model.
    """

    profile: StoredFile | None = None
    exemplars: StoredFile | None = None
    names: dict[int, str] = field(default_factory=dict)
    rules: dict[int, Rule] = field(default_factory=dict)
    fidelity: float | None = None


def explained(run: RunFiles) -> Explained:
    """Read it."""
    return Explained(profile=run.stored("explain", "profile"), exemplars=run.stored("explain", "exemplars"))
