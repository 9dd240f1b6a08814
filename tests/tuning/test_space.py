"""What a tuning may try, and what it refuses."""

from __future__ import annotations

import pytest

from pipeline.config import Config, sized
from pipeline.errors import ConfigError
from pipeline.tuning.space import (
    TrialSettings,
    choices,
    cluster_range,
    first_trials,
    from_parameters,
    start_of,
)


def config(**settings: object) -> Config:
    source = {"path": "in", "features": ["x"], **settings.pop("source", {})}  # type: ignore[dict-item]
    return Config.model_validate({"source": source, "output": "out", "clusters": 10, **settings})


@pytest.mark.parametrize("text", ["1:0", "1:5", "9:5", "5-50", "5:", ":5", "", "a:b", "-5:5", "1"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ConfigError, match="must be MIN:MAX"):
        cluster_range(text, 10_000)


def test_ranges() -> None:
    assert cluster_range("5:50", 1000) == (5, 50)
    assert cluster_range("8", 1000) == (8, 8)
    assert cluster_range(None, 10_000) == (5, 50)
    assert cluster_range(None, 600) == (5, 30)  # as far as the sample allows


def test_more_clusters_than_the_sample_allows() -> None:
    with pytest.raises(ConfigError, match=r"--clusters 5:51: 10 rows .* 1,000 rows allow at most"):
        cluster_range("5:51", 1000)
    with pytest.raises(ConfigError, match="give more rows"):
        cluster_range(None, 80)


def test_what_is_tried() -> None:
    found = choices(sized(config(), features=8, rows=10_000))
    assert found["embedding"] == [5, 10, 20]
    assert found["width"] == [0.25, 0.5, 1.0]
    assert found["scaling"][0] == "standard"
    assert found["refine_passes"] == [5, 10, 20]
    assert "augmentation" not in found
    images = choices(sized(config(source={"image_shape": [8, 8]}), features=64, rows=10_000))
    assert images["augmentation"] == [0.0, 0.5, 1.0, 1.5]


def test_settings_that_make_the_same_network_are_tried_once() -> None:
    tiny = config(model={"hidden": [4], "embedding": 2}, refine={"passes": 0})
    found = choices(tiny)
    assert found["width"] == [1.0]
    assert found["embedding"] == [2, 4]
    assert found["refine_passes"] == [0]


def test_a_trial_changes_what_it_says_and_nothing_else() -> None:
    images = config(source={"image_shape": [8, 8]}, model={"hidden": [100, 200]})
    settings = TrialSettings(
        clusters=7, embedding=5, width=0.5, scaling="minmax", augmentation=0.5, refine_passes=3
    )
    found = settings.applied(images)
    assert (found.clusters, found.model.embedding, found.model.hidden) == (7, 5, [50, 100])
    assert (found.source.scaling, found.refine.passes) == ("minmax", 3)
    assert found.augment.rotation_degrees == pytest.approx(5)
    assert start_of(images, 10).applied(images) == images


def test_the_first_trials_walk_over_the_whole_range() -> None:
    first = first_trials(config(), 5, 50, 24)
    counts = [trial.clusters for trial in first]
    assert counts[0] == 10  # the config itself
    assert len(counts) == len(set(counts)) == 12
    assert min(counts) == 5
    assert max(counts) > 30
    assert all(trial == start_of(config(), trial.clusters) for trial in first)
    assert [t.clusters for t in first_trials(config(), 20, 30, 1)] == [20]  # 10 is outside


def test_what_a_searcher_leaves_out_is_the_configs() -> None:
    found = from_parameters({"clusters": 6, "scaling": "minmax"}, config())
    assert found == start_of(config(), 6).model_copy(update={"scaling": "minmax"})
    assert found.key != start_of(config(), 6).key
