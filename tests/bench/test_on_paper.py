"""The whole program over a device on paper: what it is told to take longer is found slower, and nothing else is.

All is real, down to the paths and the oracle, but for the clock that times them, and for workers, which are this process.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bench.environment
import bench.measure
import bench.supervisor
from bench.cli import main
from bench.cli.exits import Exit
from bench.clock import Scripted
from bench.noise import white
from bench.orders import Compiling, unheard
from bench.worker import Companion, answer
from dcp_core.mesh import Mesh
from dcp_core.settings import Case

CONTEXTS = (16, 24, 32, 40, 48, 56)
STEP_US, SPREAD, SLOWER = 200.0, 0.01, 1.03
ASKED = ("--model", "tiny", "--tp", "4", "--dcp", "1", "--precision", "strict")
Takes = Callable[[Case], float]
"""What a step of a case takes on a device, and each of its stages, in µs."""
Device = Callable[..., None]
"""Takes that, and which life of the device it is: another has other noise."""


class Here:
    """A group of one rank that is this process."""

    def __init__(self) -> None:
        self._companion = Companion()

    def ask(
        self, order: dict[str, Any], seconds: float, told: Callable[[Compiling], None] = unheard
    ) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(answer(order, Mesh.alone(), self._companion)))]

    def close(self) -> None:
        self._companion.course.close()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Return what replaces the device by one on paper."""

    def device(takes: Takes, life: int = 0) -> None:
        def clock(case: Case, *_: object) -> Scripted:
            noise = white(SPREAD)
            return Scripted(lambda count, source: takes(case) * noise(count, source), seed=int(case.key, 16) + life)

        monkeypatch.setattr(bench.measure, "_open_clock", clock)

    monkeypatch.setattr(bench.environment, "devices", lambda: ())
    monkeypatch.setattr(bench.supervisor, "open_group", lambda *_: Here())
    monkeypatch.setattr(bench.measure, "floor_us", lambda clock, device: 1.0)
    monkeypatch.setattr(bench.measure, "empty_us", lambda clock: 0.1)
    yield device
    gc.unfreeze()


def swept(folder: Path) -> str:
    batches = ("--new", "1,8", "--context", ",".join(map(str, CONTEXTS)))
    assert main(["--ranks", "1", "sweep", *ASKED, *batches, "--results", str(folder)]) == Exit.DONE
    return str(folder)


@pytest.mark.parametrize("slow", [[], ["q8s48"]], ids=["nothing", "one"])
def test_a_step_that_became_slower_by_3_percent_is_found_and_no_other(
    slow: list[str], device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device(lambda case: STEP_US)
    before = swept(tmp_path / "before")
    device(lambda case: STEP_US * (SLOWER if str(case.workload) in slow else 1.0), life=1)
    after = swept(tmp_path / "after")
    capsys.readouterr()
    code = main(["compare", before, after, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (Exit.DIFFERENT if slow else Exit.DONE)
    verdicts = {pair["case"]["workload"]: pair["verdict"] for pair in found["pairs"]}
    assert len(verdicts) == 2 * len(CONTEXTS)
    assert verdicts == dict.fromkeys(verdicts, "same") | dict.fromkeys(slow, "slower")


@pytest.mark.parametrize(
    ("slower", "chosen", "verdict"), [(1.0, 16, "same"), (SLOWER, 32, "faster")], ids=["nothing", "the default"]
)
def test_settings_that_beat_the_default_by_3_percent_are_chosen_and_equal_ones_are_not(
    slower: float,
    chosen: int,
    verdict: str,
    device: Device,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device(lambda case: STEP_US * (slower if case.settings.page_size == 16 else 1.0))
    asked = (*ASKED, "--batch", "q8s48", "--set", "page_size=16,32", "--results", str(tmp_path))
    assert main(["--ranks", "1", "tune", *asked, "--json"]) == Exit.DONE
    (found,) = json.loads(capsys.readouterr().out)["search"]
    assert (found["default"]["page_size"], found["settings"]["page_size"], found["done"]) == (16, chosen, True)
    assert found["comparison"]["verdict"] == verdict
