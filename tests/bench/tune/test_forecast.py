"""How long a search will take, foretold: held against searches that an H200 was timed with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.policy import Policy
from bench.profile.entry import default_settings
from bench.record import Environment
from bench.tune.forecast import Forecast, forecast, whole_seconds
from bench.tune.loop import search
from bench.tune.paper import MADE_UP_ON, Paper, made_up_table, told_apart
from bench.tune.space import Available, batches_of, everything
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, KernelName
from dcp_core.shapes import ModelShape, Workload

H200 = "NVIDIA H200"
ENVIRONMENT = Environment({"device_name": H200}, {"compute_capability": "9.0"})
ALL = Available((KernelName.FA2, KernelName.FA3, KernelName.CUDA_CORE, KernelName.PERSISTENT), ())
BATCHES = ("16q1s32k", "64q1s32k", "q512s8704", "8q4s32k", "q2ks32k")
TOOK_S = 46.0
"""Searching everything for these at dcp 1 and 2 (simulated) on an H200, 2026-11-24: 1536 candidates, 406 of them screened.

Since then ``fold`` has learnt to be replayable: 90 candidates more.
"""


def cases(dcp: int) -> list[Case]:
    shape, layout = ModelShape.preset("qwen3-235b-a22b"), DcpLayout(8, dcp)
    settings = {batch: default_settings(layout, Workload.parse(batch)) for batch in BATCHES}
    found = [Case(shape, layout, Workload.parse(batch), settings[batch]) for batch in BATCHES]
    silent = ExchangeName.ALONE if dcp == 1 else ExchangeName.LOOPBACK
    return [replace(case, settings=replace(case.settings, exchange=silent)) for case in found]


def test_a_search_of_everything_on_an_h200_takes_about_what_was_foretold() -> None:
    batches = batches_of(everything([*cases(1), *cases(2)], ALL), ENVIRONMENT, cold=True)
    assert sum(len(batch.candidates) for batch in batches) == 1626
    found = [forecast(batch, (), Policy(), H200) for batch in batches]
    assert TOOK_S / 1.5 < whole_seconds(found, 1, H200) < 1.5 * TOOK_S


def test_what_is_known_or_will_not_run_takes_no_time() -> None:
    table = made_up_table()
    batch = told_apart(table, MADE_UP_ON)[0]
    paper = Paper(table, lambda _, source: 1.0, seed=0)
    trials = [*search([batch], (), paper, now=lambda: 0.0)][-1][1]
    whole, half, end = (forecast(batch, known, Policy(), H200) for known in ((), trials[: len(trials) // 3], trials))
    assert whole.search_s > half.search_s > 0
    assert end == Forecast()
    assert forecast(batch, (), Policy(), H200, hopeless=batch.candidates) == Forecast()
    assert whole_seconds([end], 2, H200) == 0


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_budget_takes_its_share_of_both_parts(share: float) -> None:
    assert Forecast(8.0, 2.0).within(share) == Forecast(8.0 * share, 2.0 * share)
