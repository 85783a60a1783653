"""Faults on a CUDA device, those that leave its context of no further use too: each costs one trial, and the next is right."""

from __future__ import annotations

import sys
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
FAULTS = {"traps": "error", "reaches too far": "error", "takes too much": "out_of_memory"}


def test_each_fault_costs_one_trial_and_the_next_is_right() -> None:
    faulty = [replace(RIGHT, shape=replace(SHAPE, name=name)) for name in FAULTS]
    cases = [RIGHT, *(case for fault in faulty for case in (fault, RIGHT))]
    worker = (sys.executable, "-m", "tests.gpu.faulty_kernels")
    with Supervisor(1, Policy(precision=0.1), command=worker) as supervisor:
        outcomes = [trial.outcome for trial in supervisor.measure(cases)]
    failed, right = outcomes[1::2], outcomes[::2]
    assert all(isinstance(outcome, Measured) and outcome.check.passed for outcome in right), right
    for outcome, (name, fault) in zip(failed, FAULTS.items(), strict=True):
        assert isinstance(outcome, Failed), name
        assert outcome.fault in (fault, "crashed"), (name, outcome)
    assert "illegal memory access" in str(failed[1])
