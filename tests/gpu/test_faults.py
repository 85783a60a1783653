"""Faults on a CUDA device, those that leave its context of no further use too: each costs one trial, and the next is right."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from bench.policy import Policy
from bench.record import Failed, Measured
from bench.supervisor import Supervisor
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload

pytestmark = pytest.mark.gpu

SHAPE = ModelShape.preset("qwen3-235b-a22b")
SETTINGS = Settings.from_json({"path": "tp", "kernel": "fa2", "exchange": "alone"})
RIGHT = Case(SHAPE, DcpLayout(8, 1), Workload.parse("8q1s1k"), SETTINGS)
DEADLINE_S = 40.0
"""Of a case, with the start of its worker."""
WORKER = (sys.executable, "-m", "tests.gpu.faulty_kernels")
FAULTS = {"traps": "error", "reaches too far": "error", "takes too much": "out_of_memory"}


def _with_fault(name: str) -> Case:
    return replace(RIGHT, shape=replace(SHAPE, name=name))


def test_each_fault_costs_one_trial_and_the_next_is_right() -> None:
    faulty = [_with_fault(name) for name in FAULTS]
    cases = [RIGHT, *(case for fault in faulty for case in (fault, RIGHT))]
    with Supervisor(1, Policy(precision=0.1), command=WORKER) as supervisor:
        outcomes = [trial.outcome for trial in supervisor.measure(cases)]
    failed, right = outcomes[1::2], outcomes[::2]
    assert all(isinstance(outcome, Measured) and outcome.check.passed for outcome in right), right
    for outcome, (name, fault) in zip(failed, FAULTS.items(), strict=True):
        assert isinstance(outcome, Failed), name
        assert outcome.fault in (fault, "crashed"), (name, outcome)
    assert "illegal memory access" in str(failed[1])


def test_a_kernel_that_never_ends_costs_its_deadline_and_the_next_case_is_right() -> None:
    with Supervisor(1, Policy(precision=0.1), command=WORKER) as supervisor:
        (compiled,) = supervisor.measure([RIGHT])
    assert isinstance(compiled.outcome, Measured), compiled.outcome
    began = time.monotonic()
    with Supervisor(1, Policy(precision=0.1), command=WORKER, case_seconds=DEADLINE_S) as supervisor:
        hung, after = (trial.outcome for trial in supervisor.measure([_with_fault("spins"), RIGHT]))
    assert isinstance(hung, Failed)
    assert hung.fault == "timeout", hung
    assert isinstance(after, Measured), after
    assert after.check.passed
    assert time.monotonic() - began < 3 * DEADLINE_S
