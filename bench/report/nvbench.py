"""Trials as NVBench writes its own, so that its tools read them: ``nvbench-compare-robust`` and ``nvbench-json-summary``.

A benchmark for each model and tp, a state for each case and way of timing it, with the samples of its step beside the file,
float32 seconds. Format 1.0.0, read from NVBench's ``json_printer`` and from the scripts of cuda-bench 0.3.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

from bench.files import write_whole
from bench.record import Failed, Measured, Skipped, Trial, latest
from bench.report.table import dcp_of, settings_line
from bench.times import sm_mhz
from dcp_core import __version__

AXES = ("timing", "dcp", "batch", "settings")
_TAG = "nv/cold/time/gpu/"
_CLOCK_TAG = "nv/cold/sm_clock_rate/mean"
_SAMPLES_TAG = "nv/json/bin:nv/cold/sample_times"


@dataclass(slots=True)
class _Samples:
    """The files of samples that a JSON file points to."""

    folder: str
    files: list[bytes] = field(default_factory=list)

    def keep(self, seconds: Sequence[float]) -> str:
        """Take some samples, and return the name that the JSON file calls them by."""
        self.files.append(struct.pack(f"<{len(seconds)}f", *seconds))
        return f"{self.folder}/{len(self.files) - 1}.bin"


def write(trials: Iterable[Trial], path: Path) -> list[Path]:
    """Write the trials that count, of each case the last, and return the files: the JSON file last.

    Raises:
        StorageError: if the disk does not take them.
    """
    import json

    samples = _Samples(f"{path.name}-bin")
    content = json.dumps(_root(latest(trials), samples), indent=1).encode()
    files = [path.with_name(samples.folder) / f"{number}.bin" for number in range(len(samples.files))]
    for file, seconds in zip(files, samples.files, strict=True):
        write_whole(file, seconds)
    write_whole(path, content)
    return [*files, path]


def _root(trials: Sequence[Trial], samples: _Samples) -> dict[str, Any]:
    devices = list(dict.fromkeys(_device(trial) for trial in trials))
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[f"{trial.case.shape.name} tp {trial.case.layout.tp}"].append(trial)
    major, minor, patch = 1, 0, 0
    version = {"major": major, "minor": minor, "patch": patch, "string": f"{major}.{minor}.{patch}"}
    return {
        "meta": {"argv": ["dcpbench", "show", "--nvbench"], "version": {"json": version, "dcpbench": __version__}},
        "devices": [{"id": number, "name": name} for number, name in enumerate(devices)],
        "benchmarks": [
            _benchmark(number, name, group, devices, samples)
            for number, (name, group) in enumerate(sorted(groups.items()))
        ],
    }


def _device(trial: Trial) -> str:
    return trial.environment.hard.get("device_name", "unknown")


def _benchmark(
    number: int, name: str, trials: Sequence[Trial], devices: Sequence[str], samples: _Samples
) -> dict[str, Any]:
    places = [_place(trial) for trial in trials]
    axes = [
        _axis(axis, list(dict.fromkeys(values))) for axis, values in zip(AXES, zip(*places, strict=True), strict=True)
    ]
    states = [
        _state(trial, place, devices.index(_device(trial)), samples)
        for trial, place in sorted(zip(trials, places, strict=True), key=lambda pair: pair[1])
    ]
    used = sorted({state["device"] for state in states})
    return {"name": name, "index": number, "devices": used, "axes": axes, "states": states}


def _place(trial: Trial) -> tuple[str, ...]:
    """Return a trial's value on each axis. No two trials that count have the same."""
    policy = trial.policy
    timing = [f"{trial.ranks} ranks" if trial.ranks > 1 else "1 rank", "graphs" if policy.graphs else "eager"]
    unflushed = policy.cold and isinstance(trial.outcome, Measured) and not trial.outcome.flushed_bytes
    timing += [
        "unflushed" if unflushed else "cold" if policy.cold else "warm",
        *([f"{policy.calls} calls"] if policy.calls > 1 else []),
    ]
    return ", ".join(timing), dcp_of(trial.case), str(trial.case.workload), settings_line(trial.case.settings)


def _axis(name: str, values: Sequence[str]) -> dict[str, Any]:
    listed = [{"input_string": value, "description": "", "value": value} for value in values]
    return {"name": name, "type": "string", "flags": "", "values": listed}


def _state(trial: Trial, place: Sequence[str], device: int, samples: _Samples) -> dict[str, Any]:
    named = list(zip(AXES, place, strict=True))
    state = {
        "name": " ".join([f"Device={device}", *(f"{axis}={value}" for axis, value in named)]),
        "device": device,
        "type_config_index": 0,
        "axis_values": [{"name": axis, "type": "string", "value": value} for axis, value in named],
    }
    match trial.outcome:
        case Measured() as outcome if min(_slowest(outcome), default=0.0) <= 0:
            return state | {
                "summaries": [],
                "is_skipped": True,
                "skip_reason": "its trial keeps no times of repetitions",
            }
        case Measured() as outcome:
            return state | {"summaries": [*_summaries(outcome, samples), *_clock(trial)], "is_skipped": False}
        case Skipped(reason=reason):
            return state | {"summaries": [], "is_skipped": True, "skip_reason": reason}
        case Failed(fault=fault, message=message):
            return state | {"summaries": [], "is_skipped": True, "skip_reason": f"{fault}: {message}"}


def _summaries(outcome: Measured, samples: _Samples) -> list[dict[str, Any]]:
    """Return what NVBench says of isolated executions: here of the step, the slowest rank of each repetition kept."""
    seconds = [time * 1e-6 for time in _slowest(outcome)]
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    mean, spread = fmean(seconds), stdev(seconds) if len(seconds) > 1 else 0.0
    times = {
        "min": min(seconds),
        "max": max(seconds),
        "mean": mean,
        "stdev/absolute": spread,
        "q1": low,
        "median": middle,
        "q3": high,
        "iqr/absolute": high - low,
    }
    shares = {"stdev/relative": spread / mean, "iqr/relative": (high - low) / middle}
    kept = {"filename": ("string", samples.keep(seconds)), "size": ("int64", str(len(seconds)))}
    return [
        _summary("nv/cold/sample_size", "Samples", "sample_size", value=("int64", str(len(seconds)))),
        *(_summary(_TAG + which, which, "duration", value=("float64", repr(time))) for which, time in times.items()),
        *(_summary(_TAG + which, which, "percentage", value=("float64", repr(one))) for which, one in shares.items()),
        _summary(_SAMPLES_TAG, "Samples Times File", "file/sample_times", **kept),
    ]


def _slowest(outcome: Measured) -> list[float]:
    """Return each repetition's time on its slowest rank, in µs."""
    return [max(times) for times in zip(*outcome.rank_samples_us, strict=True)]


def _clock(trial: Trial) -> list[dict[str, Any]]:
    """Return the SM clock in Hz right after the case, if the device told it: before the first, it was at rest."""
    mhz = sm_mhz(trial.clocks[-1]) if trial.clocks else None
    return [_summary(_CLOCK_TAG, "Clock Rate", "frequency", value=("float64", repr(mhz * 1e6)))] if mhz else []


def _summary(tag: str, name: str, hint: str, **data: tuple[str, str]) -> dict[str, Any]:
    values = [{"name": key, "type": kind, "value": value} for key, (kind, value) in data.items()]
    return {"tag": tag, "name": name, "hint": hint, "data": values}
