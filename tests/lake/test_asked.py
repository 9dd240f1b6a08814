"""Raw rows of typed columns as a tree asks about them, in the values that the user knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts import ClusteringModel, FeatureColumn, StoredFile
from pipeline.clustering.surrogate import Asked, imitate
from pipeline.lake.surrogates import as_asked, rules_table
from pipeline.storage import Store, parquet_bytes

CODES = {"red": 11.0, "blue": 5e15, "green": 7.0}


def model_of(lake: Store, scaler: pa.Table) -> ClusteringModel:
    lake.write_bytes("scaler.parquet", parquet_bytes(scaler))
    file = StoredFile(path="scaler.parquet", sha256="", bytes=0)
    return ClusteringModel(
        model_id="m", kind="kmeans", weights=None, centroids=file, scaler=file, scaling="standard"
    )


def channels() -> pa.Table:
    """One row a channel: those of a number, of three values, of all others, and of none."""
    return pa.table(
        {
            "column": ["amount", *["colour"] * 5],
            "kind": ["number", *["category"] * 5],
            "label": [None, *CODES, None, None],
            "code": pa.array([np.nan, *CODES.values(), np.inf, -np.inf]),
        }
    )


FEATURES = [
    FeatureColumn(name="amount", width=1, vector=False),
    FeatureColumn(name="colour", width=1, vector=False),
]


def test_rules_about_categories_are_in_words(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    random = np.random.default_rng(0)
    colour = random.choice([*CODES, "rare", "none"], 2_000, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    code = np.array([(CODES | {"rare": 99.0, "none": np.nan})[c] for c in colour])
    x = np.column_stack([random.normal(size=2_000), code])
    x_asked, asked = as_asked(lake, model_of(lake, channels()), FEATURES, x)
    assert asked == [
        Asked("amount"),
        Asked("colour", "category", "red"),  # the most frequent first; the rare one has no word
        Asked("colour", "category", "blue"),
        Asked("colour", "category", "green"),
        Asked("colour", "missing"),
    ]
    for place, value in ((1, "red"), (2, "blue"), (3, "green"), (4, "none")):
        assert ((x_asked[:, place] == 1) == (colour == value)).all()
    label = np.where(colour == "red", 0, np.where(colour == "none", 1, 2))
    found = imitate(x_asked, label, depth=3, seed=0)
    assert found is not None
    assert found.fidelity == 1
    rules = {r["cluster_id"]: r for r in rules_table(found, asked).to_pylist()}
    assert rules[0]["rule"] == "colour = red"
    assert set(rules[1]["rule"].split(" and ")) == {"colour ≠ red", "colour is missing"}
    assert set(rules[2]["rule"].split(" and ")) == {"colour ≠ red", "colour is there"}
    (condition,) = rules[0]["conditions"]
    assert condition == {
        "feature": "colour",
        "value": "red",
        "low": 0.0,
        "high": None,
        "missing": False,
    }


def test_plain_numbers_are_asked_about_as_they_are(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    scaler = pa.table({"feature": ["amount", "colour"], "mean": [0.0, 0.0]})
    x = np.arange(8.0).reshape(4, 2)
    same, asked = as_asked(lake, model_of(lake, scaler), FEATURES, x)
    assert same is x
    assert asked == [Asked("amount"), Asked("colour")]
