"""The report in a real browser: it draws, answers to mouse and keys, prints, and asks for nothing.

With ``DEC_TEST_SCREENSHOTS=FOLDER`` the pages are kept there as pictures, for people to look at.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made import Made
from test_report_page import EVIL, SCRIPT

from pipeline.report.page import make
from pipeline.storage import Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Opened:
    """A page, and all that went on while it was open."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def in_order(self) -> None:
        """Nothing was wrong, and nothing was asked of anybody."""
        assert self.said == []
        own = self.page.url.partition("#")[0]
        assert [url for url in self.asked if not url.startswith("data:")] == [own]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the reports of some runs."""
    runs = {
        "run": Made(_lake(tmp_path_factory), columns=("x[64]",), image_shape=[8, 8]),
        "night": Made(_lake(tmp_path_factory), ids=(3, 7, 8, 12), names={1: "tall and light"}),
        "evil": Made(_lake(tmp_path_factory), **EVIL),
        "many": Made(_lake(tmp_path_factory), clusters=100, columns=("a", "b", "c", "d")),
    }
    found = {}
    for name, made in runs.items():
        report = make(made.write().lake, "made")
        found[name] = Path(made.lake.locate(report.page.path)).as_uri()
    return found


def _lake(folders: pytest.TempPathFactory) -> Store:
    return Store(str(folders.mktemp("lake")))


@pytest.fixture
def opened(browser: Any, pages: dict[str, str]) -> Iterator[Any]:
    kept = []

    def visit(name: str, size: Any = DESKTOP, **options: Any) -> Opened:
        page = browser.new_page(viewport=size, reduced_motion="reduce", **options)
        kept.append(page)
        found = Opened(page)
        page.on("console", lambda message: found.said.append(message.text))
        page.on("pageerror", lambda error: found.said.append(str(error)))
        page.on("request", lambda request: found.asked.append(request.url))
        page.goto(pages[name])
        page.wait_for_selector("html[data-ready]")
        if folder := os.environ.get("DEC_TEST_SCREENSHOTS"):
            shade = options.get("color_scheme", "light")
            path = f"{folder}/{name}-{size['width']}-{shade}.png"
            page.screenshot(path=path, full_page=True)
        return found

    yield visit
    for page in kept:
        page.close()


def plots(page: Any) -> dict[str, int]:
    """How many shapes each chart is drawn with."""
    script = """nodes => Object.fromEntries(nodes.map(
        node => [node.id, node.querySelectorAll("svg path").length]))"""
    return dict(page.eval_on_selector_all(".plot", script))


@pytest.mark.parametrize("name", ["run", "night", "evil", "many"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_draws_every_chart(opened: Any, name: str, size: Any) -> None:
    found = opened(name, size)
    drawn = plots(found.page)
    assert len(drawn) >= 9
    assert all(shapes > 2 for shapes in drawn.values()), drawn
    assert found.page.evaluate("document.documentElement.scrollWidth") == size["width"]
    found.in_order()


def test_names_that_look_like_html_are_text(opened: Any) -> None:
    found = opened("evil")
    page = found.page
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.focus("#plot-map")
    page.keyboard.press("ArrowRight")
    assert SCRIPT in page.inner_text("#map-detail dl")
    page.hover("#plot-heat svg", position={"x": 400, "y": 140})
    page.wait_for_selector(".tip")
    tips = " ".join(page.locator(".tip").all_inner_texts())
    assert any(column in tips for column in EVIL["columns"])
    labels = " ".join(page.locator("#plot-heat svg text").all_text_contents())
    assert "<script>alert" in labels
    assert page.locator(".tip script, .tip img, #map-detail img, main i").count() == 0
    assert asked == []
    found.in_order()


def test_pointing_at_a_row_shows_its_key_and_profile(opened: Any) -> None:
    found = opened("run")
    page = found.page
    page.locator("#plot-map").scroll_into_view_if_needed()
    # The second row in the order of the keys, wherever it lies.
    page.focus("#plot-map")
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#map-detail")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#map-detail") != first
    assert "runner-up" in first
    assert "x[" in first  # what is typical of its cluster
    assert page.locator("#map-detail .tile").count() == 1  # the row as a picture
    point = page.locator("#plot-map svg path[fill]:not([fill='none'])").nth(30)
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".tip")
    page.mouse.down()
    page.mouse.up()
    assert "confidence" in page.locator(".tip").last.inner_text()
    found.in_order()


def test_one_cluster_can_be_highlighted(opened: Any) -> None:
    found = opened("many")
    page = found.page
    faint = "nodes => nodes.filter(node => node.getAttribute('fill-opacity') === '0.12').length"
    assert page.eval_on_selector_all("#plot-map svg path", faint) == 0
    page.select_option("#highlight", "20")
    page.wait_for_timeout(50)
    rows = page.evaluate("JSON.parse(document.getElementById('report').textContent).map.x.length")
    faded = page.eval_on_selector_all("#plot-map svg path", faint)
    assert rows * 0.9 < faded < rows
    found.in_order()


def test_the_keyboard_reaches_everything(opened: Any) -> None:
    found = opened("run")
    page = found.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("details[open]").count() == 0
    table = page.locator("#sizes summary")
    table.focus()
    page.keyboard.press("Enter")
    assert page.locator("#sizes table").is_visible()
    assert page.locator("#sizes tbody tr").count() == 4
    found.in_order()


def test_dark_follows_the_system_and_the_button(opened: Any) -> None:
    found = opened("run", color_scheme="dark")
    page = found.page
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert sum(map(int, dark[4:-1].split(","))) < 100
    page.click("#theme")
    light = page.evaluate(background)
    assert sum(map(int, light[4:-1].split(","))) > 700
    assert page.inner_text("#theme") == "Dark"
    found.in_order()


def test_it_prints_in_light_colors_with_its_charts(opened: Any, tmp_path: Path) -> None:
    found = opened("night", color_scheme="dark")
    page = found.page
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    widths = page.eval_on_selector_all(".plot svg", "nodes => nodes.map(n => n.clientWidth)")
    assert len(widths) >= 9
    assert all(0 < width <= 680 for width in widths)
    white = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(white) == "rgb(255, 255, 255)"
    assert not page.is_visible(".contents")
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    found.in_order()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_no_known_barrier(opened: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe is not installed")
    for name in ("run", "night"):
        found = opened(name, color_scheme=scheme)
        result = axe.Axe().run(found.page)
        barriers = [
            f"{barrier['id']}: {node['html'][:120]}: {node['failureSummary'][:200]}"
            for barrier in result["violations"]
            for node in barrier["nodes"]
        ]
        assert barriers == []
