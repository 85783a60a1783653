"""A worker without torch: answers orders as ``bench.worker`` does, and fails as the case's model name says.

Names: ``dies`` ends the process by a signal, ``leaves`` with an exit status, ``hangs`` never answers, ``poisoned`` says that
it is of no further use, ``breaks`` answers that it failed while all others wait for it, ``raves`` says what is no JSON,
``denies`` what is no answer, ``forgets`` an answer without an outcome, ``lies`` of a time that nothing has; a digit behind the
word is the rank that does it, else all do. ``compiles`` says so before it answers, ``chatters`` says nothing else for ever.
``takes120`` is timed at about 120 µs in a race; ``lasts20`` is measured in 20 ms; ``slowed`` while heat slows the device down.
The first argument is a folder in which every worker leaves a file named for its process, with a line for each case it began.
With ``measures`` as the second, cases are measured, on a device on paper with the noise that the third names (one of
``bench.noise``) and its arguments behind it. With ``forgets``, what runs here is told without the field that the third names, and
with ``garbles`` with a number there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from bench.orders import REPLY_VARIABLE

# What takes its time to import is imported where it is needed: a worker is started for every fault.


def misbehave(word: str) -> None:
    """Do what a name says."""
    match word:
        case "dies":
            os.write(1, b"a last word on the way out\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves":
            sys.exit(7)
        case "hangs":
            threading.Event().wait()
        case "compiles":
            say_compiling(False)
            say_compiling(True)
        case "chatters":
            while True:
                say_compiling(False)


def say_compiling(ended: object) -> None:
    """Say that a kernel is being compiled, or was."""
    line = json.dumps({"compiling": {"kernel": "batch_decode", "seconds": 1.5, "ended": ended}})
    os.write(int(os.environ[REPLY_VARIABLE]), f"{line}\n".encode())


def answer(order: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return the answer to an order: every case is skipped, the reason its model's name."""
    if order["do"] == "probe":
        return {"probe": probed()}
    if order["do"] == "race":
        return raced(order, rank)
    if DEVICE is not None and order["do"] == "audit":
        times = {"events_us": 100.0, "cupti_us": 100.0, "kernels": 1, "apart_us": 0.0}
        return {"audited": [{"stage": stage, **times} for stage in ("nothing", "step")]}
    if DEVICE is not None and order["do"] == "measure":
        return {"outcome": DEVICE.measured(order), "ranks": 1, "poisoned": False}
    name = order["case"]["shape"]["name"]
    word, which = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    if word == "breaks" and int(which) != rank:
        misbehave("hangs")
    if not which or int(which) == rank:
        misbehave(word)
    if order["do"] == "verify" and word == "right":
        check = {"rows": 1, "out_error": 0.0, "out_budget": 1.0, "lse_error": 0.0, "lse_budget": 1.0}
        return {"outcome": {"check": check, "apart": None}, "ranks": 1, "poisoned": False}
    outcome: dict[str, Any] = {"kind": "skipped", "reason": name}
    if word in ("lasts", "lies", "slowed"):
        threading.Event().wait(int(which or 0) / 1000)
        outcome = outcome_of(six_of(float(which or 1)), [float(which or 1)] * 6, whole=True)
        outcome["timer_floor_us"] = -1.0 if word == "lies" else 0.0
    if word == "slowed":
        outcome["clocks_during"] = [{"readings": 1, "event_reasons": ["hardware thermal slowdown"]}]
    if word == "forgets":
        return {}
    if word in ("poisoned", "breaks"):
        outcome = {"kind": "failed", "fault": "error", "message": name, "traceback": "where it happened"}
    return {"outcome": outcome, "ranks": 1, "poisoned": word == "poisoned"}


def probed() -> dict[str, Any]:
    """Return what runs here, without what the arguments say is left out, or with a number in its place."""
    found: dict[str, Any] = {name: {} for name in ("kernels", "exchanges", "flashinfer_exchanges")}
    found |= {"ranks": int(os.environ["WORLD_SIZE"]), "timer": "host", "timer_floor_us": 1.0, "paces": []}
    found["environment"] = dict(os.environ)
    match sys.argv[2:]:
        case ["forgets", name]:
            del found[name]
        case ["garbles", name]:
            found[name] = 7
    return found


def raced(order: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return the answer to a race: that of the first case that does not just take its time, or a time for each."""
    found = []
    for case in order["cases"]:
        word, _, time_us = case["shape"]["name"].partition("takes")
        if DEVICE is not None:
            found.append(measured(order, 100.0))
        elif word:
            ended = answer({"do": "measure", "case": case}, rank)
            if ended["outcome"]["kind"] == "failed":
                return ended
            found.append(ended["outcome"])
        else:
            found.append(measured(order, float(time_us)))
    timed = sum(outcome["kind"] == "measured" for outcome in found)
    for outcome in found:
        if outcome["kind"] == "measured":
            outcome["race"]["cases"] = timed
    return {"outcomes": found, "ranks": 1, "poisoned": False}


def measured(order: dict[str, Any], time_us: float) -> dict[str, Any]:
    """Return an outcome with times around one."""
    from bench.record import VISITS

    source = random.Random(time_us)
    count = order["rounds"] * VISITS * order["race"]["repeats"]
    samples = [time_us * source.uniform(0.999, 1.001) for _ in range(count)]
    return outcome_of(summary_of(samples), samples, whole=order["whole"]) | {
        "stop": "rounds",
        "race": dict(order["race"]),
    }


def summary_of(samples: list[float]) -> dict[str, Any]:
    """Return the summary of samples."""
    from dataclasses import asdict

    from bench.stats import summarize

    return asdict(summarize(samples))


def six_of(time_us: float) -> dict[str, Any]:
    """Return the summary of six equal samples."""
    return {"count": 6, "mad": 0.0} | dict.fromkeys(("median", "low", "high", "min", "p10", "p90"), time_us)


class Device:
    """A device on paper, on which every case takes 100 µs but for its noise, over the worker's life."""

    def __init__(self, name: str, *about: str) -> None:
        from bench import noise

        self._noise, self._source, self._number = getattr(noise, name)(*map(int, about)), random.Random(0), 0

    def measured(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the outcome of a case, of the fewest samples that its policy asks for."""
        samples = []
        for _ in range(order["policy"]["min_samples"]):
            samples.append(100.0 * self._noise(self._number, self._source))
            self._number += 1
        return outcome_of(summary_of(samples), samples, whole=True) | {"peak_bytes": 3 << 20}


def outcome_of(step: dict[str, Any], samples: list[float], *, whole: bool) -> dict[str, Any]:
    """Return a measured outcome of these samples, whose summary is ``step``."""
    return {
        "label": "measured",
        "check": {"rows": 1, "out_error": 0.0, "out_budget": 1.0, "lse_error": 0.0, "lse_budget": 1.0},
        "timer": "scripted",
        "step_us": step,
        "launch_us": step,
        "plan": [],
        "stages": [{"name": "attention", "device_us": step}] if whole else [],
        "rank_samples_us": [samples],
        "exchange_timed": True,
        "stop": "precise",
        "timer_floor_us": 0.0,
        "flushed_bytes": 0,
        "kv_bytes": 1,
        "layers": 1,
        "race": None,
        "kind": "measured",
    }


DEVICE = Device(*sys.argv[3:]) if sys.argv[2:3] == ["measures"] else None


def note(order: dict[str, Any]) -> None:
    """Write down which case is begun."""
    if "case" in order:
        with (Path(sys.argv[1]) / str(os.getpid())).open("a", encoding="utf-8") as file:
            file.write(f"{order['case']['workload']}\n")


def spoken(order: dict[str, Any]) -> str:
    """Return what a worker says that knows no orders."""
    name = order["case"]["shape"]["name"] if "case" in order else ""
    return {"raves": "no JSON", "denies": "[]"}.get(name, "")


def main() -> None:
    rank = int(os.environ["RANK"])
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    if len(sys.argv) > 2:
        misbehave(sys.argv[2])
    os.write(1, b"noise on the standard output is no answer\n")
    with os.fdopen(int(os.environ[REPLY_VARIABLE]), "w") as replies:
        print(json.dumps({"ready": rank}), file=replies, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            note(order)
            print(spoken(order) or json.dumps(answer(order, rank)), file=replies, flush=True)


if __name__ == "__main__":
    main()
