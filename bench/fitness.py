"""Whether this machine is fit to measure: what NVML and the installed versions say, each with what to do. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import combinations
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from bench.environment import POWER_CAP, SLOWDOWNS, clocks, processes
from bench.nvml import ask, visible_handles
from bench.record import Environment
from dcp_core.workspace import NEWEST_READ

SM_CLOCK, READ, WRITE = 1, 0, 1
"""NVML_CLOCK_SM, NVML_P2P_CAPS_INDEX_READ and NVML_P2P_CAPS_INDEX_WRITE, from nvml.h."""
HIGH_FLOOR_US: Mapping[str, float] = {"cuda_graph_events": 8.0, "host": 30.0}
"""What the timer of a worker that is asked what runs here reads for the smallest work. In graphs on H200s 5.4 µs at most."""
NEAR_HIGHEST = 0.95
"""Of a device's highest clock. An H200 that nothing slowed down was seen at 1935 of 1980 MHz."""
ASKING = ("torch", "flashinfer-python")
"""Packages whose requirements are held against what is installed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        advice: what to do about it; empty if nothing has to be done.
        is_unfit: nothing should be measured until that is done.
    """

    about: str
    found: str
    advice: str = ""
    is_unfit: bool = False

    def __str__(self) -> str:
        return f"{self.about}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def fitness(environment: Environment) -> list[Finding]:
    """Look at the visible devices, how they reach each other, and versions, before any worker starts."""
    handles = visible_handles()
    found = [finding for index, handle in enumerate(handles) for finding in _device(index, handle)]
    found += [_reach(pair, handles) for pair in combinations(range(len(handles)), 2)]
    found += _versions(environment.hard | environment.soft)
    found += [finding for package in ASKING for finding in _requirements(package)]
    return found


def timer(name: str, floor_us: float) -> Finding:
    """Judge what the timer of a name reads for the smallest work there is, the worst of all ranks."""
    advice = "the host or the device does something else: measure when it does not"
    return _judged("timer's floor", f"{floor_us:.1f} µs", floor_us > HIGH_FLOOR_US[name], advice)


def at_work(paces: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Judge the SM clock of each device right behind some work: one that is locked (nvidia-smi -lgc) shows nowhere else.

    Args:
        paces: what ``bench.environment.pace`` told of each rank's device then. One that is at rest again is left out.
    """
    for index, (handle, pace) in enumerate(zip(visible_handles(), paces, strict=False)):
        now, most = pace.get("sm_mhz"), ask("nvmlDeviceGetMaxClockInfo", handle, SM_CLOCK)
        if now is None or not most or "idle" in pace.get("event_reasons", ""):
            continue
        advice = (
            "if it stays there, its clock is locked or its power too low: an administrator can unlock it (nvidia-smi -rgc); "
            "times are those of this clock: compare with none taken at another"
        )
        is_low = int(now) < NEAR_HIGHEST * most
        yield _judged(f"GPU {index}: SM clock at work", f"{now} of {most} MHz", is_low, advice)


def answer(findings: Sequence[Finding], problem: str, *, on_gpu: bool) -> str:
    """Return in a sentence whether this machine is fit to measure.

    Args:
        problem: why nothing should be measured here; empty if something may be.
        on_gpu: there is a GPU.
    """
    if problem:
        return f"No: {problem.removesuffix('.')}."
    if not on_gpu:
        return "To try things out: there is no GPU, and times of a CPU are no advice for one."
    if any(finding.advice for finding in findings):
        return "Yes, but see below what to do."
    return "Yes."


def _device(index: int, handle: Any) -> Iterator[Finding]:
    """Look at a device at rest. What it cannot tell is left out."""
    state, gpu = clocks(index), f"GPU {index}"
    if others := processes(index):
        found = " and ".join(map(str, others))
        advice = "end what runs there, or choose another device with CUDA_VISIBLE_DEVICES: it takes time and caches"
        yield Finding(f"{gpu}: other work", found, advice, is_unfit=True)
    elif "processes" in state:
        yield Finding(f"{gpu}: other work", "none")
    if reasons := state.get("event_reasons", ""):
        yield Finding(f"{gpu}: slowed by", reasons, _why_slow(reasons))
    limit = ask("nvmlDeviceGetApplicationsClock", handle, SM_CLOCK)
    most = ask("nvmlDeviceGetMaxClockInfo", handle, SM_CLOCK)
    if limit and most:
        advice = "times are those of this clock: compare with none taken at another"
        yield _judged(f"{gpu}: SM clock", f"up to {limit} of {most} MHz", limit < most, advice)
    power = [ask(f"nvmlDeviceGetPowerManagement{which}", handle) for which in ("Limit", "DefaultLimit")]
    if all(power):
        watts, usual = (round(milliwatts / 1000) for milliwatts in power)
        advice = "long passes will lower its clocks; ask whoever set the limit"
        yield _judged(f"{gpu}: power", f"up to {watts} of {usual} W", watts < usual, advice)
    persistence = ask("nvmlDeviceGetPersistenceMode", handle)
    if persistence is not None:
        advice = "workers start slower; an administrator can turn it on (nvidia-smi -pm 1)"
        yield _judged(f"{gpu}: persistence", "on" if persistence else "off", not persistence, advice)


def _why_slow(reasons: str) -> str:
    if any(reason in reasons for reason in SLOWDOWNS):
        return "let it rest, and see to its cooling or its supply: what is timed meanwhile is discarded and timed again"
    return "its power limit lowers its clocks; trials will say so" if POWER_CAP in reasons else ""


def _reach(pair: tuple[int, int], handles: list[Any]) -> Finding:
    """Say whether two devices read and write each other's memory."""
    first, second = (handles[index] for index in pair)
    reaches = all(ask("nvmlDeviceGetP2PStatus", first, second, index) == 0 for index in (READ, WRITE))
    found = "within reach" if reaches else "out of reach"
    advice = "exchange direct needs it: nvidia-smi topo -p2p rw says what stands in the way"
    return _judged(f"GPU {pair[0]} and {pair[1]}: each other's memory", found, not reaches, advice)


def _versions(about: Mapping[str, str]) -> Iterator[Finding]:
    """Look at versions that may not fit one another."""
    built, served = about.get("cuda", ""), about.get("driver_cuda", "")
    if built and served:
        found, newest = f"torch is for {built}, the driver for up to {served}", _numbers(served)[0]
        if _numbers(built)[0] > newest:
            yield Finding("CUDA", found, f"update the driver, or install torch for CUDA {newest}", is_unfit=True)
        else:
            yield Finding("CUDA", found)
    if flashinfer := about.get("flashinfer", ""):
        newer = _numbers(flashinfer) > _numbers(NEWEST_READ)
        advice = f"'dcpbench memory' computes the workspace of {NEWEST_READ}: check what it says"
        yield _judged("FlashInfer", flashinfer, newer, advice)


def _requirements(package: str) -> Iterator[Finding]:
    """Say which installed packages are of another version than a package asks for; nothing of what is not installed."""
    for text in _asked_by(package):
        try:
            asked = Requirement(text)
            if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
                continue
            here = version(asked.name)
            fits = asked.specifier.contains(Version(here), prereleases=True)
        except (InvalidRequirement, InvalidVersion, PackageNotFoundError):
            continue  # what nobody can read, or is not there
        if not fits:
            found = f"{here}, but {package} {version(package)} asks for {asked.specifier}"
            advice = f"install both (pip install '{package}' '{asked.name}{asked.specifier}')"
            yield Finding(asked.name, found, advice)


def _asked_by(package: str) -> Sequence[str]:
    try:
        return requires(package) or ()
    except PackageNotFoundError:
        return ()


def _judged(about: str, found: str, matters: bool, advice: str) -> Finding:
    """Return a finding, with the advice only if it matters."""
    return Finding(about, found, advice if matters else "")


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers) or (0,)
