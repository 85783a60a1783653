"""Pictures on a dark ground, and what makes a picture readable on either: in grey, and for eyes that see fewer colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from bench.report import breakdown, decision_map, latency, regret, style, timeline
from bench.report.dark import GROUND, INK, PATHS, dark, darken
from bench.report.exchange_cost import COLOURS as EXCHANGES
from bench.report.plot import Saved, save_all
from dcp_core.settings import PathName
from tests.bench.made_up import trials

Rgb = tuple[float, float, float]

CONTEXTS = ("16q1s8k", "16q1s32k", "q512s8k", "q512s32k")
# Of linear RGB, from Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1.
EYES = {
    "all colours": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def linear(colour: Rgb) -> NDArray[np.float64]:
    parts = np.array(colour)
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB: lightness from 0 to 100, and two axes of hue."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(light, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def lightness(colour: Rgb) -> float:
    return float(lab(linear(colour))[0])


def contrast(one: Rgb, other: Rgb) -> float:
    """WCAG's ratio of luminances."""
    dim, bright = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) + 0.05 for each in (one, other))
    return bright / dim


def on_dark(colours: Iterable[str]) -> list[Rgb]:
    return [dark(colour)[:3] for colour in colours]


PALETTES = {
    "paths": list(map(to_rgb, style.PATH_COLOURS.values())),
    "exchanges": list(map(to_rgb, EXCHANGES.values())),
    "strategies": list(map(to_rgb, regret.COLOURS.values())),
    "paths on dark": on_dark(style.PATH_COLOURS.values()),
    "exchanges on dark": on_dark(EXCHANGES.values()),
    "strategies on dark": on_dark(regret.COLOURS.values()),
}
HATCHED = ("gather", "combine")
STAGES = {
    is_hatched: [colour for name, colour in breakdown.STAGE_COLOURS.items() if name.startswith(HATCHED) == is_hatched]
    for is_hatched in (True, False)
}
BESIDE_TRACED = [breakdown.STAGE_COLOURS[name] for name in ("attention", "context", "context of peers", "new", "merge")]
# Of one picture and all hatched or none: beside their neighbours, edged in white, they need not stand out from the ground.
SHADES = {
    "communicating stages": STAGES[True],
    "computing stages, and any other": [*STAGES[False], breakdown.colour_of("another")],
    "communicating stages and traced": [*STAGES[True], timeline.TRACED[True][1]],
    "computing stages of tp and split, and traced": [*BESIDE_TRACED, timeline.TRACED[False][1]],
    "host": list(breakdown.HOST_COLOURS.values()),
}
GREYS = {
    **{name: colours for name, colours in PALETTES.items() if not name.startswith("exchanges")},
    **{name: list(map(to_rgb, colours)) for name, colours in SHADES.items()},
    **{f"{name} on dark": on_dark(colours) for name, colours in SHADES.items()},
}


@pytest.mark.parametrize("name", PALETTES)
@pytest.mark.parametrize("eye", EYES)
def test_no_two_colours_look_alike_to_any_eye(name: str, eye: str) -> None:
    seen = [lab(EYES[eye] @ linear(colour)) for colour in PALETTES[name]]
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2)) > 20


@pytest.mark.parametrize("name", PALETTES)
def test_in_grey_they_are_apart_and_off_the_ground(name: str) -> None:
    greys = sorted(map(lightness, PALETTES[name]))
    ground = GROUND if name.endswith("on dark") else (1.0, 1.0, 1.0)
    assert min(high - low for low, high in pairwise(greys)) > 4.5
    assert all(contrast(colour, ground) > 2.2 for colour in PALETTES[name])


@pytest.mark.parametrize("name", GREYS)
def test_colours_of_one_picture_are_apart_in_the_grey_that_printers_make_of_them(name: str) -> None:
    """Rec. 601's luma, of 255."""
    greys = sorted(255 * (0.299 * red + 0.587 * green + 0.114 * blue) for red, green, blue in GREYS[name])
    assert min(high - low for low, high in pairwise(greys)) > 15


def test_white_turns_to_the_ground_black_to_ink_and_each_path_to_its_own() -> None:
    assert dark("white")[:3] == pytest.approx(GROUND)
    assert dark("black")[:3] == pytest.approx(INK)
    assert dark((1, 1, 1, 0.25))[3] == 0.25
    for path, colour in PATHS.items():
        assert dark(style.PATH_COLOURS[path])[:3] == to_rgb(colour)
    assert PATHS.keys() == set(PathName) - {PathName.TP}


def test_greys_keep_their_order_turned_round() -> None:
    greys = [lightness(dark(str(level / 10))[:3]) for level in range(11)]
    assert greys == sorted(greys, reverse=True)


@pytest.mark.parametrize("draw", [latency.draw, breakdown.draw, decision_map.draw])
def test_every_word_can_be_read_on_the_dark_ground(draw: Callable[..., Figure | str]) -> None:
    contexts = (
        CONTEXTS if draw is not decision_map.draw else [f"{n}q1s{context}k" for n in (1, 8) for context in (8, 32, 128)]
    )
    figure = draw(trials(*contexts))
    assert isinstance(figure, Figure)
    darken(figure)
    written = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]
    assert len(written) > 20
    assert figure.get_facecolor()[:3] == pytest.approx(GROUND)
    for text in written:
        assert contrast(to_rgb(text.get_color()), GROUND) > 3, text.get_text()
    for axes in figure.axes:
        assert to_rgb(axes.get_facecolor()) == pytest.approx(GROUND)


def test_a_dark_picture_is_the_light_one_in_other_colours(tmp_path: Path) -> None:
    found = trials(*CONTEXTS, kernels=("fa2",))
    pictures = {}
    for is_dark in (False, True):
        (saved,) = save_all(found, tmp_path / str(is_dark), command="x", names=["latency"], is_dark=is_dark)
        assert isinstance(saved, Saved)
        pictures[is_dark] = Image.open(saved.files[0]).convert("RGB")
    light, after = pictures[False], pictures[True]
    assert light.size == after.size
    assert light.getpixel((0, 0)) == (255, 255, 255)
    assert after.getpixel((0, 0)) == tuple(round(255 * part) for part in GROUND)
