"""A device on paper: what every candidate takes stands in a table, measured or made up, and races run at no cost.

The device takes the median that the table says, with the scatter that was measured, and misbehaves as ``bench.noise`` says.
Standard library only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.noise import Noise
from bench.policy import Policy
from bench.profile.entry import default_settings
from bench.record import Environment, Heat, Label, Measured, Race, Trial
from bench.stats import summarize
from bench.times import PlanTime, StageTime, StopReason
from bench.tune.batch import Batch
from bench.tune.known import REPEATS
from bench.tune.search import Step
from bench.tune.space import Available, batches_of, order_of, space
from dcp_core.check import Check
from dcp_core.cost import ceiling_of, step_work
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, KernelName
from dcp_core.shapes import ModelShape, Workload

BETWEEN_S = 1e-4
"""Between two repetitions: cooling the L2 cache, launching."""
WARM_UPS = 30
"""Calls before the samples of a case."""
ORDER_S = 2e-3
"""What an order to the workers costs, whatever it asks for."""
LEAST_OPEN_S = 0.02
LEAST_SAMPLES = 30
MAD_TO_SIGMA = 1.4826
"""Of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A candidate as its table knows it.

    Args:
        step_us: the truth.
        scatter: relative standard deviation of its samples.
        open_s: laying it out and checking it.
        trial_s: measuring it by itself, all told.
    """

    step_us: float
    scatter: float
    open_s: float
    trial_s: float


Table = Mapping[Case, Runner]


def table_of(trials: Iterable[Trial]) -> dict[Case, Runner]:
    """Return the table that exhaustive trials are; the last of a case counts."""
    table = {}
    for trial in trials:
        outcome = trial.outcome
        if isinstance(outcome, Measured) and outcome.race is None:
            step = outcome.step_us
            timed = [step, *(stage.device_us for stage in outcome.stages)]
            sampled_s = sum((one.count + WARM_UPS) * (one.median * 1e-6 + BETWEEN_S) for one in timed)
            open_s = max(LEAST_OPEN_S, trial.seconds - sampled_s)
            table[trial.case] = Runner(step.median, MAD_TO_SIGMA * step.mad / step.median, open_s, trial.seconds)
    return table


def told_apart(table: Table, environment: Environment) -> list[Batch]:
    """Return the batches of a table that leave a choice and whose default is in it, candidates as a search has them."""
    batches = batches_of(sorted(table, key=lambda case: order_of(case.settings)), environment, cold=True)
    return [batch for batch in batches if len(batch.candidates) > 1 and batch.default in table]


class Paper:
    """A device on paper, as a track for a search: keeps count of what was opened and how long it took."""

    def __init__(self, table: Table, noise: Noise, seed: int) -> None:
        self._table, self._noise, self._seed, self.source = table, noise, seed, random.Random(seed)
        self._repetition, self._races, self._processes = 0, 0, 0
        self._open: set[Case] = set()
        self.opened: set[Case] = set()
        self.seconds = 0.0

    def sample(self, case: Case) -> float:
        """Return one repetition's time."""
        runner = self._table[case]
        factor = self._noise(self._repetition, self.source) * math.exp(self.source.gauss(0, runner.scatter))
        self._repetition += 1
        self.seconds += runner.step_us * 1e-6 + BETWEEN_S
        return runner.step_us * factor

    def alone(self, case: Case, samples: int) -> float:
        """Measure a case by itself, as an exhaustive search does; return the median."""
        runner, before = self._table[case], self.seconds
        times = [self.sample(case) for _ in range(samples)]
        # A whole measurement takes what it took; of a shorter one opening the case is nearly all.
        self.seconds = before + runner.open_s + (runner.trial_s - runner.open_s) * samples / LEAST_SAMPLES
        self.opened.add(case)
        return median(times)

    def race(self, step: Step) -> list[Trial]:
        """Run a race; cases that are open stay open, others are closed."""
        before = self.seconds
        self.seconds += ORDER_S
        self._races += 1
        for case in step.cases:
            if case not in self._open:
                self.seconds += self._table[case].open_s + WARM_UPS * (self._table[case].step_us * 1e-6 + BETWEEN_S)
        self._open = set(step.cases)
        self.opened |= self._open
        times: dict[Case, list[float]] = {case: [] for case in step.cases}
        for _ in range(step.rounds):
            order = self.source.sample(step.cases, len(step.cases))
            for case in (*order, *reversed(order)):
                times[case] += [self.sample(case) for _ in range(REPEATS)]
        race = Race(
            f"{self._seed}.{self._races}", step.heat, f"{self._seed}.{self._processes}", len(step.cases), REPEATS
        )
        each_s = (self.seconds - before) / len(step.cases)
        return [_trial(case, samples, race, each_s) for case, samples in times.items()]

    def renew(self) -> bool:
        """Start a fresh process."""
        self._open, self._processes = set(), self._processes + 1
        return True


NOWHERE = Environment({"device_name": "paper"})


def _trial(case: Case, samples: Sequence[float], race: Race, seconds: float) -> Trial:
    step = summarize(samples)
    outcome = Measured(
        label=Label.MEASURED,
        check=Check(rows=1, out_error=0.0, out_budget=1.0, lse_error=0.0, lse_budget=1.0),
        timer="paper",
        step_us=step,
        launch_us=step,
        plan=(PlanTime("plan", step),),
        stages=(StageTime("step", step),) if race.heat is Heat.CONFIRMED else (),
        rank_samples_us=(tuple(samples),),
        exchange_timed=True,
        stop=StopReason.CAP,
        timer_floor_us=0.0,
        flushed_bytes=1,
        kv_bytes=0,
        layers=1,
        race=race,
    )
    return Trial(case, outcome, 1, Policy(), NOWHERE, seconds, "2026-01-01T00:00:00+00:00")


MADE_UP_ON = Environment({"device_name": "NVIDIA H200"}, {"compute_capability": "9.0"})
MADE_UP = ("8q1s32k", "64q1s32k", "8q4s32k", "q2ks32k")
_EXCHANGE_US = {ExchangeName.AG_RS: 25.0, ExchangeName.A2A: 20.0, ExchangeName.DIRECT: 9.0}

_FEW_PERCENT = (
    "page_size",
    "kv_layout",
    "replayable",
    "decode_wrapper",
    "fixed_split_size",
    "disable_split_kv",
    "mask_form",
)


def made_up_table(seed: int = 0) -> dict[Case, Runner]:
    """Return a table of every legal candidate of a few batches on two ranks of an H200, its times made up.

    Each stage takes what the cost model says, times a factor of its kernel drawn for each batch; an exchange costs the same
    whatever it moves; other settings cost a few percent each; and every candidate has one percent that follows from nothing.
    """
    shape, layout = ModelShape.preset("qwen3-235b-a22b"), DcpLayout(8, 2)
    available = Available(
        (KernelName.FA2, KernelName.FA3, KernelName.CUDA_CORE, KernelName.PERSISTENT), tuple(_EXCHANGE_US)
    )
    ceiling = ceiling_of("H200")
    table = {}

    # What is drawn for one of these follows from its name alone: a stage or a setting more leaves the others as they are.
    def drawn(spread: float, *name: object) -> float:
        return random.Random(f"{seed} {' '.join(map(str, name))}").gauss(0, spread)

    for batch in map(Workload.parse, MADE_UP):
        for settings in space(Case(shape, layout, batch, default_settings(layout, batch)), available):
            case = Case(shape, layout, batch, settings)
            us = _EXCHANGE_US[settings.exchange]
            for work in step_work(case):
                kernel = settings.kernel_for_new if work.stage == "new" else settings.kernel
                factor = math.exp(abs(drawn(0.25, batch, work.stage, kernel, settings.path)))
                us += 1e6 * (work.seconds(ceiling) - ceiling.launch_s) * factor
            for name in _FEW_PERCENT:
                us *= math.exp(abs(drawn(0.03, batch, name, getattr(settings, name))))
            us *= math.exp(drawn(0.01, batch, settings))
            table[case] = Runner(us, 0.004, 0.35, 0.45)
    return table
