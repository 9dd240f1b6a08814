"""Which trial is recommended, on trials whose answer is plain."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from pipeline.tuning.measures import Measures
from pipeline.tuning.recommendation import breach, on_front, recommend, score_of, search_score
from pipeline.tuning.space import TrialSettings
from pipeline.tuning.trials import Trial, trials_bytes


def trial(clusters: int = 10, *, width: float = 1.0, **measured: float | None) -> Trial:
    """A sound trial, but for what is named."""
    measures = {
        "stability": 0.8,
        "modularity": 0.8,
        "modularity_error": 0.01,
        "silhouette": 0.2,
        "silhouette_error": 0.01,
        "generalisation": 1.0,
        "empty_clusters": 0,
        "smallest_share": 0.5 / clusters,
        "largest_share": 0.3,
    }
    settings = TrialSettings(
        clusters=clusters,
        embedding=10,
        width=width,
        scaling="standard",
        augmentation=None,
        refine_passes=20,
    )
    return Trial(settings=settings, measures=Measures.model_validate(measures | measured))


def failed() -> Trial:
    return Trial(settings=trial(3).settings, measures=None, failure="refine: collapsed")


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"empty_clusters": 2}, "2 clusters without rows"),
        ({"smallest_share": 0.001}, "smallest cluster has 0.10%"),
        ({"largest_share": 0.95}, "largest cluster has 95%"),
        ({"generalisation": 0.2}, "KL on held-out rows is 5.0 times"),
    ],
)
def test_limits(measured: dict[str, float], words: str) -> None:
    assert words in (breach(trial(**measured)) or "")
    assert search_score(trial(**measured)) == search_score(failed()) == -1
    assert breach(trial()) is None
    assert breach(trial(generalisation=None)) is None


def test_the_front() -> None:
    stable, modular = trial(5, stability=0.9), trial(6, modularity=0.9)
    worse, equal = trial(7), trial(8, stability=0.9)
    assert on_front([stable, modular, worse, equal]) == [stable, modular, equal]


def test_the_best_where_nothing_comes_near() -> None:
    best = trial(12, modularity=0.9, modularity_error=0.001)
    found = recommend([trial(8, modularity_error=0.001), best, failed()])
    assert found is not None
    assert found.trial == found.best == best
    assert found.rejected == ((failed(), "refine: collapsed"),)


def test_of_those_that_tie_the_smallest_network_and_then_the_best() -> None:
    # The error of each modularity is 0.01, half of that of each silhouette 0.005; one is far off.
    best = trial(12, modularity=0.805)
    narrow = trial(9, width=0.5, modularity=0.796)
    better = trial(10, width=0.5, modularity=0.797)
    far = trial(5, width=0.25, modularity=0.788)
    wild = trial(40, modularity=0.3, modularity_error=0.2)
    found = recommend([best, narrow, better, far, wild])
    assert found is not None
    assert found.best == best
    assert found.standard_error == pytest.approx(((0.01**2 + 0.005**2) / 0.455) ** 0.5)
    assert far not in found.tied
    assert found.trial == better
    assert found.score < found.best_score


def test_nothing_to_recommend() -> None:
    assert recommend([failed(), trial(empty_clusters=1)]) is None
    assert recommend([]) is None


def test_the_score() -> None:
    found = trial(modularity=0.9, silhouette=0.3, stability=0.6).measures
    assert found is not None
    assert score_of(found) == pytest.approx(0.9 + 0.15 + 0.03)


def test_the_table_of_trials() -> None:
    trials = [trial(5), failed()]
    content = trials_bytes(trials, [0.8, None], trials[0].settings.key)
    table = pq.read_table(io.BytesIO(content))
    assert table["clusters"].to_pylist() == [5, 3]
    assert table["score"].to_pylist() == [0.8, None]
    assert table["failure"].to_pylist() == [None, "refine: collapsed"]
    assert table["recommended"].to_pylist() == [True, False]
    assert table["stability"].to_pylist() == [0.8, None]
