"""The colors of clusters stay apart, for the color-blind too, and stand out from the page."""

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

# Color vision without one kind of cone, in linear RGB (Machado, Oliveira & Fernandes 2009).
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
SURFACES = {"light": "#ffffff", "dark": "#171a1f"}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193, 0.1192, 0.9503]]
)


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colors(theme: str) -> list[str]:
    script = files("pipeline.report").joinpath("page.js").read_text()
    found = re.search(rf"{theme}: (\[[^]]+\])", script)
    assert found
    return re.findall("#[0-9a-f]{6}", found[1])


@pytest.mark.parametrize("theme", SURFACES)
@pytest.mark.parametrize("vision", VISIONS)
def test_ten_colors_stay_apart(theme: str, vision: str) -> None:
    seen = [lab(np.array(VISIONS[vision]) @ linear(color)) for color in colors(theme)]
    assert len(seen) == 10
    # Of ΔE, 2.3 is just noticeable.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


@pytest.mark.parametrize("theme", SURFACES)
def test_they_stand_out_from_the_page(theme: str) -> None:
    page = TO_XYZ[1] @ linear(SURFACES[theme]) + 0.05
    for color in colors(theme):
        own = TO_XYZ[1] @ linear(color) + 0.05
        assert max(page, own) / min(page, own) >= 3, color  # WCAG 2.2, 1.4.11
