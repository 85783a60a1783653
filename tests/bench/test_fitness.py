"""Whether a machine is fit to measure, on scripted machines that are and that are not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

import bench.fitness
from bench.environment import pace
from bench.fitness import HIGH_FLOOR_US, Finding, answer, at_work, fitness, timer
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


@pytest.mark.parametrize("name", HIGH_FLOOR_US)
def test_a_high_floor_is_named_of_the_timer_that_was_used(name: str) -> None:
    assert timer(name, 4.8) == Finding("timer's floor", "4.8 µs")
    assert "measure when it does not" in timer(name, HIGH_FLOOR_US[name] + 1).advice


def test_a_floor_in_graphs_is_high_long_before_one_on_a_host_is() -> None:
    assert timer("cuda_graph_events", 20.0).advice
    assert not timer("host", 20.0).advice


def test_a_clock_that_is_locked_is_seen_at_work_alone(machine: ScriptedNvml) -> None:
    assert not [one for one in looked_at(machine, sm_mhz=1500, reasons=0).values() if one.advice]
    first, second = at_work([pace(0), {"sm_mhz": "1935", "event_reasons": "none"}])
    assert (first.about, first.found) == ("GPU 0: SM clock at work", "1500 of 1980 MHz")
    assert "nvidia-smi -rgc" in first.advice
    assert second == Finding("GPU 1: SM clock at work", "1935 of 1980 MHz")


def test_of_a_clock_at_work_nothing_is_told_where_the_device_rests_or_cannot_tell(machine: ScriptedNvml) -> None:
    assert list(at_work([{"sm_mhz": "345", "event_reasons": "idle"}, {}])) == []
    machine.broken = {"nvmlDeviceGetMaxClockInfo"}
    assert list(at_work([{"sm_mhz": "345", "event_reasons": "none"}])) == []


class Packages:
    """What is installed, each with its version and what it asks for."""

    def __init__(self, **installed: tuple[str, list[str]]) -> None:
        self._installed = installed

    def version(self, name: str) -> str:
        return self._of(name)[0]

    def requires(self, name: str) -> list[str] | None:
        return self._of(name)[1] or None

    def _of(self, name: str) -> tuple[str, list[str]]:
        try:
            return self._installed[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None


def asked_of(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is said of a machine with these packages alone."""
    monkeypatch.setattr(bench.fitness, "version", packages.version)
    monkeypatch.setattr(bench.fitness, "requires", packages.requires)
    return list(map(str, fitness(Environment({}, {}))))


def test_a_version_that_torch_or_flashinfer_does_not_ask_for_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asks = [
        "triton==3.6.0; sys_platform == 'linux'",
        "nvidia-nccl-cu13==2.28.9",
        "optree>=9; extra == 'optree'",
        "sympy",
    ]
    found = asked_of(
        Packages(
            torch=("2.11.0", asks),
            flashinfer_python=("0.7.2", ["torch>2.11", "click"]),
            triton=("3.7.0", []),
            nvidia_nccl_cu13=("2.28.9", []),
            optree=("1.0", []),
            sympy=("1.0", []),
        ),
        monkeypatch,
    )
    assert found == [
        "triton: 3.7.0, but torch 2.11.0 asks for ==3.6.0; install both (pip install 'torch' 'triton==3.6.0')",
        "torch: 2.11.0, but flashinfer-python 0.7.2 asks for >2.11; install both (pip install 'flashinfer-python' 'torch>2.11')",
    ]


def test_of_what_is_not_installed_or_nobody_can_read_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of(Packages(), monkeypatch) == []
    asks = ["nvidia-nccl-cu13==2.28.9", "no requirement at all !!", "triton==3.6.0"]
    assert asked_of(Packages(torch=("2.11.0", asks), triton=("a build of ours", [])), monkeypatch) == []


def test_what_the_packages_of_this_machine_ask_for_is_here() -> None:
    assert fitness(Environment({}, {})) == []


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
