"""The decision map: legal layouts only, told apart where what is known tells them apart, each number with its label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bench.recommend.decision import Origin, Standing
from bench.recommend.decision_map import Map, Phase, Row, maps_of
from bench.record import Label, Measured, Trial, latest
from bench.report import decision_map
from bench.report.dcp_choice import dcp_choices
from bench.shipped import reference_folder
from bench.store import Store, read_run
from dcp_core.settings import ExchangeName
from tests.bench.made_up import CPU, H200, QWEN, cases, trial, trials

SIMULATED: dict[str, object] = {"exchanges": ("loopback",), "kernels": ("fa2",)}
BATCHES = ("1q1s8k", "64q1s8k", "1q1s128k", "64q1s128k")


def pictures(found: list[Trial]) -> Mapping[str, Figure]:
    """The figures by name; a single one has none."""
    figures = decision_map.draw(found)
    assert not isinstance(figures, str), figures
    several = figures if isinstance(figures, Mapping) else {"": figures}
    return {name: figure for name, figure in several.items() if not isinstance(figure, str)}


def words(found: list[Trial]) -> str:
    texts = (text for figure in pictures(found).values() for text in figure.findobj(Text))
    return "\n".join(text.get_text() for text in texts if isinstance(text, Text))


def cell_words(found: list[Trial]) -> list[list[str]]:
    """What cells say of where their numbers come from, row by row."""
    axes = [axes for figure in pictures(found).values() for axes in figure.axes]
    lines = [text.get_text().split("\n") for one in axes for text in one.texts]
    return [[line for line in some if line in list(Label)] for some in lines]


def test_each_phase_has_a_map_of_contexts_and_rows() -> None:
    found = maps_of(trials(*BATCHES, "8q4s8k", "q2ks10k", "4q2ks10k", **SIMULATED))
    assert [one.subject.phase for one in found] == list(Phase)
    decode, drafted, chunks = found
    assert (decode.contexts, decode.rows) == ([8192, 131072], [Row(1, 1), Row(1, 64)])
    assert (drafted.contexts, drafted.rows) == ([8192], [Row(4, 8)])  # of 8188 tokens: 8k, as people say
    assert (chunks.contexts, chunks.rows) == ([8192], [Row(2048, 1), Row(2048, 4)])


def test_only_what_a_server_runs_is_on_a_map() -> None:
    assert maps_of(trial(one) for one in cases(BATCHES, dcps=(1, 4), exchanges=("loopback",))) == []
    mixed = trials("8q1s8k_q512s8k", **SIMULATED)
    assert maps_of(mixed) == []


def test_two_machines_have_a_map_each_and_the_picture_names_them() -> None:
    other = replace(H200, hard={**H200.hard, "device_name": "NVIDIA H100"})
    both = [trial(one, environment=where) for where in (H200, other) for one in cases(BATCHES, **SIMULATED)]
    assert [one.subject.deployment.device for one in maps_of(both)] == ["NVIDIA H100", "NVIDIA H200"]
    assert set(re.findall(r"tp 8, NVIDIA (H.00): decode", words(both))) == {"H100", "H200"}
    # dcp 1 of one machine and dcp 2 of another decide nothing.
    apart = [each for each in both if (each.case.layout.dcp == 1) is (each.environment == H200)]
    assert maps_of(apart) == []


def test_a_measured_group_goes_before_a_simulated_one_and_needs_no_bracket() -> None:
    (one,) = maps_of(trials("16q1s32k", "64q1s32k", kernels=("fa2",)))
    for decision in one.cells.values():
        two = decision.options[1]
        assert two.parts[0].step.label is Label.MEASURED
        assert not two.is_bracketed


def test_from_how_many_requests_on_dcp_pays_is_said_as_far_as_it_is_known() -> None:
    one = decodes_of(reference())
    assert one.break_even(32768) == (8, 8)
    assert one.break_even(131072) == (1, 1)
    assert one.break_even(1024) == (None, None)
    assert {each.layout.dcp for decision in one.cells.values() for each in decision.options} == {1, 2}


def test_messages_timed_warm_tell_of_the_exchange_of_cold_steps_and_have_no_place_themselves() -> None:
    cold = trials(*BATCHES, **SIMULATED)
    real = trials("1q1s2k", "8q1s2k", "64q1s2k", kernels=("fa2",), exchanges=("ag_rs",))
    warm = [replace(each, policy=replace(each.policy, cold=False), outcome=unflushed(each)) for each in real]
    (one,) = maps_of([*cold, *warm])
    assert one.contexts == [8192, 131072]
    larger = [decision.options[1] for decision in one.cells.values()]
    assert {part.exchange.origin for option in larger for part in option.parts} == {Origin.MODELLED}
    (alone,) = maps_of(cold)
    assert all(decision.options[1].is_bracketed for decision in alone.cells.values())
    eager = [replace(each, policy=replace(each.policy, graphs=False)) for each in warm]
    assert maps_of([*cold, *eager]) == [alone], "launches one by one are no messages of a graph"


def unflushed(one: Trial) -> Measured:
    assert isinstance(one.outcome, Measured)
    return replace(one.outcome, flushed_bytes=0)


def test_the_reference_has_messages_for_every_map_that_it_draws() -> None:
    for one in maps_of(latest(reference())):
        origins = {
            part.exchange.origin for each in one.cells.values() for option in each.options for part in option.parts
        }
        assert origins <= {Origin.NONE, Origin.MEASURED, Origin.MODELLED}, one.subject


def test_what_two_gpus_took_lies_within_the_bracket_of_what_one_told() -> None:
    runs = [read_run(path)[0] for path in (reference_folder() / "h200").glob("*.jsonl")]
    (everything,) = (
        run
        for run in runs
        if len({trial.ranks for trial in run}) == 2
        and len(run) > 100
        and all(trial.case.workload.is_decode for trial in run)
    )  # on one machine
    bracketed = decodes_of(trial for trial in everything if trial.ranks == 1)
    took = {
        trial.case.workload: trial.outcome.step_us.median
        for trial in everything
        if trial.case.settings.exchange is ExchangeName.AG_RS and isinstance(trial.outcome, Measured)
    }
    compared = 0
    for decision in bracketed.cells.values():
        two = decision.options[1]
        step_us = took.get(two.parts[0].step.workload)
        if step_us is not None and two.is_bracketed:
            compared += 1
            assert two.span.low_us <= step_us <= two.span.high_us
    assert compared >= 12


def reference() -> list[Trial]:
    return Store.read(reference_folder() / "h200")[0]


def decodes_of(found: Iterable[Trial]) -> Map:
    (one,) = (
        each
        for each in maps_of(found)
        if (each.subject.tp, each.subject.phase, each.subject.shape.name) == (8, Phase.DECODE, "qwen3-235b-a22b")
    )
    return one


def test_the_picture_says_what_is_simulated_assumed_and_open() -> None:
    shown = words(trials(*BATCHES, **SIMULATED))
    assert "measured: dcp 1; simulated: dcp 2" in shown
    assert "assumed, not measured there" in shown
    assert " via " not in shown, "of a simulation no exchange is known"
    assert "if exchange <" in shown
    assert "fits " in shown
    assert "pays from" in shown
    on_cpu = words([trial(one, environment=CPU) for one in cases(BATCHES, exchanges=("loopback",), kernels=("fa2",))])
    assert "nothing is assumed of this device's links" in on_cpu


def test_what_cannot_be_drawn_is_said() -> None:
    for found in ([], trials("16q1s32k", dcps=(1,)), trials("16q1s32k", **SIMULATED)):
        reason = decision_map.draw(found)
        assert isinstance(reason, str)
        assert reason.startswith("needs two batches")


def test_batches_of_different_kinds_are_said_to_be_that() -> None:
    assert "there is only one of" not in str(decision_map.draw([]))
    reason = decision_map.draw(trials("16q1s32k", "q2ks10k", **SIMULATED))
    assert isinstance(reason, str)
    assert "two batches or more of one kind" in reason
    name = "qwen3-235b-a22b, tp 8"
    assert reason.endswith(f"only one of {name}, decode; one of {name}, chunked prefill")
    other = replace(H200, hard={**H200.hard, "device_name": "NVIDIA H100"})
    apart = [trial(one, environment=where) for where in (H200, other) for one in cases(("16q1s32k",), **SIMULATED)]
    reason = decision_map.draw(apart)
    assert isinstance(reason, str)
    assert "NVIDIA H100, decode; one of" in reason, "kinds that differ by their machine name it"


def test_a_cell_says_whether_a_step_in_it_was_modelled_or_simulated() -> None:
    measured = trials("16q1s32k", "64q1s32k", kernels=("fa2",))
    assert cell_words(measured) == [[], []]
    assert "A cell says so" not in words(measured)
    simulated = trials("16q1s8k", "64q1s8k", **SIMULATED)
    assert cell_words(simulated) == [["simulated"], ["simulated"]]
    both = [*measured, *simulated]
    (one,) = maps_of(both)
    labels = [
        {part.step.label for option in one.cells[row, context].options for part in option.parts} - {Label.MEASURED}
        for row in one.rows
        for context in one.contexts
    ]
    assert cell_words(both) == [[str(label) for label in some] for some in labels]
    assert [] in cell_words(both)
    assert "A cell says so if a step that it compares was " in words(both)


def test_a_cell_of_modelled_steps_says_so_and_the_caption_what_that_means() -> None:
    found = reference()
    modelled = next(
        one
        for one in maps_of(found)
        if len(one.cells) > 1
        and {part.step.label for each in one.cells.values() for option in each.options for part in option.parts}
        == {Label.MEASURED, Label.MODELLED}
    )
    ours = [
        one for one in found if one.case.shape == modelled.subject.shape and one.case.layout.tp == modelled.subject.tp
    ]
    assert ["modelled"] in cell_words(ours)
    assert "modelled (one rank by itself, with its exchange's time from messages measured)" in words(ours)


def test_what_a_cell_says_stays_inside_it() -> None:
    batches = [f"{requests}q1s{context}" for requests in (1, 2, 4, 8, 16, 32, 64, 128) for context in ("8k", "32k")]
    for found in (trials(*batches, **SIMULATED), reference()):
        for axes in (axes for figure in drawn(found) for axes in figure.axes):
            cells = filled(axes)
            assert len(cells) == len(axes.texts)
            for cell, text in zip(cells, axes.texts, strict=True):
                said = text.get_window_extent()
                assert cell.x0 < said.x0 < said.x1 < cell.x1, text.get_text()
                assert cell.y0 < said.y0 < said.y1 < cell.y1, text.get_text()


def drawn(found: list[Trial]) -> list[Figure]:
    """Figures whose every part has its place."""
    figures = list(pictures(found).values())
    for figure in figures:
        figure.draw_without_rendering()
    return figures


def on_two_drivers(batches: Iterable[str], others: Iterable[str]) -> list[Trial]:
    """What was measured on GPUs of one kind with two drivers: maps that stand in one picture."""
    newer = replace(H200, hard={**H200.hard, "driver": "600"})
    return [*trials(*batches, **SIMULATED), *(trial(one, environment=newer) for one in cases(others, **SIMULATED))]


def filled(axes: Axes) -> list[Bbox]:
    return [patch.get_window_extent() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_lw()]


def test_a_map_of_many_contexts_is_no_wider_than_a_page_and_one_of_few_as_wide_as_these_need() -> None:
    many = [f"{requests}q1s{2**power}k" for requests in (1, 8) for power in range(decision_map.MAX_CONTEXTS + 2)]
    found = on_two_drivers([*many, "16q1s1k"], ["8q1s8k", "8q1s32k"])
    (figure,) = drawn(found)
    assert figure.bbox.width <= 2000
    decode, other = figure.axes
    contexts = [tick.get_text().split("\n")[0] for tick in decode.get_xticklabels()]
    assert contexts == [f"{2**power}k" for power in range(decision_map.MAX_CONTEXTS)]
    assert "2 more contexts were measured and not drawn." in words(found)
    assert len(other.get_xticklabels()) == 2
    assert other.bbox.x0 == pytest.approx(decode.bbox.x0)
    assert other.bbox.y1 < decode.bbox.y0
    assert other.bbox.width == pytest.approx(decode.bbox.width * 2 / decision_map.MAX_CONTEXTS)
    sizes = [(cell.width, cell.height) for axes in figure.axes for cell in filled(axes)]
    assert sizes == [pytest.approx(sizes[0])] * len(sizes)


def test_small_maps_stand_side_by_side() -> None:
    (figure,) = drawn(on_two_drivers([*BATCHES, "16q1s8k"], ["8q1s8k", "8q1s32k"]))
    decode, other = figure.axes
    assert decode.bbox.x1 < other.bbox.x0
    assert decode.bbox.y1 == pytest.approx(other.bbox.y1)
    sizes = [(cell.width, cell.height) for axes in figure.axes for cell in filled(axes)]
    assert sizes == [pytest.approx(sizes[0])] * len(sizes)


def test_the_cells_of_a_map_of_one_context_are_no_wider_than_others() -> None:
    (narrow,), (wide,) = (drawn(trials(*some, **SIMULATED)) for some in (BATCHES[:2], [*BATCHES, "1q1s1k", "8q1s32k"]))
    widths = {round(cell.width / figure.dpi, 1) for figure in (narrow, wide) for cell in filled(figure.axes[0])}
    assert len(widths) == 1


def test_each_model_tp_and_phase_has_a_picture_that_a_sheet_of_paper_holds() -> None:
    found = drawn(reference())
    names = list(pictures(reference()))
    assert len(names) > 6
    assert {"qwen3-235b-a22b-tp-8-decode", "qwen3-235b-a22b-tp-8-chunked-prefill"} <= set(names)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    for figure in found:
        (axes,) = figure.axes
        assert figure.get_figheight() < 297 / 210 * figure.get_figwidth()
        assert axes.get_title(loc="left")
        assert "more maps" not in "\n".join(text.get_text() for text in figure.texts)
    captions = ["\n".join(text.get_text() for text in figure.texts) for figure in found]
    assert ["Pays:" in one for one in captions] == [re.search(r"-\d+-decode$", name) is not None for name in names]
    assert all("Pays:" in one or "Pays, for each number of new tokens:" in one for one in captions)


def test_the_largest_of_many_maps_are_drawn_in_the_order_of_the_answers_and_the_others_counted() -> None:
    sizes = {"few": 2, "many": 4, "some": 3}
    found = [
        one
        for number, (name, count) in enumerate(sizes.items(), start=2)
        for one in trials(*BATCHES[:count], shape=replace(QWEN, name=name, layers=number), **SIMULATED)
    ]
    answers = [choice.subject.split(",")[0] for choice in dcp_choices(found)]
    assert list(pictures(found)) == [f"{name}-tp-8-decode" for name in answers]
    drawn = decision_map.draw(found, most=2)
    assert isinstance(drawn, Mapping)
    more = "1 more with fewer cells, which 'dcpbench plot --figure decision-map' draws"
    assert [*drawn] == ["many-tp-8-decode", "some-tp-8-decode", ""]
    assert drawn[""] == more


def test_a_name_that_no_file_may_have_is_none_of_a_picture() -> None:
    odd = replace(QWEN, name="../../a b/c", layers=5)
    found = [*trials(*BATCHES, **SIMULATED), *trials(*BATCHES, shape=odd, **SIMULATED)]
    assert list(pictures(found)) == ["a-b-c-tp-8-decode", "qwen3-235b-a22b-tp-8-decode"]


def test_an_unbounded_exchange_never_makes_dcp_win() -> None:
    found = maps_of(trial(one, environment=CPU) for one in cases(BATCHES, exchanges=("loopback",), kernels=("fa2",)))
    for decision in (decision for one in found for decision in one.cells.values()):
        assert decision.options[1].against(decision.base) is not Standing.FASTER


def test_lines_show_from_where_dcp_pays_and_up_to_where_requests_fit() -> None:
    one = decodes_of(reference())
    figure = decision_map.draw(one.trials)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert any("dcp 2, decode via direct" in text.get_text() for text in axes.texts)
    requests = [row.requests for row in one.rows]
    lines = [(line.get_gid(), *line.get_xdata(), line.get_ydata()[0]) for line in axes.lines]
    for column, context in enumerate(one.contexts):
        drawn = [y for name, left, _, y in lines if (name, left) == ("break-even", column - 0.5)]
        at_best, surely = one.break_even(context)
        assert drawn == ([requests.index(surely) - 0.5] if surely else []), context
        assert at_best == surely  # so that there is one line
    full = sorted(y for name, left, _, y in lines if (name, left) == ("capacity", one.contexts.index(131072) - 0.5))
    below = [
        sum(one <= fits for one in requests) - 0.5 for fits in (6, 13)
    ]  # what a cache of 40 GiB holds at dcp 1 and 2
    assert full == pytest.approx(below, abs=0.1)


def test_chunks_pay_from_a_line_on_that_each_number_of_new_tokens_has_for_itself() -> None:
    found = latest(reference())
    (one,) = (
        each
        for each in maps_of(found)
        if (each.subject.tp, each.subject.phase, each.subject.shape.name) == (8, Phase.CHUNKS, "qwen3-235b-a22b")
    )
    assert one.break_even(0, 2048) == (1, 1)
    assert one.break_even(8192, 2048) == (None, None)
    assert one.break_even(131072, 8192) == (4, None)
    (axes,) = pictures(found)["qwen3-235b-a22b-tp-8-chunked-prefill"].axes
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    contexts = [tick.get_text().split("\n")[0] for tick in axes.get_xticklabels()]
    lines = {
        (contexts[round(line.get_xdata()[0] + 0.5)], rows[round(line.get_ydata()[0] + 0.5)], line.get_linestyle())
        for line in axes.lines
        if line.get_gid() == "break-even"
    }
    assert {("0", "1 × 512", "-"), ("0", "1 × 2k", "-"), ("128k", "4 × 8k", ":")} <= lines
    assert not any(context == "8k" for context, _, _ in lines)


def test_the_legend_shows_a_whole_period_of_every_line() -> None:
    (figure,) = drawn(trials(*BATCHES, tp=32, dcps=(1, 2, 4, 8), **SIMULATED))
    (legend,) = figure.legends
    lines = [line for line in legend.get_lines() if line.get_label().endswith(" is full")]
    assert len(lines) == 4
    for line in lines:
        _, dashes = line._dash_pattern  # type: ignore[attr-defined]
        shown = line.get_window_extent().width * 72 / figure.dpi
        assert dashes is None or sum(dashes) < shown, line.get_label()


def test_a_picture_of_many_contexts_is_no_wider_than_can_be_read_where_a_page_shows_it_whole() -> None:
    """1246 px is what a report leaves a picture on a desk: its smallest words are 9 px high there, at least."""
    for figure in pictures(reference()).values():
        assert 7 / 72 * 1246 / figure.get_figwidth() >= 9
