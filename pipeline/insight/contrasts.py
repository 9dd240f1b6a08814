"""Contrasts: how two clusters differ, feature by feature and by rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.clustering.surrogate import Surrogate, TreeFeature, imitate
from pipeline.errors import InputError
from pipeline.insight.explained_runs import ExplainedRun, feature_label
from pipeline.insight.rules import labelled_sample, tree_features
from pipeline.registry.entries import sample_without_forgotten
from pipeline.storage import why

# Conditions that separate two clusters; a few are what people remember.
_DEPTH = 3


@dataclass(frozen=True)
class Contrast:
    """Difference of two clusters in one feature."""

    feature: str  # name of the user's column, with the index of a component
    value: str | None  # value of a category; None for other features
    mean: float  # mean in the first cluster, in the user's units
    other_mean: float
    # Difference of the means in pooled standard deviations; None: neither varies.
    difference: float | None


def contrast(profile: Sequence[dict[str, Any]], one: int, other: int) -> list[Contrast]:
    """The features in which two clusters differ by their profile, largest difference first."""
    found = []
    for row, mean, other_mean, spread in means_of_two(profile, one, other):
        if spread is not None or mean != other_mean:
            apart = (mean - other_mean) / spread if spread else None
            found.append(Contrast(feature_label(row), row["value"], mean, other_mean, apart))
    return sorted(found, key=lambda c: -(math.inf if c.difference is None else abs(c.difference)))


def means_of_two(
    profile: Sequence[dict[str, Any]], one: int, other: int
) -> Iterator[tuple[dict[str, Any], float, float, float | None]]:
    """Features with a mean in both clusters: a row of the profile, both means, and the spread.

    The spread is the pooled standard deviation; None where the feature does not vary.
    """
    pairs: dict[tuple[str, int | None, str | None], dict[int, dict[str, Any]]] = {}
    vectors: dict[tuple[int, str], Sequence[float | None]] = {}
    for row in profile:
        if row["kind"] != "vector":
            pair = pairs.setdefault((row["feature"], row["component"], row["value"]), {})
            pair[row["cluster_id"]] = row
        elif row["mean_vector"] is not None:
            vectors[row["cluster_id"], row["feature"]] = row["mean_vector"]
    for (feature, component, _), pair in pairs.items():
        # The profile has rows of a cluster's strongest components alone.
        mean, other_mean = (
            pair[cluster]["mean"]
            if cluster in pair
            else _component(vectors.get((cluster, feature)), component)
            for cluster in (one, other)
        )
        if mean is not None and other_mean is not None:
            rows = list(pair.values())
            yield rows[0], mean, other_mean, _pooled(rows)


def _component(vector: Sequence[float | None] | None, place: int | None) -> float | None:
    return None if vector is None or place is None else vector[place]


def _pooled(rows: Sequence[dict[str, Any]]) -> float | None:
    """Pooled standard deviation of a feature in some clusters; None where it does not vary."""
    known = [(row["rows"], row["std"]) for row in rows if row["std"] is not None]
    total = sum(n for n, _ in known)
    variance = sum(n * std**2 for n, std in known) / total if total else 0.0
    return math.sqrt(variance) or None


def contrast_tree(
    run: ExplainedRun, one: int, other: int
) -> tuple[Surrogate | None, list[TreeFeature]]:
    """Fit a small tree to the sample's rows in two clusters; None where there are too few.

    Raises:
        InputError: The sample or the model is gone or damaged.
    """
    description = run.description
    try:
        x_NF, label_N = labelled_sample(
            run.lake,
            description.model,
            description.features,
            sample_without_forgotten(run.lake, description.sample),
            description.ids,
            clusters=(one, other),
        )
    except (FileNotFoundError, pa.ArrowException, ValueError) as error:
        raise InputError(
            f"run {run.run_id}: sample or model {description.model.model_id} is gone or damaged: "
            f"{why(error)}"
        ) from None
    x_NT, features = tree_features(run.lake, description.model, description.features, x_NF)
    return imitate(x_NT, label_N, depth=_DEPTH, seed=0), features
