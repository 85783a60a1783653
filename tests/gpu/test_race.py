"""Races on a CUDA device: what FlashInfer's kernels take in turns agrees with what each takes by itself."""

from __future__ import annotations

import pytest

from bench.policy import Policy
from bench.record import Heat, Label, Measured
from bench.supervisor import Supervisor
from bench.tune.known import REPEATS, paired
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.settings import canonical

pytestmark = pytest.mark.gpu

POLICY = Policy(precision=0.02, max_samples=60, max_seconds=0.3)


def cases(batch: str, *settings: dict[str, object], dcp: int = 2) -> list[Case]:
    layout, workload, shape = DcpLayout(8, dcp), Workload.parse(batch), ModelShape.preset("qwen3-235b-a22b")
    chosen = [Settings.from_json({"exchange": "loopback", **one}) for one in settings]
    return [Case(shape, layout, workload, canonical(one, layout, workload)) for one in chosen]


@pytest.mark.parametrize("batch", ["16q1s32k", "4q8s32k", "q2ks8k"])
def test_cases_open_together_are_right_and_take_what_each_takes_alone(batch: str) -> None:
    some = cases(
        batch,
        {"path": "split", "kernel": "fa2"},
        {"path": "fold", "kernel": "fa2"},
        {"path": "mask", "kernel": "fa2"},
        {"path": "split", "kernel": "fa2", "page_size": 32},
        {"path": "split", "kernel": "fa2", "replayable": True},
    )
    with Supervisor(1, POLICY) as supervisor:
        screened = supervisor.race(some, Heat.SCREENED, rounds=1, repeats=REPEATS)
        raced = supervisor.race(some[:3], Heat.RACED, rounds=10, repeats=REPEATS)
        again = supervisor.race(some[:3], Heat.RACED, rounds=10, repeats=REPEATS)
        alone = list(supervisor.measure(some[:3]))
    for trial in [*screened, *raced, *again, *alone]:
        assert isinstance(trial.outcome, Measured), trial.outcome
        assert trial.outcome.label is Label.SIMULATED
        assert trial.outcome.timer == "cuda_graph_events"
    for one, other, by_itself in zip(raced, again, alone, strict=True):
        assert isinstance(one.outcome, Measured)
        assert isinstance(other.outcome, Measured)
        assert isinstance(by_itself.outcome, Measured)
        assert one.outcome.step_us.median == pytest.approx(other.outcome.step_us.median, rel=0.05)
        assert one.outcome.step_us.median == pytest.approx(by_itself.outcome.step_us.median, rel=0.1)
    comparison = paired([raced[0], again[0]], [raced[1], again[1]], Heat.RACED)
    assert comparison is not None
    assert comparison.pairs == 20


def test_a_confirmation_on_a_device_times_every_stage() -> None:
    some = cases("16q1s32k", {"path": "decode", "kernel": "fa2"}, {"path": "decode", "kernel": "fa3"})
    with Supervisor(1, POLICY) as supervisor:
        for trial in supervisor.race(some, Heat.CONFIRMED, rounds=2, repeats=REPEATS, whole=True):
            if isinstance(trial.outcome, Measured):
                assert trial.outcome.is_whole
                assert trial.outcome.plan
