"""Where a run is made: the fingerprint, the devices and their clocks. Read through NVML, without torch; never changed."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.nvml import ask, visible_handles
from bench.record import A_PATH, Environment
from dcp_core import __version__

VARIABLES = re.compile(
    r"CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUDA_DEVICE_MAX_CONNECTIONS|OMP_NUM_THREADS|TRITON_INTERPRET"
    r"|VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE|(NCCL|TORCH|FLASHINFER)_\w+"
)
"""Environment variables that may change a time or a result."""

POWER_CAP = "software power cap"
SLOWDOWNS = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake")
"""Reasons for which a device lowers its clocks that say more of its cooling and its supply than of the case."""
# Bits of nvmlDeviceGetCurrentClocksEventReasons, from nvml.h.
EVENT_REASONS: Mapping[int, str] = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: POWER_CAP,
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clocks",
}

# FP32 lanes of one SM by compute capability: CUDA C++ Programming Guide, "Arithmetic Instructions".
_LANES_PER_SM = {(8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128, (12, 0): 128}
_NVLINKS = 18


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device that this process may use."""

    name: str
    uuid: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes on a device.

    Args:
        number: its id as the driver counts; in a container not as the container does.
        name: of its program; empty if the driver does not tell.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"process {self.number} ({self.name})" if self.name else f"process {self.number}"


def fingerprint(on_gpu: bool | None = None) -> Environment:
    """Describe where this process runs.

    Args:
        on_gpu: whether the run uses the GPU; where one is visible, unless given. A run on the CPU depends on the CPU's
            model and torch alone, one on the GPU on its driver and libraries too.
    """
    gpu = _gpu()
    if on_gpu is None:
        on_gpu = bool(gpu)
    versions = {name: _version(*packages) for name, packages in _PACKAGES.items()} | {"cuda": _torch_cuda()}
    cpu = {"cpu": _cpu_model()}
    if on_gpu:
        hard = {"device_name": gpu.pop("device_name", "unknown"), "driver": gpu.pop("driver", "unknown"), **versions}
        soft = cpu | gpu
    else:
        hard = {"device_name": cpu["cpu"], "torch": versions.pop("torch")}
        soft = versions
    numpy = hard.pop("numpy", "") or soft.get("numpy", "")
    return Environment(_known(hard), _known(soft | {"numpy": numpy} | _host()))


def devices() -> tuple[Device, ...]:
    """Return the visible CUDA devices in CUDA's order; none without a GPU or its driver."""
    found = []
    for handle in visible_handles():
        memory = ask("nvmlDeviceGetMemoryInfo", handle)
        if memory is None:
            continue
        name, uuid = (str(ask(call, handle)) for call in ("nvmlDeviceGetName", "nvmlDeviceGetUUID"))
        found.append(Device(name, uuid, int(memory.total), int(memory.free)))
    return tuple(found)


def clocks(index: int) -> dict[str, str]:
    """Read a visible device's state now; empty without NVML or such a device.

    ``processes`` counts every process that computes on it, this one's too: in a container their ids are not ours.
    """
    handles = visible_handles()
    if index >= len(handles):
        return {}
    handle = handles[index]
    pace_now, running = _pace(handle), ask("nvmlDeviceGetComputeRunningProcesses", handle)
    state = {
        "memory_mhz": ask("nvmlDeviceGetClockInfo", handle, 2),  # NVML_CLOCK_MEM
        "processes": None if running is None else len(running),
    }
    return pace_now | {name: str(value) for name, value in state.items() if value is not None}


def pace(index: int) -> dict[str, str]:
    """Read of a visible device's state what may be asked often: ``sm_mhz``, ``event_reasons``, ``temperature_c``, ``power_w``.

    On an H200 each of them takes 2 µs in the median, 3 ms at most. ``power_w`` is there the mean of the last second
    (nvml.h, nvmlDeviceGetPowerUsage).
    """
    handles = visible_handles()
    return _pace(handles[index]) if index < len(handles) else {}


def _pace(handle: Any) -> dict[str, str]:
    reasons, power = ask("nvmlDeviceGetCurrentClocksEventReasons", handle), ask("nvmlDeviceGetPowerUsage", handle)
    state = {
        "sm_mhz": ask("nvmlDeviceGetClockInfo", handle, 1),  # NVML_CLOCK_SM
        "event_reasons": None if reasons is None else _reasons(int(reasons)),
        "temperature_c": ask("nvmlDeviceGetTemperature", handle, 0),  # NVML_TEMPERATURE_GPU
        "power_w": None if power is None else round(power / 1000),
    }
    return {name: str(value) for name, value in state.items() if value is not None}


def slowdowns(reasons: Iterable[str]) -> list[str]:
    """Return which of SLOWDOWNS are among some reasons, or texts that name several."""
    told = ", ".join(reasons)
    return [reason for reason in SLOWDOWNS if reason in told]


def processes(index: int) -> tuple[Process, ...]:
    """Return the processes that compute on a visible device, this one's too; none without NVML or such a device."""
    handles = visible_handles()
    found = ask("nvmlDeviceGetComputeRunningProcesses", handles[index]) if index < len(handles) else None
    return tuple(Process(int(one.pid), _program(one.pid)) for one in found or ())


def _program(number: int) -> str:
    name = ask("nvmlSystemGetProcessName", number) or ""
    return (
        (name.decode(errors="replace") if isinstance(name, bytes) else str(name)).split(" ")[0].rpartition("/")[2][:80]
    )


def _reasons(bits: int) -> str:
    named = [word for bit, word in EVENT_REASONS.items() if bits & bit]
    rest = bits & ~sum(EVENT_REASONS)
    return ", ".join([*named, *([hex(rest)] if rest else [])]) or "none"


_PACKAGES = {
    "torch": ("torch",),
    "triton": ("triton",),
    "flashinfer": ("flashinfer-python",),
    "nccl": ("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
    "numpy": ("numpy",),
}


def _version(*packages: str) -> str:
    """Return the version of the first of the packages that is installed, else an empty text."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def _torch_cuda() -> str:
    """Return the CUDA version that torch was built for, read from its version.py: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    file = Path(spec.origin).with_name("version.py")
    found = (
        re.search(r"^cuda\b.*= *['\"]([\d.]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE)
        if file.is_file()
        else None
    )
    return found[1] if found else ""


def _gpu() -> dict[str, str]:
    """Describe the first visible device, the driver, and how the visible devices are linked; empty without a GPU."""
    handles = visible_handles()
    if not handles:
        return {}
    first = handles[0]
    capability, lanes = ask("nvmlDeviceGetCudaComputeCapability", first), ask("nvmlDeviceGetNumGpuCores", first)
    cuda = ask("nvmlSystemGetCudaDriverVersion_v2")
    links = [ask("nvmlDeviceGetNvLinkState", first, link) for link in range(_NVLINKS)]
    about = {
        "device_name": str(ask("nvmlDeviceGetName", first) or ""),
        "driver": str(ask("nvmlSystemGetDriverVersion") or ""),
        "driver_cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        "compute_capability": "{}.{}".format(*capability) if capability else "",
        "sm_count": str(lanes // _LANES_PER_SM[capability]) if lanes and capability in _LANES_PER_SM else "",
        "devices": str(len(handles)),
        "nvlinks": str(sum(link == 1 for link in links)),
        "topology": "; ".join(_link(pair, handles) for pair in combinations(range(len(handles)), 2)),
    }
    return _known(about)


def _link(pair: tuple[int, int], handles: list[Any]) -> str:
    """Say how two devices reach each other."""
    first, second = pair
    nvlink = ask("nvmlDeviceGetP2PStatus", handles[first], handles[second], 2)  # NVML_P2P_CAPS_INDEX_NVLINK
    return f"{first}-{second}: {'NVLink' if nvlink == 0 else 'PCIe'}"


def _host() -> dict[str, str]:
    variables = {
        f"env:{name}": _without_paths(value) for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)
    }
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        "cpu_cores": str(len(os.sched_getaffinity(0))),
        "dcpbench": _commit() or __version__,
        **variables,
    }


def _without_paths(value: str) -> str:
    """Hide paths: they say nothing about speed, and tell strangers about the machine."""
    return A_PATH if os.sep in value else value[:200]


@cache
def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*: *(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    )
    return found[1].strip() if found else platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """Return the commit of the checkout that this file belongs to, ``-dirty`` if it was changed; empty if installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _known(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}
