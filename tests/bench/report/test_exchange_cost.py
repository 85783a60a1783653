"""The picture of what exchanges cost: who is fastest from where on, and how far the model may be trusted."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.collective import Reading, readings
from bench.record import Environment, Measured, Trial
from bench.report import exchange_cost, style
from bench.report.exchange_table import Place, break_even, exchange_grids, places_of, readings_json
from dcp_core import ModelShape
from tests.bench.made_up import H200, summary, trials

SIZES = tuple(f"{tokens}q1s16" for tokens in (1, 64, 4096))


def exchanged(**choices: tuple[str, ...]) -> list[Trial]:
    return trials(*SIZES, dcps=(2,), kernels=("fa2",), **choices)


def timed(found: list[Reading], operation: str, exchange: str, times_us: tuple[float, ...]) -> list[Reading]:
    mine = [one for one in found if (one.operation, str(one.kind.exchange)) == (operation, exchange)]
    by_size = sorted(mine, key=lambda one: one.tokens)
    return [replace(one, time_us=summary(time)) for one, time in zip(by_size, times_us, strict=True)]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).replace("\n", " ")


def place(found: list[Reading], operation: str) -> Place:
    return next(one for one in places_of(found) if one.operation == operation)


def test_the_fastest_is_told_from_how_many_tokens_on() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct")))
    both = timed(found, "gather", "a2a", (9, 10, 50)) + timed(found, "gather", "direct", (4, 5, 60))
    assert break_even(both, place(both, "gather")) == "direct from 1, a2a from 4096 tokens on"
    alone = timed(found, "gather", "a2a", (9, 10, 50))
    assert break_even(alone, place(alone, "gather")) == "a2a at every size"


def test_a_lead_that_is_within_the_noise_changes_nobody_s_choice() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct")))
    close = timed(found, "gather", "a2a", (9, 9.99, 50)) + timed(found, "gather", "direct", (4, 10, 49.9))
    assert break_even(close, place(close, "gather")) == "direct at every size"


def test_nobody_leads_until_one_is_told_apart_from_every_other() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct", "ag_rs")))
    gathers = [
        *timed(found, "gather", "a2a", (9.99, 30, 50)),
        *timed(found, "gather", "direct", (10, 10, 20)),
        *timed(found, "gather", "ag_rs", (40, 40, 19.9)),
    ]
    asked = place(gathers, "gather")
    assert break_even(gathers, asked) == "level from 1, direct from 64 tokens on"
    assert break_even([one for one in gathers if one.tokens == 1], asked) == "level at every size"
    others = [one for one in gathers if one.kind.exchange == "a2a"]
    passed = [*others, *timed(found, "gather", "direct", (9, 30, 90)), *timed(found, "gather", "ag_rs", (40, 40, 50))]
    assert break_even(passed, asked) == "direct from 1, level from 4096 tokens on"
    correlated = [replace(one, correlated=True, time_us=summary(one.time_us.median, 0.4)) for one in gathers]
    assert break_even(correlated, asked) == "level from 1, direct from 64 tokens on"


def test_who_is_fastest_in_all_is_told_of_gather_and_combine_together() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct")))
    both = [
        *timed(found, "gather", "a2a", (10, 10, 10)),
        *timed(found, "gather", "direct", (4, 4, 4)),
        *timed(found, "combine", "a2a", (10, 10, 10)),
        *timed(found, "combine", "direct", (5, 5, 20)),
    ]
    assert break_even(both, place(both, "combine")) == "direct from 1, a2a from 4096 tokens on"
    assert break_even(both, place(both, "both")) == "direct from 1, a2a from 4096 tokens on"
    assert break_even(both, place(both, "gather")) == "direct at every size"


def test_groups_and_rows_of_other_sizes_are_compared_apart() -> None:
    small = ModelShape(32, 4, 128, 1)
    found = readings(
        [
            *exchanged(exchanges=("a2a", "direct")),
            *trials(*SIZES, dcps=(4,), kernels=("fa2",), exchanges=("a2a",)),
            *trials(*SIZES, dcps=(2,), kernels=("fa2",), exchanges=("a2a",), shape=small),
        ]
    )
    told = {(one.dcp, one.row.heads): break_even(found, one) for one in places_of(found) if one.operation == "gather"}
    assert told.keys() == {(2, 8), (4, 8), (2, 4)}
    assert told[4, 8] == told[2, 4] == "a2a at every size"


def test_sizes_that_one_exchange_lacks_decide_nothing() -> None:
    found = readings(exchanged(exchanges=("a2a", "direct")))
    lacking = timed(found, "gather", "a2a", (9, 10, 50)) + timed(found, "gather", "direct", (4, 5, 6))[:2]
    assert break_even(lacking, place(lacking, "gather")) == "direct at every size"


def test_the_tables_hold_every_message_and_fit_a_terminal() -> None:
    linked = Environment(H200.hard, {"nvlinks": "18"})
    sizes = ("1q1s16", "8q1s16", "64q1s16", "4096q1s16")
    found = trials(*sizes, dcps=(2,), kernels=("fa2",), exchanges=("ag_rs", "direct"))
    grids = exchange_grids([replace(one, environment=linked) for one in found])
    assert [grid.title.partition(",")[0].partition(":")[0] for grid in grids] == [
        "gather",
        "combine",
        "Fastest exchange by tokens",
        "Modelled as latency + bytes received / bandwidth",
    ]
    messages = grids[0]
    assert [row[0] for row in messages.rows] == ["1", "1", "8", "8", "64", "64", "4096", "4096"]
    assert messages.emphasized == {0, 2, 4, 6}
    assert messages.rows[-1][2] == "8.0 MiB"
    assert all(row[-1].endswith("%") for row in messages.rows)
    assert max(len(line) for grid in grids[:2] for line in grid.to_text().splitlines()) <= 80
    assert len(readings_json(found)) == 4 * len(sizes)


def test_the_tables_say_which_way_an_exchange_took_at_which_sizes() -> None:
    found = []
    for one in exchanged(exchanges=("a2a", "direct")):
        assert isinstance(one.outcome, Measured)
        way = ("large tiles" if one.case.workload.new_tokens > 64 else "small tiles") * (
            one.case.settings.exchange == "direct"
        )
        stages = tuple(replace(stage, variant=way if stage.communicates else "") for stage in one.outcome.stages)
        found.append(replace(one, outcome=replace(one.outcome, stages=stages)))
    gathers, combines, *_ = exchange_grids(found)
    assert gathers.footnotes == combines.footnotes
    assert gathers.footnotes == (
        "direct in small tiles at 1, 64 tokens.",
        "direct in large tiles at 4096 tokens.",
    )
    assert {one["variant"] for one in readings_json(found)} == {"", "small tiles", "large tiles"}


def test_eager_and_graphs_have_tables_of_their_own() -> None:
    replayed = exchanged(exchanges=("a2a",))
    eager = []
    for one in replayed:
        assert isinstance(one.outcome, Measured)
        outcome = replace(one.outcome, timer="cuda_events")
        eager.append(replace(one, policy=replace(one.policy, graphs=False), outcome=outcome))
    titles = [grid.title for grid in exchange_grids([*replayed, *eager])]
    assert sum(title.endswith(": NVIDIA H200, eager") for title in titles) == 4
    assert exchange_grids(exchanged(exchanges=("loopback",))) == []


def test_a_figure_states_model_error_and_link() -> None:
    linked = Environment(H200.hard, {"nvlinks": "18"})
    figure = exchange_cost.draw([replace(one, environment=linked) for one in exchanged(exchanges=("ag_rs", "direct"))])
    assert isinstance(figure, Figure)
    said = words(figure)
    for wanted in ("gather", "combine", "ag_rs", "direct", "dcp 2", "link limit", "a size left out within 0%"):
        assert wanted in said, wanted


def test_panels_are_those_in_graphs_over_the_widest_range_of_tokens() -> None:
    wide = exchanged(exchanges=("a2a",))
    shapes = [ModelShape(heads, 4, 128, 1) for heads in (16, 32, 48, 96)]
    narrow = [
        one
        for shape in shapes
        for one in trials(
            "1q1s16", "8q1s16", dcps=(2,), kernels=("fa2",), exchanges=("a2a", "ag_rs", "direct"), shape=shape
        )
    ]
    eager = [replace(one, policy=replace(one.policy, graphs=False)) for one in wide]
    figure = exchange_cost.draw([*narrow, *eager, *wide])
    assert isinstance(figure, Figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0].startswith("gather, rows of 8x128 in 2 bytes, measured")
    assert [title.split(" of ")[1].split("x")[0] for title in titles] == ["8", "8", "12", "12", "6", "6"]
    assert not any("eager" in title for title in titles)
    assert "3 more kinds of row or ways of timing are not shown." in words(figure)


def test_the_link_is_in_the_legend_only_if_it_is_in_a_panel() -> None:
    linked = Environment(H200.hard, {"nvlinks": "18"})
    for sizes, is_seen in ((("1q1s16", "8q1s16"), False), (SIZES, True)):
        found = trials(*sizes, dcps=(2,), kernels=("fa2",), exchanges=("direct",))
        figure = exchange_cost.draw([replace(one, environment=linked) for one in found])
        assert isinstance(figure, Figure)
        lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == "link"]
        assert bool(lines) is is_seen
        assert ("link limit" in words(figure)) is is_seen
        for axes in figure.axes:
            seen = [line for line in axes.lines if line.get_gid() == "link"]
            assert all(max(line.get_ydata()) > axes.get_ylim()[0] for line in seen)


def test_who_of_nccl_s_two_is_faster_is_told_where_another_exchange_stands_beside_them() -> None:
    told = "Of NCCL's a2a and ag_rs, gather and combine together: a2a at every size."
    for exchanges, is_told in (
        (("a2a", "ag_rs", "direct"), True),
        (("a2a", "ag_rs"), False),
        (("a2a", "direct"), False),
    ):
        found = []
        for one in exchanged(exchanges=exchanges):
            assert isinstance(one.outcome, Measured)
            factor = {"a2a": 1.0, "ag_rs": 1.5, "direct": 0.5}[one.case.settings.exchange]
            stages = tuple(
                replace(stage, device_us=summary(stage.device_us.median * factor)) for stage in one.outcome.stages
            )
            found.append(replace(one, outcome=replace(one.outcome, stages=stages)))
        figure = exchange_cost.draw(found)
        assert isinstance(figure, Figure)
        assert (told in words(figure)) is is_told


def test_without_real_ranks_there_is_nothing_to_draw() -> None:
    assert exchange_cost.draw(exchanged(exchanges=("loopback",))) == (
        "needs decode steps of two batch sizes or more, measured between real ranks"
    )


def test_a_line_stands_where_another_exchange_becomes_the_fastest() -> None:
    found = exchanged(exchanges=("a2a", "direct"))

    def slower(one: Trial) -> Trial:
        """Make direct lose from 4096 tokens on."""
        outcome = one.outcome
        assert isinstance(outcome, Measured)
        factor = 9.0 if (one.case.settings.exchange, one.case.workload.new_tokens) == ("direct", 4096) else 1.0
        factor *= 0.5 if one.case.settings.exchange == "direct" else 1.0
        stages = tuple(replace(stage, device_us=summary(stage.device_us.median * factor)) for stage in outcome.stages)
        return replace(one, outcome=replace(outcome, stages=stages))

    figure = exchange_cost.draw(list(map(slower, found)))
    assert isinstance(figure, Figure)
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "break-even"] == [4096]
        assert [text.get_text().strip() for text in axes.texts] == ["a2a from 4k"]
    alike = exchange_cost.draw(found)
    assert isinstance(alike, Figure)
    assert not [line for axes in alike.axes for line in axes.lines if line.get_gid() == "break-even"]


def test_an_exchange_looks_like_no_path_and_no_kernel() -> None:
    """They stand beside one another in the roofline."""
    assert not set(exchange_cost.MARKERS.values()) & set(style.KERNEL_MARKERS.values())
    exchanges, paths = (
        {one.lower() for one in colours.values()} for colours in (exchange_cost.COLOURS, style.PATH_COLOURS)
    )
    assert not exchanges & paths
