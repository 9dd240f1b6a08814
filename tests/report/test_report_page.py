"""The report of runs of many kinds: what is on it, what is left out, and how large it is."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import Made

from pipeline.bill.comparison import compare
from pipeline.errors import InputError
from pipeline.report.page import as_json, make
from pipeline.report.pictures import data_uri, drawable, pixels, png, sheet
from pipeline.storage import Store

SCRIPT = "<script>alert(1)</script>"
EVIL = {
    "columns": (SCRIPT, 'a"b<img src=x onerror=alert(2)>', "</script>&amp;{a|b}"),
    "key": "<b>key</b>",
    "keys": [SCRIPT, "\u2028--><!--"],
    "names": {0: "<i>zero</i>"},
}


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "lake"))


def page_of(made: Made) -> str:
    return made.lake.read_bytes(make(made.lake, made.run_id).page.path).decode()


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


class Tags(HTMLParser):
    """Elements of a page, the texts outside of scripts and styles, and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.texts.append(data)


def test_a_run_has_every_section(lake: Store) -> None:
    made = Made(lake).write()
    report = make(lake, "made")
    assert report.page.path == "runs/made/report/index.html"
    assert set(report.sections) == {
        *("run", "verdict", "training", "sizes", "map", "confidence", "profile", "clusters"),
        "time",
    }
    page = lake.read_bytes(report.page.path).decode()
    texts = " ".join(Tags(page).texts)
    assert "DEC beat plain k-means" in texts
    assert "shard-7.parquet" in texts
    assert "91.0" in texts  # fidelity is beside the rules
    assert texts.count("correct for 9 of 10 held-out rows") == made.clusters
    data = data_of(page)
    assert data["map"]["key"] == [str(n) for n in range(120)]
    assert [data["map"]["clusters"][c]["id"] for c in data["map"]["cluster"]] == (
        made.labels_N.tolist()
    )
    assert sum(data["confidence"]["all"]) == 120
    # What a stage cost: three nodes of four cores at 0.05 an hour, which all wait for it.
    took = json.loads(lake.read_bytes("runs/made/metrics.json"))["stages"][1]["seconds"]
    core_hours = 12 * took / 3600
    told = f"sample {took:.1f} – {core_hours:.3g} {core_hours * 0.05:.3g} "
    assert f"Core-hours Cost, USD pin 0.0 1.0 0 0 {told}" in " ".join(texts.split())


def test_it_needs_nothing_but_itself(lake: Store) -> None:
    tags = Tags(page_of(Made(lake, columns=("x[16]",), image_shape=[4, 4]).write()))
    addresses = [value for name, value in tags.attributes if name in ("src", "href", "srcset")]
    assert addresses
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in addresses)
    assert "link" not in tags.tags
    assert tags.tags.count("img") > 4  # a mean a cluster, and its exemplars


def test_what_looks_like_html_is_text(lake: Store) -> None:
    page = page_of(Made(lake, **EVIL).write())
    tags = Tags(page)
    plain = Tags(page_of(Made(Store(f"{lake.url}-plain"), names={0: "zero"}).write()))
    assert tags.tags.count("script") == plain.tags.count("script") == 4
    assert not {"i", "b"} & set(tags.tags)
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    texts = " ".join(tags.texts)
    for text in (*EVIL["columns"], EVIL["key"], SCRIPT, "0 · <i>zero</i>"):
        assert text in texts
    assert SCRIPT in data_of(page)["map"]["key"]


def test_json_in_a_script_cannot_end_it() -> None:
    hostile = ["</script><!--", "\u2028\u2029&", float("nan"), {"a": (1, float("inf"))}]
    text = as_json(hostile)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == ["</script><!--", "\u2028\u2029&", None, {"a": [1, None]}]


@pytest.mark.parametrize(
    ("clusters", "per_cluster", "columns", "image_shape"),
    [
        (100, 30, ("x[784]",), [28, 28]),
        (100, 10, tuple(f"feature_{n}" for n in range(60)), None),
        pytest.param(10_000, 2, ("a", "b"), None, marks=pytest.mark.slow),
    ],
    ids=["100 of images", "100 of columns", "10,000"],
)
def test_it_stays_small(
    lake: Store, clusters: int, per_cluster: int, columns: Any, image_shape: Any
) -> None:
    made = Made(lake, clusters, per_cluster, columns, image_shape=image_shape).write()
    page = page_of(made)
    assert len(page.encode()) < 5_000_000
    texts = " ".join(Tags(page).texts)
    assert f"{clusters:,} of {clusters:,} clusters have rows" in texts
    assert f"The 24 largest of {clusters:,} clusters" in texts
    assert page.count('<article class="card"') == 24


def test_a_night_shows_gate_and_flow(lake: Store) -> None:
    page = page_of(Made(lake, ids=(3, 7, 8, 12), names={1: "tall"}).write())
    texts = " ".join(Tags(page).texts)
    assert "The gate refused the new model" in texts
    assert "7 · tall" in texts  # as the registry calls it
    data = data_of(page)
    assert [3, 3, 80, "survival"] in data["flow"]["bands"]
    assert [90, 3, 12, "merge"] in data["flow"]["bands"]
    assert data["flow"]["refused"]  # by whom nobody's rows are labelled
    assert {cluster["id"] for cluster in data["map"]["clusters"]} == {3, 7, 8, 12}
    assert data["times"]["estimated_seconds"] is None


def test_a_night_that_fits_nothing_has_no_curves(lake: Store) -> None:
    made = Made(lake, ids=(3, 7, 8, 12)).write()
    quiet = made.write_quiet_night("quiet", "2026-02-01")
    report = make(lake, "quiet")
    assert {"training", "gate", "profile"}.isdisjoint(report.sections)
    assert {"verdict", "map", "sizes", "confidence"} <= set(report.sections)
    texts = " ".join(Tags(page_of(quiet)).texts)
    assert "The champion labelled the rows" in texts
    assert "has no profile of its clusters" in texts
    estimated = {s["name"]: s["estimated"] for s in data_of(page_of(quiet))["times"]["stages"]}
    assert (estimated["pin"], estimated["assign"], estimated["refine"]) == (1.0, 1.0, None)


def test_what_nights_took_beside_their_plans(lake: Store) -> None:
    """As ``dec plan --run`` has it, and the next plan learns from it."""
    made = Made(lake, ids=(3, 7, 8, 12)).write()
    quiet = made.write_quiet_night("quiet", "2026-02-01")
    for run in (made, quiet):
        path = run.context.run_path
        lake.write_json(f"{path}/manifest.json", run.manifest.model_dump(mode="json"))
        lake.write_bytes(f"{path}/config.yaml", run.config.to_yaml().encode())
    found = compare(lake, "quiet")
    assert found.refine_passes is None
    assert [stage.stage for stage in found.planned.stages] == ["pin", "assign"]
    assert "assign" in found.factors
    assert not {"pretrain", "refine"} & set(found.factors)  # nothing of them was planned
    # Of an older version, that kept none.
    with pytest.raises(InputError, match="kept no estimate"):
        compare(lake, made.run_id)


def test_what_is_missing_or_damaged_is_left_out(lake: Store) -> None:
    made = Made(lake).write()
    lake.write_bytes(made.explanation.profile.path, b"no Parquet")
    lake.delete([made.explanation.exemplars.path, made.assignments.files.path])
    lake.write_bytes("runs/made/stages/refine/done.json", b"{")
    lake.write_bytes("runs/made/config.yaml", b"clusters: none\n")
    lake.delete([made.sample.parts[0].path])
    report = make(lake, "made")
    assert report.map is None
    assert set(report.sections) == {"run", "verdict", "training", "sizes", "clusters", "time"}


def test_a_run_that_is_not_complete_has_none(lake: Store) -> None:
    with pytest.raises(InputError, match=r"metrics\.json is not there; give a run"):
        make(lake, "none")
    lake.write_json("runs/old/metrics.json", {"run_id": "old"})
    with pytest.raises(InputError, match="or of a version that this one cannot read"):
        make(lake, "old")


def test_made_again_it_is_the_same(lake: Store) -> None:
    Made(lake).write()
    assert make(lake, "made") == make(lake, "made")


def test_pictures_are_png_files_of_the_values(tmp_path: Path) -> None:
    values = np.array([[0.0, 8.0, 16.0, np.nan, 4.0, 16.0]])
    found = pixels(values)
    assert found.tolist() == [[0, 128, 255, 0, 64, 255]]
    content = png(found.reshape(2, 3))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[16:24] == bytes([0, 0, 0, 3, 0, 0, 0, 2])  # width, height
    assert data_uri(found.reshape(2, 3)).startswith("data:image/png;base64,iVBOR")
    tiles = np.arange(3 * 4, dtype=np.uint8).reshape(3, 4)
    assert sheet(tiles, [2, 2], 2)[..., 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 0, 0],
        [10, 11, 0, 0],
    ]


@pytest.mark.parametrize(
    ("shape", "width", "can"),
    [([2, 3], 6, True), ([2, 3, 3], 18, True), ([2, 3, 2], 12, False), ([2, 3], 7, False)],
)
def test_only_grey_and_colors_are_drawn(shape: list[int], width: int, can: bool) -> None:
    assert drawable(shape, width) is can


def test_the_map_keeps_keys_and_clusters(lake: Store) -> None:
    made = Made(lake, ids=(3, 7, 8, 12)).write()
    report = make(lake, "made")
    assert report.map
    table = pq.read_table(lake.locate(report.map.path))
    assert table["id"].to_pylist() == list(range(120))
    expected = [made.ids[label] for label in made.labels_N]
    assert table["cluster_id"].to_pylist() == expected
    places = np.stack([table["dec_x"].to_numpy(), table["dec_y"].to_numpy()], 1)
    # Groups that are far apart do not mix: each row's nearest on the map is of its cluster.
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (np.array(expected)[apart.argmin(1)] == expected).mean() > 0.95
