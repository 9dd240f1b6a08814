"""What a tuning leaves for people: the recommended config, the picture, the tables."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jobs.commands.tune_results import print_result, trial_line
from pipeline.config import Config, load_config
from pipeline.storage import Store
from pipeline.tuning.measures import Measures
from pipeline.tuning.recommendation import recommend
from pipeline.tuning.results import TuneResult, curve_svg, reasons, recommended_yaml
from pipeline.tuning.space import TrialSettings
from pipeline.tuning.trials import Study, Trial, TrialFolder

SVG = "{http://www.w3.org/2000/svg}"


def trial(clusters: int, modularity: float, **changed: object) -> Trial:
    settings = {
        "clusters": clusters,
        "embedding": 5,
        "width": 0.5,
        "scaling": "minmax",
        "augmentation": 1.5,
        "refine_passes": 10,
    }
    measures = {
        "stability": 0.7,
        "modularity": modularity,
        "modularity_error": 0.004,
        "silhouette": 0.2,
        "silhouette_error": 0.004,
        "generalisation": 1.01,
        "empty_clusters": 0,
        "smallest_share": 0.5 / clusters,
        "largest_share": 0.3,
        "nmi": 0.8,
    }
    return Trial(
        settings=TrialSettings.model_validate(settings),
        measures=Measures.model_validate(measures | changed),
        seconds=2.0,
    )


FAILED = trial(50, 0.1).model_copy(update={"measures": None, "failure": "refine: collapsed"})


def result(folder: Path, trials: tuple[Trial, ...] = ()) -> TuneResult:
    trials = trials or (trial(5, 0.6), trial(10, 0.8), trial(12, 0.75), trial(40, 0.5), FAILED)
    config = Config.model_validate(
        {
            "source": {"path": "in: [odd] # name", "features": ["x"], "image_shape": [8, 8]},
            "output": str(folder),
            "clusters": 20,
            "model": {"hidden": [100, 200]},
            "centroids": {"sample_rows": 1000},
        }
    )
    found = recommend(trials)
    assert found is not None
    place = TrialFolder(Store(str(folder)), "tune-1")
    study = Study(id="tune-1", fingerprint="f", min_clusters=5, max_clusters=50, rows=600)
    return TuneResult(config, place, study, trials, found, requested=6)


def test_the_recommended_config_loads(tmp_path: Path) -> None:
    result(tmp_path / "lake").write()
    path = tmp_path / "lake/tuning/tune-1/recommended.yaml"
    found = load_config(str(path))
    assert found == result(tmp_path / "lake").recommended
    assert (found.clusters, found.model.hidden, found.model.embedding) == (10, [50, 100], 5)
    assert (found.source.scaling, found.refine.passes) == ("minmax", 10)
    assert found.augment.shift == pytest.approx(0.15)
    assert found.source.path == "in: [odd] # name"
    text = path.read_text()
    assert "passes: 30" not in text  # only what differs from the defaults
    assert "# Best score 0.935" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_sample_that_feeds_every_cluster(tmp_path: Path) -> None:
    found = result(tmp_path, (trial(40, 0.8),)).recommended
    assert found.centroids.sample_rows == 39 * 40  # 1,000 were enough for 20


def test_the_curve(tmp_path: Path) -> None:
    better = trial(12, 0.78)
    found = result(tmp_path, (*result(tmp_path).trials, better))
    assert [(t.settings.clusters, round(s, 3)) for t, s in found.best_by_clusters()] == [
        (5, 0.735), (10, 0.935), (12, 0.915), (40, 0.635),
    ]  # fmt: skip
    picture = ET.fromstring(curve_svg(found))
    lines = picture.findall(f"{SVG}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) == 4 for line in lines)
    titles = [dot.findtext(f"{SVG}title") for dot in picture.findall(f"{SVG}circle")]
    assert "10 clusters: modularity 0.800" in titles
    ticks = {text.text for text in picture.findall(f"{SVG}text")}
    assert {"5", "10", "40", "clusters", "stability"} <= ticks


def test_nothing_of_the_curve_is_outside_the_picture(tmp_path: Path) -> None:
    found = result(tmp_path, (trial(5, 0.3, silhouette=-0.3), trial(9, 0.98, stability=0.9)))
    picture = ET.fromstring(curve_svg(found))
    heights = [float(dot.attrib["cy"]) for dot in picture.findall(f"{SVG}circle")]
    grid = [float(line.attrib["y1"]) for line in picture.findall(f"{SVG}line")]
    assert min(grid) <= min(heights)
    assert max(heights) <= 400 - 48  # above the numbers of clusters
    ticks = {text.text for text in picture.findall(f"{SVG}text")}
    assert {"1.2", "0.0", "-0.4"} <= ticks


def test_the_curve_of_one_number(tmp_path: Path) -> None:
    assert ET.fromstring(curve_svg(result(tmp_path, (trial(8, 0.7),)))) is not None


def test_what_a_person_sees(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_result(result(tmp_path), stream)
    lines = stream.getvalue().splitlines()
    (marked,) = (line for line in lines if line.rstrip().endswith("█ ←"))
    assert marked.split()[:6] == ["10", "0.700", "0.800", "0.200", "80.0", "0.935"]
    assert any("5 trials on 600 rows, 5 to 50 clusters, without labels." in line for line in lines)
    assert any(line.startswith("1 rejected") for line in lines)


def test_lines_of_trials() -> None:
    assert trial_line(trial(7, 0.5)) == (
        "7 clusters, embedding 5, width ×0.5, minmax, 10 passes, augment ×1.5: stability 0.700, "
        "modularity 0.500, silhouette 0.200 (2 s)"
    )
    assert trial_line(FAILED).endswith("augment ×1.5: refine: collapsed")


def test_fits_that_hardly_agree(tmp_path: Path) -> None:
    weak = result(tmp_path, (trial(8, 0.7, stability=0.1),))
    assert reasons(weak)[-1].startswith("Note: two fits hardly agree")
    assert not any(line.startswith("Note") for line in reasons(result(tmp_path)))
    assert recommended_yaml(weak).count("# Note: two fits hardly agree") == 1
