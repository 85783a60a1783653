"""The picture of what dcp does to KV memory: bytes per token, and the requests that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.record import Measured, Trial
from bench.report import style
from dcp_core.layout import DcpLayout, legal_dcps
from dcp_core.memory import KvMemory, format_size
from dcp_core.shapes import ModelShape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGET_BYTES = 40 << 30
"""For the KV cache of one rank, where nobody says otherwise."""
LENGTH = 32 * 1024
"""Tokens of a request, where nobody says otherwise."""
MAX_MODELS = 6
_BAR = "#56B4E9"
_ALLOCATED = "#CC79A7"


def draw(trials: Sequence[Trial], *, budget: int = BUDGET_BYTES, length: int = LENGTH) -> Figure | str:
    """Draw KV bytes per token and rank, and the requests that fit, per legal dcp of each model and tp in the trials.

    Bars are computed from the model's shape; crosses are what trials allocated for one layer, times the layers.

    Returns:
        The figure, or why there is none.
    """
    models = list(dict.fromkeys((trial.case.shape, trial.case.layout.tp) for trial in trials))
    models = [(shape, tp) for shape, tp in models if legal_dcps(shape, tp)]
    if not models:
        return "needs a case whose tp is legal for its model"
    shown = models[:MAX_MODELS]
    with style.styled():
        figure, axes = style.panels(2 * len(shown), width=3.3, height=2.5, columns=2 if len(shown) <= 3 else 4)
        for index, (shape, tp) in enumerate(shown):
            sizes = [KvMemory(shape, DcpLayout(tp, dcp)) for dcp in legal_dcps(shape, tp)]
            _draw_bytes(axes[2 * index], sizes, _allocated(trials, shape, tp))
            _draw_requests(axes[2 * index + 1], sizes, budget, length)
        style.title(figure, "KV cache of one rank")
        notes = [
            "Bars: computed from the model's shape, pages of 16 tokens.",
            f"Requests: of {style.tokens(length)} tokens, in {format_size(budget)} of KV cache on each rank.",
        ]
        if any(_allocated(trials, shape, tp) for shape, tp in shown):
            notes[0] += " Crosses: one layer's pages as trials allocated them, times the layers."
        if len(models) > len(shown):
            notes.append(style.not_shown(len(models) - len(shown), "model", "models"))
        style.finish(figure, [], trials, *notes)
    return figure


def _allocated(trials: Sequence[Trial], shape: ModelShape, tp: int) -> list[tuple[int, float]]:
    """Return (dcp, bytes per token of all layers) of the trial that allocated most at each dcp: rounding counts least there."""
    most: dict[int, tuple[int, float]] = {}
    for trial in trials:
        case = trial.case
        if (
            isinstance(outcome := trial.outcome, Measured)
            and (case.shape, case.layout.tp) == (shape, tp)
            and outcome.kv_bytes
        ):
            total = sum(case.workload.total_lens)
            if total > most.get(case.layout.dcp, (0, 0.0))[0]:
                most[case.layout.dcp] = (total, outcome.kv_bytes * shape.layers / total)
    return [(dcp, per_token) for dcp, (_, per_token) in sorted(most.items())]


def _draw_bytes(axes: Axes, sizes: Sequence[KvMemory], allocated: Sequence[tuple[int, float]]) -> None:
    values = [size.bytes_per_token / 1024 for size in sizes]
    names = [f"dcp {size.layout.dcp}" for size in sizes]
    bars = axes.bar(names, values, width=0.6, color=_BAR)
    axes.bar_label(bars, [f"{value:.4g} KiB" for value in values], padding=7, fontsize=8)
    places = {size.layout.dcp: name for size, name in zip(sizes, names, strict=True)}
    known = [(places[dcp], per_token / 1024) for dcp, per_token in allocated if dcp in places]
    axes.plot([name for name, _ in known], [value for _, value in known], "x", color=_ALLOCATED, ms=7, mew=2)
    axes.set_ylabel("KiB per token and rank")
    _finish(axes, sizes, max([*values, *(value for _, value in known)]))


def _draw_requests(axes: Axes, sizes: Sequence[KvMemory], budget: int, length: int) -> None:
    counts = [size.requests_in(budget, length) for size in sizes]
    bars = axes.bar([f"dcp {size.layout.dcp}" for size in sizes], counts, width=0.6, color=_BAR)
    axes.bar_label(bars, [str(count) for count in counts], padding=2, fontsize=8)
    axes.set_ylabel(f"requests of {style.tokens(length)} that fit")
    _finish(axes, sizes, max(counts) or 1)


def _finish(axes: Axes, sizes: Sequence[KvMemory], top: float) -> None:
    axes.set_ylim(0, top * 1.18)
    axes.set_xlim(-0.75, len(sizes) - 0.25)
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{sizes[0].shape.name}, tp {sizes[0].layout.tp}", loc="left")
