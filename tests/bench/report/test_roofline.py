"""The roofline: what a stage reached is its work over its time, and nothing that was measured beats the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.collective import NVLINK_BYTES_PER_US, link_bytes_per_us
from bench.record import Measured, Trial
from bench.report import roofline
from bench.report.roofline import LIMITS, Point, points_of
from bench.shipped import reference_folder
from bench.store import Store
from dcp_core.cost import step_work
from tests.bench.made_up import CPU, H200, cases, trial, trials

LINKED = replace(H200, soft={"nvlinks": "18"})


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)).split())


def drawn(found: list[Trial]) -> Figure:
    figure = roofline.draw(found)
    assert isinstance(figure, Figure), figure
    return figure


def test_every_stage_whose_work_is_known_has_its_work_and_its_time() -> None:
    found = points_of(trials("q2ks34k", dcps=(2,), exchanges=("ag_rs",)))
    assert list(found) == ["attention", "context", "new", "merge", "gather", "combine"]
    for name, points in found.items():
        for point in points:
            assert point.work in step_work(point.trial.case)
            assert point.work.stage == name == point.stage.name


def test_a_point_lies_at_its_work_over_its_time() -> None:
    found = trials("q2ks34k", dcps=(1,), kernels=("fa2",))
    figure = drawn(found)
    ((point,),) = points_of(found).values()
    (x,), (y,) = figure.axes[0].containers[0].lines[0].get_data()
    assert x == pytest.approx(point.work.flops / point.work.bytes_moved)
    assert y * point.stage.device_us.median == pytest.approx(point.work.flops * 1e-6)


def test_nothing_that_was_measured_beats_the_datasheet_or_the_link() -> None:
    limit = LIMITS["NVIDIA H200"]

    def least_us(point: Point) -> float:
        work = point.work
        wire_us = work.wire_bytes / link_bytes_per_us(point.trial.environment) if work.wire_bytes else 0.0
        return max(1e6 * work.flops / limit.flops_per_s, 1e6 * work.bytes_moved / limit.bytes_per_s, wire_us)

    found = points_of(Store.read(reference_folder() / "h200")[0])
    shares = {
        name: max(least_us(point) / point.stage.device_us.median for point in points) for name, points in found.items()
    }
    assert all(share < 1 for share in shares.values()), shares
    assert shares["attention"] > 0.9  # and some come near


def test_exchanges_that_were_simulated_and_passes_over_a_warm_cache_are_left_out() -> None:
    simulated = points_of(trials("q2ks34k", dcps=(2,), exchanges=("loopback",)))
    assert not {"gather", "combine"} & simulated.keys()
    warm = []
    for one in trials("q2ks34k", dcps=(2,), exchanges=("ag_rs",)):
        assert isinstance(one.outcome, Measured)
        warm.append(replace(one, outcome=replace(one.outcome, flushed_bytes=0)))
    assert list(points_of(warm)) == ["gather", "combine"]


def test_limits_are_those_of_the_device_or_none() -> None:
    chosen = list(cases(["q2ks34k"], dcps=(2,), exchanges=("ag_rs",)))
    known = drawn([trial(one, environment=LINKED) for one in chosen])
    limits = {axes.get_title(loc="left"): sum(line.get_gid() == "limit" for line in axes.lines) for axes in known.axes}
    assert limits == {"attention": 2, "context": 2, "new": 2, "merge": 1, "gather": 1, "combine": 1}
    elsewhere = drawn([trial(one, environment=CPU) for one in chosen])
    assert not any(line.get_gid() == "limit" for axes in elsewhere.axes for line in axes.lines)
    assert "No limits of arithmetic and memory" in words(elsewhere)


def test_the_link_is_told_where_it_is_drawn_and_each_one_is_drawn_once() -> None:
    told = f"Link: {NVLINK_BYTES_PER_US / 1e3:.1f} GB/s of each NVLink, one way."
    chosen = list(cases(["q2ks34k", "q2ks32k"], dcps=(2,), exchanges=("ag_rs",)))
    assert told not in words(drawn([trial(one) for one in chosen]))
    assert told in words(drawn([trial(one, environment=LINKED) for one in chosen]))
    fewer = replace(H200, soft={"nvlinks": "8"})
    places = [LINKED if one.workload.total_lens == (34 * 1024,) else fewer for one in chosen]
    assert set(map(id, places)) == {id(LINKED), id(fewer)}
    figure = drawn([trial(one, environment=place) for one, place in zip(chosen, places, strict=True)])
    for axes in (one for one in figure.axes if one.get_title(loc="left") in ("gather", "combine")):
        heights = [line.get_ydata()[0] for line in axes.lines if line.get_gid() == "limit"]
        assert heights == pytest.approx([links * NVLINK_BYTES_PER_US / 1e3 for links in (8, 18)])
        assert {"link, 213 GB/s", "link, 479 GB/s"} <= {text.get_text() for text in axes.texts}


def test_stages_without_a_point_are_counted() -> None:
    found = trials("q2ks34k", dcps=(2,), kernels=("fa2",), exchanges=("ag_rs",))
    assert "Not drawn" not in words(drawn(found))
    (split,) = (one for one in found if one.case.settings.path == "split")
    assert isinstance(split.outcome, Measured)
    gather, *others = split.outcome.stages
    stages = (replace(gather, name="gather beside new"), *others, replace(gather, name="fold", communicates=False))
    other = replace(split, outcome=replace(split.outcome, stages=stages))
    assert "Not drawn: 2 stages (1 of fold, 1 of gather beside new), since" in words(drawn([other]))
