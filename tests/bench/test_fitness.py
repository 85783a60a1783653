"""Whether a machine is fit to measure, on scripted machines that are and that are not."""

from __future__ import annotations

import pytest

from bench.fitness import HIGH_FLOOR_US, Finding, answer, fitness, timer
from bench.record import Environment
from tests.bench.test_environment import ScriptedNvml, machine

__all__ = ["machine"]

FITTING = Environment({"cuda": "13.0", "flashinfer": "0.7.2.post1"}, {"driver_cuda": "13.2"})
QUIET: dict[str, object] = {"reasons": 0x1, "running": ()}


def looked_at(machine: ScriptedNvml, **state: object) -> dict[str, Finding]:
    """Return by name what is found of a machine that is fit but for some state."""
    for name, value in (QUIET | state).items():
        setattr(machine, name, value)
    return {finding.about: finding for finding in fitness(FITTING)}


def test_of_a_machine_that_is_fit_everything_is_told_and_nothing_has_to_be_done(machine: ScriptedNvml) -> None:
    found = looked_at(machine)
    each = {"other work", "slowed by", "SM clock", "power", "persistence"}
    whole = {"GPU 0 and 1: each other's memory", "CUDA", "FlashInfer"}
    assert found.keys() == {f"GPU {index}: {what}" for index in range(2) for what in each} | whole
    assert [str(finding) for finding in found.values() if finding.advice or finding.is_unfit] == []
    assert found["GPU 1: SM clock"].found == "up to 1980 of 1980 MHz"


@pytest.mark.parametrize(
    ("state", "about", "found", "advice"),
    [
        ({"reasons": 0x40}, "GPU 0: slowed by", "hardware thermal slowdown", "let it rest"),
        ({"reasons": 0x4}, "GPU 0: slowed by", "software power cap", "its power limit lowers its clocks"),
        ({"clock_mhz": 1500}, "GPU 0: SM clock", "up to 1500 of 1980 MHz", "times are those of this clock"),
        ({"limit_mw": 450_000}, "GPU 0: power", "up to 450 of 700 W", "long passes will lower its clocks"),
        ({"persistence": 0}, "GPU 0: persistence", "off", "nvidia-smi -pm 1"),
        ({"reached": 5, "count": 2}, "GPU 0 and 1: each other's memory", "out of reach", "exchange direct needs it"),
    ],
)
def test_what_spoils_a_measurement_is_named_with_what_to_do_and_nothing_else_is(
    machine: ScriptedNvml, state: dict[str, object], about: str, found: str, advice: str
) -> None:
    everything = looked_at(machine, **{"count": 1} | state)
    assert everything[about].found == found
    assert advice in everything[about].advice
    assert not everything[about].is_unfit
    assert [name for name, finding in everything.items() if finding.advice] == [about]


def test_other_work_on_a_device_makes_it_unfit(machine: ScriptedNvml) -> None:
    found = looked_at(machine, running=("theirs",))["GPU 0: other work"]
    assert found.is_unfit
    assert str(found).startswith(
        "GPU 0: other work: process 4242 (theirs); end what runs there, or choose another device"
    )


@pytest.mark.parametrize(("built", "unfit"), [("12.8", False), ("13.9", False), ("14.0", True)])
def test_a_driver_too_old_for_torch_is_unfit(built: str, unfit: bool) -> None:
    (found,) = (one for one in fitness(Environment({"cuda": built}, {"driver_cuda": "13.0"})) if one.about == "CUDA")
    assert found.is_unfit is unfit
    assert found.found == f"torch is for {built}, the driver for up to 13.0"
    assert bool(found.advice) is unfit


def test_a_flashinfer_whose_workspace_nobody_read_is_named() -> None:
    old, new = (fitness(Environment({"flashinfer": version}))[-1].advice for version in ("0.7.2.post1", "0.8.0rc1"))
    assert not old
    assert "computes the workspace of 0.7.2" in new


def test_what_a_device_cannot_tell_is_left_out(machine: ScriptedNvml) -> None:
    machine.broken = {
        "nvmlDeviceGetApplicationsClock",
        "nvmlDeviceGetPersistenceMode",
        "nvmlDeviceGetPowerManagementLimit",
    }
    assert looked_at(machine, count=1).keys() == {"GPU 0: other work", "GPU 0: slowed by", "CUDA", "FlashInfer"}


def test_a_high_floor_of_the_timer_is_named() -> None:
    assert timer(4.8) == Finding("timer's floor", "4.8 µs")
    assert "measure when it does not" in timer(HIGH_FLOOR_US + 1).advice


@pytest.mark.parametrize(
    ("advice", "problem", "on_gpu", "said"),
    [
        ("", "", True, "Yes."),
        ("let it rest", "", True, "Yes, but see below what to do."),
        ("let it rest", "GPU 0: other work: none ends it.", True, "No: GPU 0: other work: none ends it."),
        ("", "", False, "To try things out: there is no GPU, and times of a CPU are no advice for one."),
        ("", "no kernel runs here", False, "No: no kernel runs here."),
    ],
)
def test_whether_a_machine_is_fit_is_answered_in_a_sentence(advice: str, problem: str, on_gpu: bool, said: str) -> None:
    findings = [Finding("GPU 0: power", "up to 700 of 700 W"), Finding("GPU 0: slowed by", "heat", advice)]
    assert answer(findings, problem, on_gpu=on_gpu) == said
