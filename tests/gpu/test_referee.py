"""A second timer on a CUDA device: CUPTI sees the very repetitions that events time, and agrees with them."""

from __future__ import annotations

import pytest
import torch

from bench.audit import NULL, Audited
from bench.clock import REPETITIONS, CudaClock, floor_us
from bench.policy import Policy
from bench.supervisor import Supervisor
from bench.timeline import watch
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.settings import canonical

pytestmark = pytest.mark.gpu


def case(batch: str, dcp: int, **settings: object) -> Case:
    layout, workload, shape = DcpLayout(8, dcp), Workload.parse(batch), ModelShape.preset("qwen3-235b-a22b")
    chosen = Settings.from_json({"kernel": "fa2", "exchange": "loopback" if dcp > 1 else "alone", **settings})
    return Case(shape, layout, workload, canonical(chosen, layout, workload))


SHORT_US = 0.6
"""By how much timers may differ in what trials flag as short: what events do around a kernel differs from one to another."""


def test_events_and_cupti_agree_on_steps_and_stages_and_see_every_kernel() -> None:
    some = [case("64q1s32k", 1, path="tp"), case("q2ks8k", 2, path="split"), case("q2ks8k", 2, path="mask")]
    with Supervisor(1, Policy()) as supervisor:
        found = dict(supervisor.audit(some))
    for one in some:
        timed = found[one]
        assert isinstance(timed, list), timed
        null, step, *stages = timed
        assert isinstance(null, Audited)
        assert (null.stage, null.kernels) == (NULL, 1)
        assert step.kernels == sum(stage.kernels for stage in stages)
        short = [each for each in (step, *stages) if each.is_short(null)]
        assert all(each.agrees for each in (step, *stages) if each not in short), timed
        assert all(abs(each.apart_us) < SHORT_US for each in short), timed


RESOLUTION_US = 0.5
"""What the timer resolves."""


def test_replays_take_as_long_as_before_once_cupti_has_watched() -> None:
    device = torch.device("cuda", 0)
    clock, element = CudaClock(device, graphs=True, cold=True), torch.zeros(1, device=device)

    before = floor_us(clock, device)
    _, seen = watch(clock.prepare(element.zero_), REPETITIONS)
    assert seen
    assert floor_us(clock, device) == pytest.approx(before, abs=RESOLUTION_US)
