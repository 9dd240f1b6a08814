"""Raw rows of typed columns as a tree asks about them, in the values that the user knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.artifacts.inputs import FeatureColumn
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.records import StoredFile
from pipeline.clustering.surrogate import TreeFeature, imitate
from pipeline.insight.rules import rules_table, tree_features
from pipeline.model.channels import Channel, TypedScaler
from pipeline.model.scaling import Scaler
from pipeline.registry.models import scaler_bytes
from pipeline.storage import Store

CODES = {"red": 11.0, "blue": 5e15, "green": 7.0}


FEATURES = (
    FeatureColumn(name="amount", width=1, vector=False),
    FeatureColumn(name="colour", width=1, vector=False),
)


def model_of(lake: Store, scaler: Scaler) -> ClusteringModel:
    lake.write_bytes("scaler.parquet", scaler_bytes(scaler, FEATURES))
    file = StoredFile(path="scaler.parquet", sha256="", bytes=0)
    return ClusteringModel(
        model_id="m", kind="kmeans", weights=None, centroids=file, scaler=file, scaling="standard"
    )


def typed_scaler() -> TypedScaler:
    """Channels of a number and, of a category, of three values, of all others, and of none."""
    values = [*CODES.items(), ("", np.inf), ("", np.nan)]
    channels = [Channel(1, "category", label, code=code) for label, code in values]
    return TypedScaler(np.zeros(2), [Channel(0, "number", factor=1.0), *channels])


def test_rules_about_categories_are_in_words(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    random = np.random.default_rng(0)
    colour = random.choice([*CODES, "rare", "none"], 2_000, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    code = np.array([(CODES | {"rare": 99.0, "none": np.nan})[c] for c in colour])
    x = np.column_stack([random.normal(size=2_000), code])
    x_tree, features = tree_features(lake, model_of(lake, typed_scaler()), FEATURES, x)
    assert features == [
        TreeFeature("amount"),
        TreeFeature(
            "colour", "category", "red"
        ),  # the most frequent first; the rare one has no word
        TreeFeature("colour", "category", "blue"),
        TreeFeature("colour", "category", "green"),
        TreeFeature("colour", "missing"),
    ]
    for place, value in ((1, "red"), (2, "blue"), (3, "green"), (4, "none")):
        assert ((x_tree[:, place] == 1) == (colour == value)).all()
    label = np.where(colour == "red", 0, np.where(colour == "none", 1, 2))
    found = imitate(x_tree, label, depth=3, seed=0)
    assert found is not None
    assert found.fidelity == 1
    rules = {r["cluster_id"]: r for r in rules_table(found, features).to_pylist()}
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


def test_plain_numbers_are_used_as_they_are(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    scaler = Scaler("standard", np.zeros(2), np.zeros(2), np.ones(2))
    x = np.arange(8.0).reshape(4, 2)
    same, features = tree_features(lake, model_of(lake, scaler), FEATURES, x)
    assert same is x
    assert features == [TreeFeature("amount"), TreeFeature("colour")]
