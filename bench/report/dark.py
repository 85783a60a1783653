"""The same picture on a dark ground: hues stay, what was white becomes the ground, what was black can be read on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.report import style
from dcp_core.settings import PathName

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GROUND, INK = (0.051, 0.067, 0.09), (0.93, 0.95, 0.97)
PATHS = {
    PathName.DECODE: "#2578BC",
    PathName.SPLIT: "#FFCB52",
    PathName.MASK: "#E8622E",
    PathName.FOLD: "#38CFA2",
}
"""Each a grey of its own too; ``tp`` is the ink."""
_DEEP = 0.65
"""Of its black a full colour keeps so much, so that hues stay apart; a grey keeps none."""
_LIFT, _PALE = 0.16, 5
"""Pale colours stand off the ground by so much, in full from a hue of a fifth on."""
_Colour = tuple[float, float, float, float]


def darken(figure: Figure) -> None:
    """Turn a figure drawn for white paper into one for a dark page, in place."""
    figure.draw_without_rendering()  # before that, ticks are not all there
    figure.set_layout_engine("none")  # the room for everything is known now, and stays
    names = {
        label: label.get_color()
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels()
    }
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _darken_axis(axis)
    ticks = {part for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for part in axis.findobj()}
    for artist in [figure, *figure.findobj(include_self=False)]:
        if artist not in ticks:
            _darken_artist(artist)
    for axes in figure.axes:
        for part in (axes.xaxis.label, axes.yaxis.label):
            part.set_color(dark(part.get_color()))
    for label, colour in names.items():
        label.set_color(dark(colour))


def dark(colour: Any) -> _Colour:
    """Return a colour's counterpart.

    A colour is a share of white, a share of black and the rest pure hue (HWB: Smith and Lyons, "HWB - A More Intuitive
    Hue-Based Color Model", 1996). White turns to the ground, black to the ink: grey by grey the picture is inverted.
    """
    from matplotlib.colors import to_rgba

    *parts, alpha = to_rgba(colour)
    for path, light in style.PATH_COLOURS.items():
        if path in PATHS and to_rgba(light)[:3] == tuple(parts):
            return to_rgba(PATHS[path], alpha)
    white, black = min(parts), 1 - max(parts)
    pure = 1 - white - black
    saturation = pure / (1 - black) if black < 1 else 0.0
    added = black * (1 - _DEEP * saturation**3)
    lifted = white * _LIFT * min(1.0, _PALE * pure)
    red, green, blue = (
        min(1.0, part - white + white * ground + lifted + added * ink)
        for part, ground, ink in zip(parts, GROUND, INK, strict=True)
    )
    return red, green, blue, alpha


def _darken_axis(axis: Axis) -> None:
    """Turn ticks, those to come too."""
    lines = axis.get_gridlines()
    grid: dict[str, Any] = {"grid_color": dark(lines[0].get_color())} if lines else {}
    axis.set_tick_params(which="both", color=INK, labelcolor=INK, **grid)


def _darken_artist(artist: Artist) -> None:
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    match artist:
        case Text():
            artist.set_color(dark(artist.get_color()))
        case Line2D():
            face, edge, line = artist.get_markerfacecolor(), artist.get_markeredgecolor(), artist.get_color()
            artist.set_color(dark(line))
            artist.set_markerfacecolor(dark(face))
            artist.set_markeredgecolor(dark(edge))
        case Collection():
            faces, edges = artist.get_facecolor(), artist.get_edgecolor()
            artist.set_facecolor([dark(one) for one in faces])
            artist.set_edgecolor([dark(one) for one in edges])
        case Patch():
            face, edge = artist.get_facecolor(), artist.get_edgecolor()
            artist.set_facecolor(dark(face))
            artist.set_edgecolor(dark(edge))
