"""Rules of a model: the rows that its surrogate tree is fitted on, and the tables of its rules."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.surrogate import Kind, Rule, Surrogate, TreeFeature
from pipeline.registry.cluster_ids import OUTLIER, ClusterIds
from pipeline.registry.labels import sample_assignments
from pipeline.registry.models import feature_names, load_model, load_vocabulary, settings_of
from pipeline.schema import RULE_SCHEMA
from pipeline.storage import Store

# A fifth is held out: as many as a tree is measured on, and more than it is fitted on.
_MOST_ROWS = 100_000
# Values of a category that rules may use; rarer ones decide little.
_MOST_VALUES = 32
_KINDS: dict[Any, Kind] = {"timestamp": "time", "boolean": "boolean"}


def labelled_sample(
    lake: Store,
    model: ClusteringModel,
    features: Sequence[FeatureColumn],
    sample: Sample,
    ids: StoredFile,
    clusters: Collection[int] | None = None,
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Raw rows of a sample, and the cluster ids that ``assign`` gives them, without outliers.

    Shapes (rows, features) and (rows,). Only rows in ``clusters`` where they are given; else, of a
    sample of more than ``_MOST_ROWS`` rows, as very many clusters need, every n-th row.

    Raises:
        FileNotFoundError: The sample or the model is gone.
        InputError: The model's settings cannot be read.
    """
    width = sum(column.width for column in features)
    loaded = load_model(lake, model, settings_of(lake, model))
    permanent = ClusterIds.of(lake, ids)
    rows, labels = [], []
    # Two of very many clusters would have too few rows left.
    every = 1 if clusters is not None else -(-sample.rows // _MOST_ROWS)
    for x_BF, assigned in sample_assignments(lake, loaded, sample, every=every):
        label_B = permanent.rename(assigned)["cluster_id"]
        kept_B = label_B != OUTLIER
        if clusters is not None:
            kept_B &= np.isin(label_B, list(clusters))
        rows.append(x_BF[kept_B])
        labels.append(label_B[kept_B].astype(np.int32))
    if not rows:
        return np.empty((0, width)), np.empty(0, np.int32)
    return np.concatenate(rows), np.concatenate(labels)


def tree_features(
    lake: Store,
    model: ClusteringModel,
    features: Sequence[FeatureColumn],
    x_NF: NDArray[np.generic],
) -> tuple[NDArray[np.generic], list[TreeFeature]]:
    """Raw rows as a tree needs them, shape (rows, tree features), and the meaning of each value.

    Each frequent value of a category becomes an indicator.
    """
    words = load_vocabulary(lake, model.scaler)
    names = feature_names(tuple(features))
    types = [getattr(column, "type", None) for column in features for _ in range(column.width)]
    about: list[TreeFeature] = []
    columns: list[NDArray[np.generic]] = []
    for place, (name, kind) in enumerate(zip(names, types, strict=True)):
        x_N = x_NF[:, place]
        if name not in words:
            columns.append(x_N)
            about.append(TreeFeature(name, _KINDS.get(kind, "number")))
            continue
        codes, counts = np.unique(x_N[np.isfinite(x_N.astype(np.float64))], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
        for code in codes[order].tolist():
            if (value := words[name].get(code)) is not None:
                columns.append((x_N == code).astype(np.float32))
                about.append(TreeFeature(name, "category", value))
        if counts.sum() < len(x_N):
            columns.append(np.isnan(x_N.astype(np.float64)).astype(np.float32))
            about.append(TreeFeature(name, "missing"))
    return (np.column_stack(columns) if words else x_NF), about


def rules_table(found: Surrogate, features: Sequence[TreeFeature]) -> pa.Table:
    """The rules of a tree, as ``RULE_SCHEMA``; ``features``: meaning of its rows' values."""
    rows = [_row(rule, features, found.fitted_rows) for rule in found.rules]
    return pa.Table.from_pylist(rows, RULE_SCHEMA)


def _row(rule: Rule, features: Sequence[TreeFeature], fitted_rows: int) -> dict[str, Any]:
    conditions = [
        {
            "feature": features[condition.feature].name,
            "value": features[condition.feature].value,
            "low": condition.low if math.isfinite(condition.low) else None,
            "high": condition.high if math.isfinite(condition.high) else None,
            "missing": condition.missing,
        }
        for condition in rule.conditions
    ]
    names = ("cluster_id", "rows", "held_out", "correct", "precision")
    share = rule.rows / fitted_rows
    row = {"rule": rule.text(features), "conditions": conditions, "share": share}
    return row | {name: getattr(rule, name) for name in names}
