"""The surrogate tree of a model on its sample: what it is fitted on, and its rules as tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.surrogate import Asked, Kind, Rule, Surrogate
from pipeline.input.samples import feature_parts
from pipeline.registry.cluster_ids import OUTLIER, ClusterIds
from pipeline.registry.labels import assignments_of
from pipeline.registry.models import feature_names, load_model, load_vocabulary, settings_of
from pipeline.schema import RULE_SCHEMA
from pipeline.storage import Store

_ROWS_AT_A_TIME = 2048
# Of which a fifth is held back: as many as a tree is measured on, and more than it is fitted on.
_MOST_ROWS = 100_000
# Values of a category that rules ask about; rarer ones decide little.
_MOST_VALUES = 32


def labelled_sample(
    lake: Store,
    model: ClusteringModel,
    features: Sequence[FeatureColumn],
    sample: Sample,
    ids: StoredFile | None,
    clusters: Collection[int] | None = None,
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Raw rows of a sample and the cluster of each, as ``assign`` would find it; no outliers.

    Of a sample of more than ``_MOST_ROWS``, as very many clusters need, an even choice.

    Args:
        lake: The output folder.
        model: That labels them.
        features: Of a row.
        sample: The rows.
        ids: Permanent ids of the model's clusters; None: they are positions.
        clusters: Whose rows are wanted, of the whole sample; None: all.

    Returns:
        Rows, shape (rows, features), and ids, shape (rows,).

    Raises:
        FileNotFoundError: The sample or the model is gone.
        InputError: The model's settings cannot be read.
    """
    width = sum(column.width for column in features)
    loaded = load_model(lake, model, settings_of(lake, model), width)
    names = ClusterIds.of(lake, ids) if ids else None
    rows, labels = [], []
    # Of two clusters among very many an even choice would leave nothing.
    every = 1 if clusters is not None else -(-sample.rows // _MOST_ROWS)
    next_row = 0
    for part in feature_parts(lake, sample.parts):
        part, next_row = part[next_row::every], (next_row - len(part)) % every
        for start in range(0, len(part), _ROWS_AT_A_TIME):
            # A copy: Arrow's memory is read-only, and torch warns of that.
            x_BF = np.array(part[start : start + _ROWS_AT_A_TIME])
            found = assignments_of(loaded, torch.from_numpy(x_BF))
            label_B = (names.rename(found) if names else found)["cluster_id"]
            kept_B = label_B != OUTLIER
            if clusters is not None:
                kept_B &= np.isin(label_B, list(clusters))
            rows.append(x_BF[kept_B])
            labels.append(label_B[kept_B].astype(np.int32))
    if not rows:
        return np.empty((0, width)), np.empty(0, np.int32)
    return np.concatenate(rows), np.concatenate(labels)


def as_asked(
    lake: Store,
    model: ClusteringModel,
    features: Sequence[FeatureColumn],
    x_NF: NDArray[np.generic],
) -> tuple[NDArray[np.generic], list[Asked]]:
    """Raw rows as a tree can ask about them: of a category, whether a row has each frequent value.

    Args:
        lake: The output folder.
        model: That knows the values of categories.
        features: Of a row.
        x_NF: The rows, shape (rows, features).

    Returns:
        The rows, shape (rows, questions), and what each question is about.
    """
    words = load_vocabulary(lake, model.scaler)
    names = feature_names(tuple(features))
    kinds = [getattr(column, "type", None) for column in features for _ in range(column.width)]
    plain: dict[Any, Kind] = {"timestamp": "time", "boolean": "boolean"}
    if not words:
        return x_NF, [Asked(n, plain.get(k, "number")) for n, k in zip(names, kinds, strict=True)]
    columns: list[NDArray[np.generic]] = []
    asked: list[Asked] = []
    for place, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        x_N = x_NF[:, place]
        if name not in words:
            columns.append(x_N)
            asked.append(Asked(name, plain.get(kind, "number")))
            continue
        codes, counts = np.unique(x_N[np.isfinite(x_N.astype(np.float64))], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
        for code in codes[order].tolist():
            if (value := words[name].get(code)) is not None:
                columns.append((x_N == code).astype(np.float32))
                asked.append(Asked(name, "category", value))
        if counts.sum() < len(x_N):
            columns.append(np.isnan(x_N.astype(np.float64)).astype(np.float32))
            asked.append(Asked(name, "missing"))
    return np.column_stack(columns), asked


def rules_table(found: Surrogate, asked: Sequence[Asked]) -> pa.Table:
    """The rules, as ``RULE_SCHEMA`` has them.

    Args:
        found: The tree.
        asked: What its questions are about.
    """
    rows = [_row(rule, asked, found.fitted_rows) for rule in found.rules]
    return pa.Table.from_pylist(rows, RULE_SCHEMA)


def measured_table(found: Surrogate) -> pa.Table:
    """How well the rules describe each cluster, by cluster_id; columns of ``DESCRIBED_SCHEMA``."""
    of = found.clusters
    return pa.table(
        {
            "cluster_id": pa.array([c.cluster_id for c in of], pa.int32()),
            "held_back": pa.array([c.rows for c in of], pa.int64()),
            "told": pa.array([c.told for c in of], pa.int64()),
            "right": pa.array([c.right for c in of], pa.int64()),
            "precision": pa.array([c.precision for c in of], pa.float64()),
            "recall": pa.array([c.recall for c in of], pa.float64()),
        }
    )


def _row(rule: Rule, asked: Sequence[Asked], fitted_rows: int) -> dict[str, Any]:
    conditions = [
        {
            "feature": asked[condition.feature].name,
            "value": asked[condition.feature].value,
            "low": condition.low if math.isfinite(condition.low) else None,
            "high": condition.high if math.isfinite(condition.high) else None,
            "missing": condition.missing,
        }
        for condition in rule.conditions
    ]
    return {
        "cluster_id": rule.cluster_id,
        "rule": rule.text(asked),
        "conditions": conditions,
        "rows": rule.rows,
        "share": rule.rows / fitted_rows,
        "held_back": rule.held_back,
        "right": rule.right,
        "precision": rule.precision,
    }
