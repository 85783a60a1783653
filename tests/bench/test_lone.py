"""Two trials that were each taken by themselves are told apart where they differ, and nowhere else, on whatever device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.clock import Scripted
from bench.lone import Lone
from bench.measure import _time
from bench.noise import NOISES, two_clocks
from bench.policy import Policy
from bench.record import CORRELATED_FLAG, Measured, Trial
from bench.stats import lag1_correlation, summarize
from bench.times import CORRELATED, Pace, Summary
from bench.tune.pick import pick
from dcp_core.mesh import Mesh
from dcp_core.settings import ExchangeName, KernelName, PathName
from tests.bench.made_up import trials

LIVES = 300
STEP_US, MHZ = 200.0, 1980
MADE_UP = trials("8q1s32k", dcps=(2,), exchanges=("ag_rs", "a2a"), kernels=("fa2",))
DEFAULT, OTHER = (
    next(
        one
        for one in MADE_UP
        if (one.case.settings.path, one.case.settings.kernel, one.case.settings.exchange)
        == (PathName.DECODE, KernelName.FA2, exchange)
    )
    for exchange in (ExchangeName.AG_RS, ExchangeName.A2A)
)


class Life:
    """One life of a device on paper, which is faster by ``gain`` at what is not the default."""

    def __init__(self, noise: str, seed: int, *, gain: float = 0.0, tells: bool = False) -> None:
        self._takes = {DEFAULT.case: STEP_US, OTHER.case: STEP_US * (1 - gain)}
        self._noise, self._twin, self._level = NOISES[noise](), two_clocks(spread=0.0), 1.0
        self._of_twin, self._tells, self._now = random.Random(seed), tells, DEFAULT.case
        self._clock = Scripted(self._latency_us, seed=seed, told=self._told)

    def _latency_us(self, number: int, source: random.Random) -> float:
        self._level = self._twin(number, self._of_twin)
        return self._takes[self._now] * self._noise(number, source)

    def _told(self, number: int) -> dict[str, str]:
        return {"sm_mhz": str(round(MHZ / self._level))} if self._tells else {}

    def trial(self, one: Trial) -> Trial:
        """Return a trial as measuring it leaves behind."""
        self._now = one.case
        timed = _time(lambda: None, Mesh.alone(), self._clock, Policy())
        pace = Pace.of(timed.states[0]) if self._tells else None
        assert isinstance(one.outcome, Measured)
        return replace(
            one,
            outcome=replace(
                one.outcome,
                step_us=summarize(timed.slowest_us),
                flags=(CORRELATED_FLAG,) if lag1_correlation(timed.slowest_us) > CORRELATED else (),
                clocks_during=(pace,) if pace else (),
            ),
        )

    def chosen(self) -> bool:
        """Tell whether both settings, measured one after the other, make a profile that chooses the other one."""
        (profile,) = pick([self.trial(DEFAULT), self.trial(OTHER)])
        (entry,) = profile.entries
        assert entry.default == DEFAULT.case.settings
        return entry.settings == OTHER.case.settings


def wins(noise: str, *, gain: float = 0.0, tells: bool = False) -> int:
    return sum(Life(noise, seed, gain=gain, tells=tells).chosen() for seed in range(LIVES))


@pytest.mark.parametrize("noise", NOISES)
def test_equal_settings_hardly_ever_beat_the_default_on_a_noisy_device(noise: str) -> None:
    assert wins(noise, tells=noise == "two clocks") <= 0.02 * LIVES


def test_a_device_that_hides_its_two_clocks_deceives_more_often() -> None:
    assert wins("two clocks") <= 0.08 * LIVES


@pytest.mark.parametrize(("noise", "gain"), [(name, 0.2 if name == "two clocks" else 0.05) for name in NOISES])
def test_a_real_gain_beats_the_default_on_a_noisy_device(noise: str, gain: float) -> None:
    assert wins(noise, gain=gain, tells=noise == "two clocks") >= 0.95 * LIVES


def samples(middle_us: float, tenth: float = 0.0, interval: float = 0.001) -> Summary:
    low, high = middle_us * (1 - interval), middle_us * (1 + interval)
    first, last = middle_us * (1 - tenth), middle_us * (1 + tenth)
    return Summary(60, middle_us, low, high, min(first, low), first, last, 0.0)


def lone(middle_us: float, tenth: float = 0.0, *, correlated: bool = False, mhz: tuple[int, int] = (0, 0)) -> Lone:
    assert isinstance(DEFAULT.outcome, Measured)
    pace = (Pace(1, *mhz),) if any(mhz) else ()
    trial = replace(DEFAULT, outcome=replace(DEFAULT.outcome, clocks_during=pace))
    return Lone.of(samples(middle_us, tenth), trial, correlated=correlated)


def test_what_samples_of_either_differ_by_is_no_difference() -> None:
    assert lone(96).is_faster(lone(100))
    assert not lone(100).is_faster(lone(96))
    assert not lone(96, 0.05).is_faster(lone(100))
    assert not lone(96).is_faster(lone(100, 0.05))
    assert lone(90, 0.05).is_faster(lone(100, 0.05))


def test_where_samples_are_correlated_all_that_they_differ_by_is_no_difference() -> None:
    assert lone(95, 0.03).is_faster(lone(100, 0.03))
    for one, other in ((True, False), (False, True)):
        assert not lone(95, 0.03, correlated=one).is_faster(lone(100, 0.03, correlated=other))
        assert lone(50, 0.03, correlated=one).is_faster(lone(100, 0.03, correlated=other)), "a large gain is one"


@pytest.mark.parametrize("turn", [lambda mhz: mhz, lambda mhz: (mhz[0] - 400, mhz[1])], ids=["steady", "one end of it"])
def test_what_the_clocks_may_have_changed_by_is_no_difference(
    turn: Callable[[tuple[int, int]], tuple[int, int]],
) -> None:
    slow = turn((1800, 1800))
    assert lone(92).is_faster(lone(100, mhz=slow)), "one that is not told explains nothing"
    assert not lone(92, mhz=(1980, 1980)).is_faster(lone(100, mhz=slow))
    assert lone(50, mhz=(1980, 1980)).is_faster(lone(100, mhz=slow))
    assert lone(92, mhz=(1390, 1390)).is_faster(lone(100, mhz=slow)), "it was faster at a lower clock"


def test_clocks_are_those_after_a_trial_where_none_were_told_between_its_samples() -> None:
    told = ("345", "1980", "1980", "1700")  # of two devices: before, when one is idle yet, and after
    trial = replace(DEFAULT, clocks=tuple({"sm_mhz": mhz} for mhz in told))
    assert str(Lone.of_step(trial).clocks) == "1700 to 1980"
    assert Lone.of_step(DEFAULT).clocks is None


def test_times_one_after_another_add_up() -> None:
    found = Lone.together([lone(100, 0.01, mhz=(1900, 1980)), lone(300, 0.05, mhz=(1800, 1950))])
    assert (found.low, found.median, found.high) == pytest.approx((399.6, 400, 400.4))
    assert found.apart == pytest.approx(0.04)
    assert found.clocks == (1800, 1980)


def test_no_time_at_all_is_told_from_nothing() -> None:
    assert not lone(0).is_faster(lone(100))
    assert not lone(100).is_faster(lone(0))
