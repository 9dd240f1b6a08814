"""The surrogate tree of a model on its sample: what it is fitted on, and its rules as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.artifacts import ClusteringModel, FeatureColumn, Sample, StoredFile
from pipeline.clustering.surrogate import Rule, Surrogate
from pipeline.lake.assigning import assignments_of
from pipeline.lake.cluster_ids import OUTLIER, ClusterIds
from pipeline.lake.models import load_model, settings_of
from pipeline.lake.samples import feature_parts
from pipeline.schema import RULE_SCHEMA
from pipeline.storage import Store

_ROWS_AT_A_TIME = 2048


def labelled_sample(
    lake: Store,
    model: ClusteringModel,
    features: Sequence[FeatureColumn],
    sample: Sample,
    ids: StoredFile | None,
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Raw rows of a sample and the cluster of each, as ``assign`` would find it; no outliers.

    Args:
        lake: The output folder.
        model: That labels them.
        features: Of a row.
        sample: The rows.
        ids: Permanent ids of the model's clusters; None: they are positions.

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
    for part in feature_parts(lake, sample.parts):
        for start in range(0, len(part), _ROWS_AT_A_TIME):
            # A copy: Arrow's memory is read-only, and torch warns of that.
            x_BF = np.array(part[start : start + _ROWS_AT_A_TIME])
            found = assignments_of(loaded, torch.from_numpy(x_BF))
            label_B = (names.rename(found) if names else found)["cluster_id"]
            rows.append(x_BF[label_B != OUTLIER])
            labels.append(label_B[label_B != OUTLIER].astype(np.int32))
    if not rows:
        return np.empty((0, width)), np.empty(0, np.int32)
    return np.concatenate(rows), np.concatenate(labels)


def rules_table(found: Surrogate, names: Sequence[str]) -> pa.Table:
    """The rules, as ``RULE_SCHEMA`` has them.

    Args:
        found: The tree.
        names: Of the features of a row.
    """
    rows = [_row(rule, names, found.fitted_rows) for rule in found.rules]
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


def _row(rule: Rule, names: Sequence[str], fitted_rows: int) -> dict[str, Any]:
    conditions = [
        {
            "feature": names[condition.feature],
            "low": condition.low if math.isfinite(condition.low) else None,
            "high": condition.high if math.isfinite(condition.high) else None,
            "missing": condition.missing,
        }
        for condition in rule.conditions
    ]
    return {
        "cluster_id": rule.cluster_id,
        "rule": rule.text(names),
        "conditions": conditions,
        "rows": rule.rows,
        "share": rule.rows / fitted_rows,
        "held_back": rule.held_back,
        "right": rule.right,
        "precision": rule.precision,
    }
