"""The fingerprint, the devices and their clocks, with a scripted NVML and without any."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from bench import environment, nvml
from bench.times import Pace


class NVMLError(Exception):
    """Stands for pynvml's."""


@dataclass
class ScriptedNvml:
    """A machine of ``count`` H200s, on each of which ``running`` programs compute; calls in ``broken`` fail as NVML fails.

    ``before_reading`` is called before the clocks are read, and may change whatever it likes.
    """

    count: int = 2
    broken: set[str] = field(default_factory=set)
    reasons: int = 0x4 | 0x40
    running: tuple[str, ...] = ("ours", "theirs")
    sm_mhz: int = 1980
    clock_mhz: int = 1980
    limit_mw: int = 700_000
    persistence: int = 1
    temperature_c: int = 41
    power_mw: int = 123_456
    reached: int = 0
    driver: str = "580.95"
    before_reading: Callable[[], None] = lambda: None
    NVMLError: type[Exception] = NVMLError

    def __getattr__(self, call: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda *_: "NVIDIA H200",
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}a",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=1000, free=900 - handle),
            "nvmlDeviceGetCudaComputeCapability": lambda *_: (9, 0),
            "nvmlDeviceGetNumGpuCores": lambda *_: 132 * 128,
            "nvmlSystemGetDriverVersion": lambda: self.driver,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
            "nvmlDeviceGetNvLinkState": lambda *_: 1,
            "nvmlDeviceGetP2PStatus": lambda *_: self.reached,
            "nvmlDeviceGetApplicationsClock": lambda *_: self.clock_mhz,
            "nvmlDeviceGetMaxClockInfo": lambda *_: 1980,
            "nvmlDeviceGetPowerManagementLimit": lambda *_: self.limit_mw,
            "nvmlDeviceGetPowerManagementDefaultLimit": lambda *_: 700_000,
            "nvmlDeviceGetPersistenceMode": lambda *_: self.persistence,
            "nvmlDeviceGetClockInfo": lambda handle, clock: {1: self.sm_mhz, 2: 3201}[clock],
            "nvmlDeviceGetTemperature": lambda *_: self.temperature_c,
            "nvmlDeviceGetPowerUsage": lambda *_: self.power_mw,
            "nvmlDeviceGetCurrentClocksEventReasons": self._read_reasons,
            "nvmlDeviceGetComputeRunningProcesses": lambda *_: [
                SimpleNamespace(pid=4242 + place) for place in range(len(self.running))
            ],
            "nvmlSystemGetProcessName": lambda pid: f"/usr/bin/{self.running[pid - 4242]} --serve /tmp",
        }
        if call in self.broken:
            return self._fail
        if call not in answers:
            raise AttributeError(call)
        return answers[call]

    def _read_reasons(self, *_: object) -> int:
        self.before_reading()
        return self.reasons

    def _fail(self, *arguments: object) -> None:
        raise NVMLError("not supported")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedNvml]:
    scripted = ScriptedNvml()
    monkeypatch.setitem(sys.modules, "pynvml", scripted)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml.library.cache_clear()
    yield scripted
    nvml.library.cache_clear()


def test_without_a_driver_everything_is_empty(machine: ScriptedNvml) -> None:
    machine.broken = {"nvmlInit"}
    assert environment.devices() == ()
    assert environment.clocks(0) == {}
    here = environment.fingerprint()
    assert set(here.hard) == {"device_name", "torch"}
    assert here.hard["device_name"]


def test_without_the_package_everything_is_empty(machine: ScriptedNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert environment.devices() == ()
    assert environment.clocks(0) == {}


def test_what_is_asked_often_is_a_part_of_the_clocks(machine: ScriptedNvml) -> None:
    state = environment.clocks(1)
    assert environment.pace(1) == {
        name: state[name] for name in ("sm_mhz", "event_reasons", "temperature_c", "power_w")
    }
    assert environment.pace(2) == {}
    assert environment.slowdowns([state["event_reasons"], "idle"]) == ["hardware thermal slowdown"]


def test_a_gpu_is_described(machine: ScriptedNvml) -> None:
    here = environment.fingerprint()
    assert here.hard["device_name"] == "NVIDIA H200"
    assert here.hard["driver"] == "580.95"
    assert {"torch", "triton", "flashinfer"} <= here.hard.keys()
    expected = {"driver_cuda": "13.0", "compute_capability": "9.0", "sm_count": "132", "devices": "2", "nvlinks": "18"}
    assert expected.items() <= here.soft.items()
    assert here.soft["topology"] == "0-1: NVLink"
    assert {"cpu", "python", "platform", "cpu_cores", "dcpbench", "numpy"} <= here.soft.keys()


def test_a_run_on_the_cpu_of_a_gpu_machine_is_one_of_the_cpu(machine: ScriptedNvml) -> None:
    here = environment.fingerprint(on_gpu=False)
    assert here.hard["device_name"] == environment.fingerprint().soft["cpu"]
    assert "driver" not in here.hard


def test_two_drivers_do_not_mix(machine: ScriptedNvml) -> None:
    here = environment.fingerprint()
    there = environment.Environment({**here.hard, "driver": "590.1"}, here.soft)
    assert here.differences(there) == ["driver: 580.95 here, 590.1 there"]


def test_links_and_settings_of_libraries_matter_between_ranks_alone() -> None:
    hard = {"device_name": "NVIDIA H200"}
    here = environment.Environment(hard, {"nvlinks": "18", "topology": "0-1: NVLink; 0-2: NVLink; 1-2: NVLink"})
    for soft, differences in (
        ({"topology": "0-1: NVLink"}, []),
        ({"topology": "0-1: NVLink; 0-2: PCIe; 1-2: PCIe"}, []),
        ({"topology": "0-1: PCIe"}, ["link 0-1: NVLink here, PCIe there"]),
        ({"nvlinks": "12"}, ["nvlinks: 18 here, 12 there"]),
        ({"env:NCCL_ALGO": "Ring"}, ["env:NCCL_ALGO: not set here, Ring there"]),
        ({"env:TORCH_NCCL_BLOCKING_WAIT": "1"}, ["env:TORCH_NCCL_BLOCKING_WAIT: not set here, 1 there"]),
        ({"env:FLASHINFER_EXTRA": "1"}, ["env:FLASHINFER_EXTRA: not set here, 1 there"]),
        ({"env:TORCH_HOME": environment.A_PATH, "env:OMP_NUM_THREADS": "1", "env:NCCL_DEBUG_SUBSYS": "ALL"}, []),
        (
            {
                "env:NCCL_VERSION": "2.28",
                "env:TORCH_CUDA_ARCH_LIST": "9.0a",
                "env:TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            },
            [],
        ),
        ({"topology": "of no form"}, []),
        ({}, []),
    ):
        there = environment.Environment(hard, soft)
        assert here.differences(there, ranks=2) == differences
        assert here.differences(there) == []
    three = environment.Environment(hard, {"topology": "0-1: NVLink; 0-2: PCIe; 1-2: PCIe"})
    assert three.differences(here, ranks=3) == [f"link {pair}: PCIe here, NVLink there" for pair in ("0-2", "1-2")]


def test_clocks_are_read_in_words(machine: ScriptedNvml) -> None:
    assert environment.clocks(1) == {
        "sm_mhz": "1980",
        "memory_mhz": "3201",
        "temperature_c": "41",
        "power_w": "123",
        "event_reasons": "software power cap, hardware thermal slowdown",
        "processes": "2",
    }
    machine.reasons = 0
    assert environment.clocks(0)["event_reasons"] == "none"
    machine.reasons = 0x8000
    assert environment.clocks(0)["event_reasons"] == "0x8000"
    assert environment.clocks(2) == {}


def test_who_computes_on_a_device_is_named(machine: ScriptedNvml) -> None:
    assert list(map(str, environment.processes(0))) == ["process 4242 (ours)", "process 4243 (theirs)"]
    assert environment.processes(2) == ()
    machine.broken = {"nvmlSystemGetProcessName"}
    assert str(environment.processes(1)[0]) == "process 4242"
    machine.broken = {"nvmlDeviceGetComputeRunningProcesses"}
    assert environment.processes(0) == ()


def test_what_a_device_cannot_tell_is_left_out(machine: ScriptedNvml) -> None:
    machine.broken = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons"}
    assert environment.clocks(0).keys() == {"sm_mhz", "memory_mhz", "temperature_c", "processes"}
    machine.broken.add("nvmlDeviceGetTemperature")
    assert environment.pace(0) == {"sm_mhz": "1980"}
    assert Pace.of([environment.pace(0)]) == Pace(1, 1980, 1980)


def test_readings_while_a_device_works_are_kept_from_the_lowest_to_the_highest(machine: ScriptedNvml) -> None:
    machine.reasons, states = 0, []
    for machine.temperature_c, machine.power_mw in ((52, 480_400), (47, 610_000), (61, 590_600)):
        states.append(environment.pace(0))
    assert Pace.of(states) == Pace(
        3, 1980, 1980, temperature_c_low=47, temperature_c_high=61, power_w_low=480, power_w_high=610
    )


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-1a"]),
        ("1,0", ["GPU-1a", "GPU-0a"]),
        ("GPU-1", ["GPU-1a"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["GPU-0a"]),
        ("GPU", []),
    ],
)
def test_visible_devices_are_those_of_cuda(
    machine: ScriptedNvml, monkeypatch: pytest.MonkeyPatch, visible: str, uuids: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.uuid for device in environment.devices()] == uuids


def test_variables_that_matter_are_kept_and_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("TORCH_HOME", "/home/someone/torch")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    soft = environment.fingerprint().soft
    assert soft["env:NCCL_DEBUG"] == "WARN"
    assert soft["env:TORCH_HOME"] == "(a path)"
    assert "hush" not in str(soft)


def test_no_torch_is_imported() -> None:
    program = "import sys; from bench.environment import *; fingerprint(); devices(); clocks(0); print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert answer.stdout.strip() == "False"
