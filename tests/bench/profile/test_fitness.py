"""Whether a profile holds on the machine at hand: what is refused, what is said, and what plays no part."""

from __future__ import annotations

import pytest

from bench.profile.fitness import Fitness, fitness
from bench.record import Environment

HARD = {"device_name": "NVIDIA H200", "driver": "580", "flashinfer": "0.7.2", "torch": "2.11.0", "nccl": "2.28.9"}
SOFT = {"sm_count": "132", "cpu": "a CPU", "python": "3.12"}
H200 = Environment(HARD, SOFT)


def changed(name: str, value: str | None) -> Environment:
    """Return the H200 with one field at another value, or without it."""
    fields = ({**one, name: value} if name in one else one for one in (HARD, SOFT))
    hard, soft = ({key: text for key, text in one.items() if text is not None} for one in fields)
    return Environment(hard, soft)


def test_on_the_same_machine_there_is_nothing_to_say() -> None:
    assert fitness(H200, H200, gpu_here=True) == Fitness()


@pytest.mark.parametrize(
    ("name", "value"),
    [("device_name", "NVIDIA H100"), ("sm_count", "66"), ("flashinfer", "0.8.0"), ("torch", "2.13.0")],
)
def test_another_gpu_flashinfer_or_torch_is_refused(name: str, value: str) -> None:
    found = fitness(H200, changed(name, value), gpu_here=True)
    assert found.refusals == (f"{name} {({**HARD, **SOFT})[name]} there, {value} here",)
    assert found.warnings == ()


@pytest.mark.parametrize(("name", "value"), [("driver", "590"), ("nccl", "2.29")])
def test_another_driver_or_library_is_said(name: str, value: str) -> None:
    found = fitness(H200, changed(name, value), gpu_here=True)
    assert (found.refusals, found.warnings) == ((), (f"{name} {HARD[name]} there, {value} here",))


@pytest.mark.parametrize(("name", "value"), [("cpu", "another CPU"), ("python", "3.13")])
def test_what_no_kernel_feels_plays_no_part(name: str, value: str) -> None:
    assert fitness(H200, changed(name, value), gpu_here=True) == Fitness()


def test_what_one_side_does_not_know_is_said_and_not_refused() -> None:
    found = fitness(H200, changed("flashinfer", None), gpu_here=True)
    assert (found.refusals, found.warnings) == ((), ("flashinfer 0.7.2 there, unknown here",))


def test_without_a_gpu_here_a_gpus_profile_is_read_for_another_machine() -> None:
    assert fitness(H200, Environment({"device_name": "a CPU"}), gpu_here=False) == Fitness(elsewhere=True)


def test_of_two_cpus_everything_is_said_and_nothing_refused() -> None:
    one, other = (
        Environment({"device_name": "a CPU", "torch": "2.11"}),
        Environment({"device_name": "b", "torch": "2.11"}),
    )
    assert fitness(one, one, gpu_here=False) == Fitness()
    assert fitness(one, other, gpu_here=False).warnings == ("device_name a CPU there, b here",)
    assert fitness(one, H200, gpu_here=True).refusals[0] == "device_name a CPU there, NVIDIA H200 here"
