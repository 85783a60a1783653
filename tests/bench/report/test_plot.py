"""Pictures: drawn from trials alone, the same file for the same trials, and a reason where there is nothing to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text

from bench.files import StorageError
from bench.record import Environment, Failed, Label, Measured, Trial
from bench.report import breakdown, kv_memory, latency, mask_cost, pareto, style, timeline, tuned
from bench.report.plot import FIGURES, Draw, Drawn, NotDrawn, Saved, draw_all, figures, save_all
from dcp_core import DcpLayout, ModelShape
from dcp_core.memory import KvMemory
from dcp_core.settings import KernelName, PathName
from tests.bench.made_up import CPU, summary, trials
from tests.bench.report.test_timeline import split, traced

CONTEXTS = ("16q1s8k", "16q1s32k", "16q1s128k", "q512s8k", "q512s32k", "64q1s8k", "256q1s8k")


LEAST_PIXELS = 7.0
"""Size of letters, at half the size of a PNG: captions have 7.3 there, and can be read."""


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def drawn(draw: Callable[..., Figure | str], found: list[Trial]) -> Figure:
    figure = draw(found)
    assert isinstance(figure, Figure), figure
    return figure


def every(draw: Draw, found: list[Trial]) -> list[Figure]:
    """The figures of a kind: of decision maps there are several."""
    figures = draw(found)
    assert not isinstance(figures, str), figures
    several = list(figures.values()) if isinstance(figures, Mapping) else [figures]
    return [figure for figure in several if not isinstance(figure, str)]


def test_every_picture_is_saved_as_png_and_svg_with_its_caption(tmp_path: Path) -> None:
    found = list(save_all(trials(*CONTEXTS), tmp_path, command="dcpbench plot last"))
    maps = ["decision-map-qwen3-235b-a22b-tp-8-decode", "decision-map-qwen3-235b-a22b-tp-8-chunked-prefill"]
    assert [picture.name for picture in found] == [*maps, *list(FIGURES)[1:]]
    for picture in found:
        assert isinstance(picture, Saved)
        png, svg = picture.files
        assert png.read_bytes().startswith(b"\x89PNG")
        assert svg.read_text(encoding="utf-8").count("<svg") == 1


def test_no_picture_mixes_trials_that_were_timed_in_other_ways(tmp_path: Path) -> None:
    found = trials("16q1s8k", "16q1s32k", dcps=(1,), kernels=("fa2",))
    eager = [replace(one, policy=replace(one.policy, graphs=False)) for one in found]
    left_out, latency_alone = save_all([*eager, *found], tmp_path, command="x", names=["latency"])
    assert left_out == NotDrawn("timed otherwise", "2 of 4 trials, warm or eager, which no picture mixes")
    assert isinstance(latency_alone, Saved)
    (usual,) = save_all(found, tmp_path / "usual", command="x", names=["latency"])
    assert isinstance(usual, Saved)
    assert usual.files[1].read_bytes() == latency_alone.files[1].read_bytes()


def test_a_map_and_what_exchanges_cost_see_what_was_timed_otherwise_too() -> None:
    found = trials("16q1s8k", "16q1s32k", dcps=(1,), kernels=("fa2",))
    eager = [replace(one, policy=replace(one.policy, graphs=False)) for one in found]
    seen: dict[str, int] = {}

    def recorder(name: str) -> Draw:
        return lambda shown: str(seen.setdefault(name, len(shown)))

    list(draw_all([*eager, *found], command="x", draws={name: recorder(name) for name in FIGURES}))
    assert {name for name, count in seen.items() if count == 4} == {"decision-map", "exchange-cost"}
    assert set(seen.values()) == {2, 4}


def test_the_same_trials_give_the_same_bytes(tmp_path: Path) -> None:
    found = trials("16q1s8k", "16q1s32k", kernels=("fa2",))
    first, second = ([*save_all(found, tmp_path / name, command="x", names=["latency"])] for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Saved)
        assert isinstance(other, Saved)
        assert [file.read_bytes() for file in one.files] == [file.read_bytes() for file in other.files]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", ["bell\x07\x1b[2J\n\x00", "x" * 5000, "模型", "a\ud800b", r"$\frac{1}$"], ids=ascii)
def test_whatever_a_file_calls_things_the_pictures_are_whole(bad: str) -> None:
    from xml.etree import ElementTree

    found = []
    for one in trials(*CONTEXTS, shape=replace(ModelShape.preset("qwen3-235b-a22b"), name=bad), kernels=("fa2",)):
        outcome, environment = one.outcome, Environment({"device_name": bad, bad: bad})
        assert isinstance(outcome, Measured)
        stages = tuple(replace(stage, name=f"{bad}: {stage.name}") for stage in outcome.stages)
        found.append(replace(one, outcome=replace(outcome, stages=stages), environment=environment, time=bad))
    names = [name for name in FIGURES if name != "exchange-cost"]  # which looks for stages by their whole names
    for picture in draw_all(found, command=f"dcpbench plot {bad[:9]}", names=names, formats=("svg",)):
        assert isinstance(picture, Drawn)
        root = ElementTree.fromstring(picture.contents[0])  # ours
        width, height = (float(root.get(side, "").removesuffix("pt")) for side in ("width", "height"))
        assert 300 < width < 1300
        assert 150 < height < 1300
    assert style.name("x" * 5000) == "x" * 59 + "…"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(figure: Figure, file: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    found = trials("16q1s8k", "16q1s32k", kernels=("fa2",))
    list(save_all(found, tmp_path, command="x", names=["latency"]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("bench.files.os.fsync", lambda descriptor: full(Figure(), descriptor))
    with pytest.raises(StorageError, match="no space left"):
        list(save_all(found[:-1], tmp_path, command="y", names=["latency"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_where_lines_are_not_joined_each_dcp_of_a_batch_is_written_below_its_markers() -> None:
    batches = [f"{count}q1s1k_q128s640" for count in range(1, 14)]
    figure = drawn(latency.draw, [*trials(*batches), *trials("q512", "q512s1k_8q1s1k", dcps=(2,))])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [tick.get_text() for tick in axes.get_xticklabels(minor=True)]
    assert names == ["1", "2"] * 13 + ["2"] * 2
    boxes = [tick.get_window_extent() for tick in axes.get_xticklabels(minor=True)]
    assert all(box.x1 + box.width / 2 < other.x0 for box, other in pairwise(boxes)), "no two are read as one"
    below = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert not any(box.overlaps(other) for box in boxes for other in below)
    marks = {(to_hex(line.get_markeredgecolor()), x) for line in axes.lines for x in line.get_xdata()}
    of_tp = sorted(x for colour, x in marks if colour == style.PATH_COLOURS[PathName.TP])
    assert of_tp == pytest.approx(sorted(axes.get_xticks(minor=True)[:26:2]))
    assert "Figures below markers: dcp." in words(figure)
    assert not any(text.get_text().startswith("dcp ") for text in figure.legends[0].get_texts())


@pytest.mark.parametrize("draw", [latency.draw, pareto.draw, tuned.draw], ids=["latency", "pareto", "tuned"])
def test_whose_marker_a_step_of_several_kernels_has_is_said_where_there_is_one(
    draw: Callable[..., Figure | str],
) -> None:
    note = "(fa3+fa2) have the marker of the first, which passes over the context."
    found = trials("q2ks32k", "q512s8k", dcps=(1, 2), kernels=("fa2", "fa3", "auto"), exchanges=("ag_rs",))
    assert note not in words(drawn(draw, found))
    both = [one for one in found if one.case.settings.path is PathName.SPLIT and one.case.settings.kernel == "fa3"]
    mixed = [
        replace(one, case=replace(one.case, settings=replace(one.case.settings, new_kernel=KernelName.FA2)))
        for one in both
    ]
    assert isinstance(mixed[0].outcome, Measured)
    faster = [replace(one, outcome=replace(one.outcome, step_us=summary(1.0))) for one in mixed]
    assert note in " ".join(words(drawn(draw, [*found, *faster])).split())


def test_a_label_s_key_is_not_a_kernel_s() -> None:
    keys = style.keys([], [], [KernelName.REFERENCE], [Label.MEASURED])
    assert [type(key).__name__ for key in keys] == ["Line2D", "Patch"]


def test_nothing_measured_is_a_reason_and_no_file(tmp_path: Path) -> None:
    failed = [replace(one, outcome=Failed("error", "boom")) for one in trials("q8s1k", kernels=("fa2",))]
    found = list(save_all(failed, tmp_path, command="x", names=["latency", "mask-cost", "breakdown"]))
    assert all(isinstance(picture, NotDrawn) and picture.reason.startswith("needs ") for picture in found)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot write"):
        list(save_all(trials("q8s1k", "q8s2k", kernels=("fa2",)), blocked / "plots", command="x"))


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_every_axis_has_a_name_and_the_caption_says_where_it_was_measured(draw: Draw) -> None:
    for figure in every(draw, trials(*CONTEXTS)):
        assert "NVIDIA H200" in words(figure)
        assert "torch 2.11.0" in words(figure)
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_xticklabels()
            assert axes.get_ylabel() or axes.get_yticklabels() or axes is not figure.axes[0]
            assert axes.get_title(loc="left")


def test_every_environment_is_named_where_there_are_several() -> None:
    here, there = trials("16q1s8k", kernels=("fa2",)), trials("16q1s32k", kernels=("fa2",))
    assert "NVIDIA H200" in style.provenance(here)
    mixed = [*here, *(replace(one, environment=CPU) for one in there)]
    assert "NVIDIA H200" in style.provenance(mixed)
    assert "A CPU" in style.provenance(mixed)


def test_the_caption_says_which_dcpbench_made_the_trials_most_of_them_first() -> None:
    found = trials("16q1s8k", "16q1s32k", kernels=("fa2",))
    assert style.provenance(found) == (
        "NVIDIA H200 (driver 580.95, flashinfer 0.7.2.post1, torch 2.11.0); dcpbench of unknown version; 2026-02-03"
    )

    def made_by(*names: str) -> str:
        places = [replace(one.environment, soft={"dcpbench": name}) for one, name in zip(found, names, strict=False)]
        made = [replace(one, environment=place) for one, place in zip(found, places, strict=False)]
        return style.provenance(made).split("; ")[1]

    assert made_by("0.1.0", "0.1.0") == "dcpbench 0.1.0"
    assert made_by("1b24316437ae", "21b5fe96f108", "21b5fe96f108") == "dcpbench 21b5fe96f108 and 1 more"
    assert made_by("5c17cfa2309a", "21b5fe96f108-dirty", "0.1.0", "21b5fe96f108-dirty").endswith("-dirty and 2 more")


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_caption_is_no_wider_than_its_picture_however_much_there_is_to_say(draw: Draw) -> None:
    hard = {f"library {number}": "1.2.3.post4" for number in range(12)} | {"device_name": "NVIDIA H200"}
    place = Environment(hard, {"dcpbench": "21b5fe96f108-dirty"})
    for figure in every(draw, [replace(one, environment=place) for one in trials(*CONTEXTS)]):
        figure.draw_without_rendering()
        (caption,) = (text for text in figure.texts if text.get_gid() == "caption")
        assert "dcpbench 21b5fe96f108-dirty" in " ".join(caption.get_text().split())
        box = caption.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_latency_has_a_panel_per_batch_shape_and_context_along_x() -> None:
    figure = drawn(latency.draw, trials(*CONTEXTS))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["qwen3-235b-a22b, tp 8\n1 request, 512 new", "qwen3-235b-a22b, tp 8\n16 requests, 1 new"]
    assert all(axes.get_xlabel().startswith("context") for axes in figure.axes)
    assert "8k" in [tick.get_text() for tick in figure.axes[1].get_xticklabels()]


def test_numbers_of_tokens_are_not_written_over_each_other() -> None:
    figure = drawn(latency.draw, trials("q2k", "q2ks10k", "q2ks32k", "q2ks34k", "q2ks130k", kernels=("fa2",)))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "8k", "32k", "128k"]


def test_latency_falls_back_to_new_tokens_and_then_to_batches() -> None:
    by_new = drawn(latency.draw, trials("q512", "q2k", "q8k", kernels=("fa2",)))
    assert by_new.axes[0].get_xlabel().startswith("new tokens")
    by_batch = drawn(latency.draw, trials("q512", "8q1s1k", "4q1s1k_q128s640", kernels=("fa2",)))
    assert [tick.get_text() for tick in by_batch.axes[0].get_xticklabels()] == ["q512", "8q1s1k", "4q1s1k_q128s640"]


def test_latency_is_drawn_over_context_and_over_new_tokens_where_both_vary() -> None:
    figure = drawn(latency.draw, trials("q512s8k", "q512s32k", "q2ks33k", "q4ks35k", kernels=("fa2",)))
    names = [axes.get_xlabel() for axes in figure.axes]
    assert names == ["context per request, tokens", "new tokens per request"]
    many = trials(
        *(f"{count}q{new}s{new + context}" for count in range(1, 10) for new in (64, 512) for context in (8192, 16384)),
        kernels=("fa2",),
    )
    names = [axes.get_xlabel() for axes in drawn(latency.draw, many).axes]
    assert len(names) == latency.MAX_PANELS
    assert names.count("new tokens per request") == style.PANELS_PER_ROW


def test_no_line_leads_from_a_decode_to_more_new_tokens() -> None:
    figure = drawn(latency.draw, trials("8q1s8k", "8q1s32k", "8q4s8195", "8q8s8199", kernels=("fa2",)))
    over_new = next(axes for axes in figure.axes if axes.get_xlabel().startswith("new tokens"))
    assert [tick.get_text() for tick in over_new.get_xticklabels()] == ["4", "8"]


def test_a_path_has_its_colour_and_a_simulation_hollow_markers() -> None:
    figure = drawn(latency.draw, trials("16q1s8k", "16q1s32k", kernels=("fa2",)))
    entries = {
        text.get_text(): handle
        for text, handle in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert to_hex(entries["split"].get_color()) == style.PATH_COLOURS[PathName.SPLIT].lower()
    assert to_hex(entries["simulated"].get_facecolor()) == "#ffffff"
    assert to_hex(entries["measured"].get_facecolor()) != "#ffffff"
    assert {"dcp 1", "dcp 2", "fa2"} <= entries.keys()


def test_measured_modelled_and_simulated_are_three_looks_in_grey_too() -> None:
    def grey(colour: object) -> float:
        red, green, blue = to_rgb(colour)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    for path in PathName:
        marks = [
            style.Mark((1, 1, 1), (1, 1, 1), style.PATH_COLOURS[path], "o", style.LABEL_FILL[one]) for one in Label
        ]
        axes = Figure().subplots()
        style.scatter(axes, marks)
        insides = sorted(grey(line.get_markerfacecolor()) for line in axes.lines)
        assert len(insides) == len(Label)
        assert all(other - one > 0.15 for one, other in pairwise(insides)), path
        assert {to_hex(line.get_markeredgecolor()) for line in axes.lines} == {style.PATH_COLOURS[path].lower()}
    keys = style.keys([], [], [], list(Label))
    assert [key.get_label() for key in keys] == [str(label) for label in Label]
    swatches = sorted(grey(key.get_facecolor()) for key in keys if isinstance(key, Patch))
    assert all(other - one > 0.2 for one, other in pairwise(swatches))


def test_each_line_of_latency_is_named_where_it_ends() -> None:
    figure = drawn(latency.draw, trials("16q1s8k", "16q1s32k", "16q1s128k", "q512s8k", "q512s32k"))
    figure.draw_without_rendering()
    assert "Beside each line: its path and dcp." in words(figure)
    for axes in figure.axes:
        names = [text for text in axes.texts if isinstance(text, Annotation)]
        lines = [line for line in axes.lines if line.get_linestyle() != "None"]
        ends = Counter(
            (to_hex(style.ink(line.get_color())), float(line.get_xdata()[-1]), float(line.get_ydata()[-1]))
            for line in lines
        )
        assert ends == Counter((to_hex(name.get_color()), *map(float, name.xy)) for name in names)
        paths = {to_hex(style.ink(colour)): str(path) for path, colour in style.PATH_COLOURS.items()}
        for name in names:
            path, dcp = name.get_text().split()
            assert path == paths[to_hex(name.get_color())]
            assert (dcp == "1") == (path == "tp")
        boxes = sorted((Text.get_window_extent(name) for name in names), key=lambda box: box.y0)
        assert all(box.x0 > axes.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        leaders = [name.arrow_patch.get_window_extent() for name in names if name.arrow_patch]
        assert len(leaders) == len(names)
        assert max(leader.x1 for leader in leaders) < min(box.x0 for box in boxes), "no thin line runs through a name"


@pytest.mark.filterwarnings("error")
def test_a_step_of_no_time_at_all_has_no_place_on_a_logarithmic_axis_and_no_name() -> None:
    found = []
    for one in trials("16q1s8k", "16q1s32k", kernels=("fa2",)):
        assert isinstance(one.outcome, Measured)
        is_nothing = one.case.settings.path is PathName.TP
        found.append(replace(one, outcome=replace(one.outcome, step_us=summary(0.0))) if is_nothing else one)
    figure = drawn(latency.draw, found)
    figure.draw_without_rendering()
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names
    assert "tp 1" not in names


@pytest.mark.parametrize("heights", [[0.5], [0.5] * 4, [0.0] * 3, [1.0] * 3, [0.1, 0.12, 0.8], [0.4] * 40])
def test_names_of_lines_stay_in_order_apart_and_beside_the_panel(heights: list[float]) -> None:
    places = latency._spread(heights)
    gap = min(latency.ROOM_OF_A_NAME, 1 / max(1, len(heights) - 1))
    assert all(other - one >= gap - 1e-9 for one, other in pairwise(places))
    assert -1e-9 <= places[0] <= places[-1] <= 1 + 1e-9
    far = [height for height in heights if all(abs(height - other) > 3 * gap for other in heights if other != height)]
    assert all(height in places for height in far if heights.count(height) == 1)


def test_every_path_kernel_and_dcp_has_a_mark_of_its_own() -> None:
    assert len(set(style.PATH_COLOURS.values())) == len(PathName) == len(style.PATH_COLOURS)
    assert len(set(style.KERNEL_MARKERS.values())) == len(KernelName) == len(style.KERNEL_MARKERS)
    assert len({str(style.line_of(dcp)) for dcp in (1, 2, 4, 8)}) == 4


def test_what_a_mask_costs_is_building_planning_and_running() -> None:
    found = trials("q2ks32k", exchanges=("loopback",), forms=("bool",))
    figure = drawn(mask_cost.draw, found)
    (axes,) = figure.axes
    masked = next(one.outcome for one in found if one.case.settings.path is PathName.MASK)
    assert isinstance(masked, Measured)
    widths = [bar.get_width() for bar in axes.patches[:3]]
    building, planning = (stage.host_us.median for stage in masked.plan)
    assert widths == pytest.approx([building, planning, masked.step_us.median])
    assert "94 layers" in words(figure)


def test_a_mask_is_compared_on_its_own_layout_only() -> None:
    apart = [
        one
        for one in trials("q2ks32k", dcps=(2, 4), exchanges=("loopback",))
        if (one.case.settings.path is PathName.MASK) == (one.case.layout.dcp == 2)
    ]
    assert mask_cost.draw(apart) == "needs one batch measured with path mask and with split or fold, on the same layout"


def test_what_was_measured_is_not_drawn_simulated_as_well() -> None:
    figure = drawn(mask_cost.draw, trials("q2ks32k"))
    assert [axes.get_title(loc="left").endswith("measured") for axes in figure.axes] == [True]


def test_the_breakdown_stacks_stages_and_leaves_out_what_was_not_timed() -> None:
    figure = drawn(breakdown.draw, trials("q2ks32k", kernels=("fa2",), dcps=(2,)))
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"gather", "context", "new", "combine", "merge"} <= set(entries)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert any(name.endswith("simulated") for name in names)
    simulated = drawn(breakdown.draw, trials("q2ks32k", kernels=("fa2",), dcps=(2,), exchanges=("loopback",)))
    assert "gather" not in [text.get_text() for text in simulated.legends[0].get_texts()]
    assert "not measured" in words(simulated)


def test_names_of_bars_do_not_touch_however_much_stands_below_them() -> None:
    found = trials("q8ks32k", kernels=("fa2",), exchanges=("ag_rs", "loopback"))
    place = Environment({f"library {number}": "1.2.3.post4" for number in range(30)})
    for some in (found, [replace(one, environment=place) for one in found]):
        figure = drawn(breakdown.draw, some)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
        assert len(boxes) > 4
        assert all(lower.y1 < upper.y0 for upper, lower in pairwise(boxes))


def test_the_host_s_share_of_planning_and_its_launches_lie_below_each_step() -> None:
    (one,) = trials("q2ks32k", kernels=("fa2",), dcps=(1,))
    figure = drawn(breakdown.draw, [one, *trials("q2ks32k", kernels=("fa2",), dcps=(2,), exchanges=("ag_rs",))])
    assert isinstance(one.outcome, Measured)
    planning, launching = breakdown.host_us(one.outcome)
    assert planning == pytest.approx(one.outcome.plan_us / one.outcome.layers)
    assert launching == one.outcome.launch_us.median
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches if bar.get_height() < 0.2]
    assert widths[:2] == pytest.approx([planning, launching])
    entries = {text.get_text() for text in figure.legends[0].get_texts()}
    assert breakdown.HOST_COLOURS.keys() <= entries


def test_the_breakdown_says_how_far_the_intervals_that_it_does_not_draw_reach() -> None:
    one, *_ = trials("q2ks32k", kernels=("fa2",), dcps=(2,), exchanges=("ag_rs",))
    assert isinstance(one.outcome, Measured)
    first, *others = one.outcome.stages
    wide = replace(first.device_us, high=1.2 * first.device_us.median)
    launch = replace(
        one.outcome.launch_us, min=0.3 * one.outcome.launch_us.median, low=0.4 * one.outcome.launch_us.median
    )
    outcome = replace(one.outcome, stages=(replace(first, device_us=wide), *others), launch_us=launch)
    said = " ".join(words(drawn(breakdown.draw, [replace(one, outcome=outcome)])).split())
    assert "which reach up to 20 % from them for stages, 60 % for the host." in said


def test_host_time_beyond_the_panel_is_written() -> None:
    slow = []
    for one in trials("q2ks32k", kernels=("fa2",), dcps=(2,), exchanges=("ag_rs",)):
        assert isinstance(one.outcome, Measured)
        slow.append(replace(one, outcome=replace(one.outcome, launch_us=summary(1e6))))
    figure = drawn(breakdown.draw, slow)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    told = [text.get_window_extent() for text in axes.texts if text.get_text() == "→ 1 s"]
    assert len(told) == len(axes.get_yticklabels())
    bars = [bar.get_window_extent() for bar in axes.patches]
    others = [text.get_window_extent() for text in axes.texts if not text.get_text().startswith("→")]
    assert not any(box.overlaps(other) for box in told for other in (*bars, *others))
    assert not any(one.overlaps(other) for one, other in pairwise(told))
    assert all(box.x1 <= figure.bbox.x1 for box in told)


def test_a_decode_step_is_broken_down_with_each_exchange_and_any_other_with_its_fastest() -> None:
    everything = trials("16q1s32k", "q2ks32k", kernels=("fa2",), exchanges=("loopback", "ag_rs", "a2a", "direct"))
    panels = {}
    for axes in drawn(breakdown.draw, everything).axes:
        names = [tick.get_text().replace("\n", " ") for tick in axes.get_yticklabels()]
        panels[axes.get_title(loc="left").split("\n")[1]] = [name for name in names if name.endswith(" measured")]
    decodes = [f"decode, dcp 2, fa2 {exchange} measured" for exchange in ("a2a", "ag_rs", "direct")]
    assert [name for name in panels["16q1s32k"] if name.startswith("decode")] == decodes
    assert sum(name.startswith("split") for name in panels["q2ks32k"]) == 1


def test_too_many_batches_are_counted_and_not_crowded() -> None:
    many = trials(*(f"{count}q1s8k" for count in range(1, 12)), kernels=("fa2",), exchanges=("ag_rs",))
    figure = drawn(breakdown.draw, many)
    assert len(figure.axes) == breakdown.MAX_PANELS
    assert "5 more batches" in words(figure)


def test_kv_memory_shows_every_legal_dcp_and_what_was_allocated() -> None:
    figure = drawn(kv_memory.draw, trials("q1s32k", tp=16, dcps=(1, 2, 4), kernels=("fa2",)))
    sizes, requests = figure.axes
    heights = [bar.get_height() for bar in sizes.patches]
    shape = ModelShape.preset("qwen3-235b-a22b")
    assert heights == [KvMemory(shape, DcpLayout(16, dcp)).bytes_per_token / 1024 for dcp in (1, 2, 4)]
    assert sizes.lines[0].get_ydata() == pytest.approx(heights, rel=0.01)
    assert [bar.get_height() for bar in requests.patches] == [27, 54, 108]


def test_what_fits_is_told_of_the_room_that_was_asked_for() -> None:
    found = trials("8q1s32k", "64q1s32k", kernels=("fa2",))
    draws = figures(budget=10 << 30, length=128 * 1024)
    assert "Requests: of 128k tokens, in 10.0 GiB" in words(drawn(draws["kv-memory"], found))
    assert "computed for 10.0 GiB of KV cache" in words(drawn(draws["pareto"], found))
    assert "Fits: requests of that context in 10.0 GiB" in words(drawn(draws["decision-map"], found))
    memory = KvMemory(ModelShape.preset("qwen3-235b-a22b"), DcpLayout(8, 2))
    axes = drawn(draws["kv-memory"], found).axes[1]
    assert axes.patches[1].get_height() == memory.requests_in(10 << 30, 128 * 1024)


def test_many_models_stand_beside_each_other_and_those_left_out_are_counted() -> None:
    shape = ModelShape.preset("qwen3-235b-a22b")
    shapes = [replace(shape, layers=layers) for layers in range(1, kv_memory.MAX_MODELS + 2)]
    figure = drawn(kv_memory.draw, [one for shape in shapes for one in trials("8q1s1k", shape=shape, kernels=("fa2",))])
    assert figure.get_figwidth() > figure.get_figheight()
    assert "1 more model was measured and not drawn." in words(figure)


def test_no_words_run_into_each_other() -> None:
    for figure in (figure for draw in FIGURES.values() for figure in every(draw, trials(*CONTEXTS))):
        figure.draw_without_rendering()
        below = [text.get_window_extent() for text in figure.texts if text.get_gid() == "caption"]
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        legends = [legend.get_window_extent() for legend in figure.legends]
        for caption in below:
            assert not any(caption.overlaps(box) for box in (*boxes, *legends))
        for first, second in pairwise(boxes):
            assert not first.overlaps(second)


def least_pixels(figure: Figure) -> float:
    """Size of the smallest letters, at half the size of the figure's PNG."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return min(text.get_fontsize() for text in texts if text.get_text().strip()) * figure.dpi / 72 / 2


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_every_word_can_be_read_at_half_size(draw: Draw) -> None:
    assert min(map(least_pixels, every(draw, trials(*CONTEXTS)))) >= LEAST_PIXELS


def test_so_can_names_of_kernels_in_a_lane_and_those_of_dcp_below_markers() -> None:
    lanes = drawn(timeline.draw, [split(), traced()])
    assert "BatchPrefillWithPagedKVCacheKernel" in words(lanes)
    batches = drawn(latency.draw, trials("8q1s1k_q128s640", "4q1s1k_q128s640"))
    assert "Figures below markers: dcp." in words(batches)
    assert min(map(least_pixels, (lanes, batches))) >= LEAST_PIXELS


@pytest.mark.parametrize(
    ("value_us", "shown"),
    [
        (0, "0"),
        (0.5, "500 ns"),
        (0.9996, "1 µs"),
        (12.34, "12.3 µs"),
        (999.6, "1 ms"),
        (999_700, "1 s"),
        (2.5e9, "2500 s"),
    ],
)
def test_times_in_pictures_have_three_figures_and_no_exponent(value_us: float, shown: str) -> None:
    assert style.duration(value_us) == shown


@pytest.mark.parametrize(
    ("tokens", "shown"), [(1000, "1000"), (8191, "8k"), (8000, "7.81k"), (131_072, "128k"), (1 << 20, "1024k")]
)
def test_tokens_in_pictures_are_told_up_to_the_longest_contexts(tokens: int, shown: str) -> None:
    assert style.tokens(tokens) == shown
