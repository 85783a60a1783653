"""The whole program over a device on paper: what it is told to take longer is found slower, and nothing else is; intervals hold.

All is real, down to the paths and the oracle, but for the clock that times them, and for workers, which are this process.
"""

from __future__ import annotations

import gc
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import bench.environment
import bench.measure
import bench.supervisor
from bench.cli import main
from bench.cli.exits import Exit
from bench.clock import Sampler, Scripted
from bench.noise import Noise, dropping, white
from bench.orders import Compiling, unheard
from bench.record import VISITS, Measured
from bench.store import Store
from bench.tune.known import REPEATS
from bench.verdict import Verdict
from bench.worker import Companion, answer
from dcp_core.mesh import Mesh
from dcp_core.settings import Case
from tests.bench.paper_device import KINDS, Kind

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


# --- Noise ----------------------------------------------------------------------------------------------------------

Born = Callable[..., "Life"]
"""Takes a kind of noise, a seed, and what a step takes if not STEP_US."""
NOISY = ("two clocks", "spiky", "white", "autocorrelated 0.8", "drifting")
OFTEN = {"two clocks": 1, "spiky": 1}
ALL = OFTEN | dict.fromkeys(NOISY[2:], 5)
"""What everybody looks at for a few lives: of every so many batches one."""
BATCHES = [f"q{new}s{total}" for new in range(1, 6) for total in range(16, 66)]


class Life:
    """One life of a device that every case is timed on. It runs nothing while it samples.

    Args:
        takes: what a step takes but for the noise.

    Attributes:
        levels: of each case the device's level at each repetition of its step, the noise left out, when it was first measured.
    """

    def __init__(self, kind: Kind, seed: int, takes: Takes = lambda case: STEP_US) -> None:
        self._kind, self._numbers, self._takes = kind, count(), takes
        self._noise, self._quiet = kind.noise(SPREAD), kind.noise(0.0)
        self._source, self._of_quiet = random.Random(seed), random.Random(seed)
        self.levels: dict[Case, list[float]] = {}

    def sample(self, case: Case, levels: list[float], count: int) -> list[float]:
        times = []
        for number, _ in zip(self._numbers, range(count), strict=False):
            times.append(self._takes(case) * self._noise(number, self._source))
            levels.append(self._quiet(number, self._of_quiet))
        return times

    def clock(self, case: Case, *_: object) -> Watched:
        is_first = case not in self.levels
        return Watched(partial(self.sample, case), self.levels.setdefault(case, []) if is_first else [])

    def truth_us(self, case: Case, samples: int) -> float:
        """Return the median of what the device did while so many samples were taken."""
        return self._takes(case) * self._kind.truth(SPREAD, self.levels[case][-samples:])


class Watched(Scripted):
    """A clock of a device's life, which writes down the levels of what it times first: the step."""

    def __init__(self, sample: Callable[[list[float], int], list[float]], levels: list[float]) -> None:
        super().__init__(lambda number, source: 0.0)
        self._sample, self._levels = sample, levels

    def prepare(self, call: Callable[[], None], align: Callable[[], None] | None = None) -> Sampler:
        levels, self._levels = self._levels, []
        return partial(self._sample, levels)


@pytest.fixture
def born(device: Device, monkeypatch: pytest.MonkeyPatch) -> Born:
    """Return what replaces the device by a life of a noisy one."""
    monkeypatch.setattr(bench.measure, "PLAN_SECONDS", 0.0)

    def born(kind: Kind, seed: int, takes: Takes = lambda case: STEP_US) -> Life:
        life = Life(kind, seed, takes)
        monkeypatch.setattr(bench.measure, "_open_clock", life.clock)
        return life

    return born


def lives(few: int, all_of_them: int, some: Mapping[str, int]) -> pytest.MarkDecorator:
    """Parametrize how many lives of which noise are looked at: a slice for everybody, and the whole, which takes minutes."""
    whole = [pytest.mark.endurance, pytest.mark.timeout(1800)]
    everything = [pytest.param(noise, all_of_them, 1, marks=whole) for noise in NOISY]
    slices = [(noise, few, step) for noise, step in some.items()]
    return pytest.mark.parametrize(("noise", "lives", "step"), [*slices, *everything])


@lives(2, 8, ALL)
def test_intervals_of_a_sweep_cover_what_the_device_did_and_two_sweeps_of_it_are_the_same(
    noise: str, lives: int, step: int, born: Born, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    covered, flagged, batches = [], [], BATCHES[::step]
    for seed in range(lives):
        life, folder = born(KINDS[noise], seed), str(tmp_path / str(seed))
        asked = (*ASKED, "--batch", ",".join(batches), "--results", folder)
        assert main(["--ranks", "1", "sweep", *asked]) == Exit.DONE
        trials, _ = Store.read(folder)
        assert len(trials) == len(batches)
        for trial in trials:
            assert isinstance(trial.outcome, Measured)
            found = trial.outcome.step_us
            covered.append(found.low <= life.truth_us(trial.case, found.count) <= found.high)
            flagged.append(any("correlated" in flag for flag in trial.outcome.flags))
    if KINDS[noise].independent:
        assert mean(covered) >= 0.93
    else:
        assert mean(one or other for one, other in zip(covered, flagged, strict=True)) >= 0.9
    capsys.readouterr()
    verdicts = Counter[str]()
    for seed in range(0, lives, 2):
        main(["compare", str(tmp_path / str(seed)), str(tmp_path / str(seed + 1)), "--json"])
        verdicts.update(pair["verdict"] for pair in json.loads(capsys.readouterr().out)["pairs"])
    assert verdicts.total() == len(batches) * lives / 2
    assert verdicts[Verdict.FASTER] + verdicts[Verdict.SLOWER] <= 0.02 * verdicts.total()


@lives(1, 20, OFTEN)
def test_of_equal_settings_a_search_on_a_noisy_device_keeps_the_default(
    noise: str, lives: int, step: int, born: Born, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, batches = Counter[str](), BATCHES[:: 5 * step]
    for seed in range(lives):
        born(KINDS[noise], seed)
        asked = (*ASKED, "--batch", ",".join(batches), "--set", "page_size=16,32")
        assert main(["--ranks", "1", "tune", *asked, "--results", str(tmp_path / str(seed)), "--json"]) == Exit.DONE
        searched = json.loads(capsys.readouterr().out)["search"]
        assert all(batch["done"] for batch in searched)
        for batch in searched:
            verdict = batch["comparison"]["verdict"] if batch["comparison"] else "dropped before it was compared"
            assert batch["settings"] == batch["default"] or verdict == Verdict.FASTER
            found[verdict] += 1
    assert found.total() == len(batches) * lives
    assert found[Verdict.FASTER] + found[Verdict.SLOWER] <= 0.02 * found.total()


ROUND = 2 * VISITS * REPEATS
"""Repetitions of two settings in a round of a race."""


def falling(spread: float) -> Noise:
    """Return a clock that falls by 30 % for two rounds of each ten."""
    falls = dropping(at=5 * ROUND, spread=spread, lasting=2 * ROUND)
    return lambda number, source: falls(number % (10 * ROUND), source)


def test_where_the_clock_falls_by_30_percent_in_every_race_settings_that_would_win_are_ambiguous_and_the_default_stays(
    born: Born, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def takes(case: Case) -> float:
        return STEP_US * (SLOWER if case.settings.page_size == 16 else 1.0)

    asked = (*ASKED, "--batch", ",".join(BATCHES[::50]), "--set", "page_size=16,32")
    for kind, verdict in ((Kind(falling, _unasked, independent=False), "ambiguous"), (KINDS["white"], "faster")):
        born(kind, 0, takes)
        assert main(["--ranks", "1", "tune", *asked, "--results", str(tmp_path / verdict), "--json"]) == Exit.DONE
        for found in json.loads(capsys.readouterr().out)["search"]:
            assert found["done"]
            assert found["comparison"]["verdict"] == verdict
            assert (found["settings"] == found["default"]) == (verdict == "ambiguous")


def _unasked(spread: float, levels: Sequence[float]) -> float:
    raise AssertionError("a search asks for no truth")
