"""The picture of what exchanges cost: who is fastest from where on, and how far the model may be trusted."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.collective import Reading, readings
from bench.record import Environment, Trial
from bench.report import exchange_cost
from bench.report.exchange_cost import break_even
from tests.bench.made_up import H200, summary, trials

SIZES = tuple(f"{tokens}q1s16" for tokens in (1, 64, 4096))


def exchanged(**choices: tuple[str, ...]) -> list[Trial]:
    return trials(*SIZES, dcps=(2,), kernels=("fa2",), **choices)


def timed(found: list[Reading], operation: str, exchange: str, times_us: tuple[float, ...]) -> list[Reading]:
    mine = [one for one in found if (one.operation, str(one.exchange)) == (operation, exchange)]
    by_size = sorted(mine, key=lambda one: one.tokens)
    return [replace(one, time_us=summary(time)) for one, time in zip(by_size, times_us, strict=True)]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")


def test_the_fastest_is_told_from_how_many_tokens_on() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct")))
    both = timed(found, "gather", "a2a", (9, 10, 50)) + timed(found, "gather", "direct", (4, 5, 60))
    assert break_even(both, "gather") == "Fastest gather: direct from 1, a2a from 4k tokens on."
    assert break_even(timed(found, "gather", "a2a", (9, 10, 50)), "gather") == "Fastest gather: a2a at every size."


def test_a_figure_states_model_error_and_link() -> None:
    linked = Environment(H200.hard, {"nvlinks": "18"})
    figure = exchange_cost.draw([replace(one, environment=linked) for one in exchanged(exchanges=("ag_rs", "direct"))])
    assert isinstance(figure, Figure)
    said = words(figure)
    for wanted in ("gather", "combine", "ag_rs", "direct", "dcp 2", "link limit", "a size left out is met within"):
        assert wanted in said, wanted


def test_without_real_ranks_there_is_nothing_to_draw() -> None:
    assert exchange_cost.draw(exchanged(exchanges=("loopback",))) == (
        "needs decode steps of two batch sizes or more, measured between real ranks"
    )
