"""Stands in for the supervisor: no worker runs, every case ends as a script says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from bench.audit import Audited
from bench.errors import UnfitError
from bench.policy import Policy
from bench.record import (
    VISITS,
    Environment,
    Failed,
    Heat,
    Measured,
    Outcome,
    Race,
    Skipped,
    StopReason,
    Trial,
    Verified,
)
from bench.stats import summarize
from dcp_core.check import Check
from dcp_core.settings import Case
from tests.bench.made_up import CPU, trial

RIGHT = Check(rows=3, out_error=0.001, out_budget=0.01, lse_error=1e-6, lse_budget=1e-4)


@dataclass
class Scripted:
    """Stands in for the supervisor: every case ends as the script says, or is measured."""

    script: Callable[[int, Case], Outcome | None] = lambda number, case: None
    verdict: Callable[[int], Verified | Skipped | Failed] = lambda number: Verified(RIGHT, apart=0.5)
    kernels: dict[str, str] = field(default_factory=lambda: {"reference": "", "fa2": "fa2 needs a CUDA device"})
    exchanges: dict[str, str] = field(default_factory=lambda: {"ag_rs": "", "a2a": "needs two ranks"})
    audited: Callable[[int], list[Audited] | Skipped | Failed] = lambda number: Skipped("no GPU here")
    environment: Environment = CPU
    paces: list[dict[str, str]] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    measured: list[Case] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)
    expected_s: dict[Case, float] = field(default_factory=dict)
    races: list[tuple[Heat, tuple[Case, ...]]] = field(default_factory=list)
    renewed: int = 0
    can_renew: bool = True
    closed: int = 0

    def __call__(self, ranks: int, policy: Policy, *, alone: bool = False) -> Scripted:
        self.ranks.append(ranks)
        self.policies.append(policy)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed += 1

    def measure(self, cases: Iterable[Case], expected_s: Mapping[Case, float]) -> Iterator[Trial]:
        self.expected_s = dict(expected_s)
        for number, case in enumerate(cases):
            made = trial(case, self.script(number, case), environment=self.environment)
            self.measured.append(case)
            yield replace(made, policy=self.policies[-1])

    def race(
        self,
        cases: Sequence[Case],
        heat: Heat,
        *,
        rounds: int,
        repeats: int,
        whole: bool = False,
        expected_s: float = 0.0,
    ) -> list[Trial]:
        name = str(len(self.races))
        self.races.append((heat, tuple(cases)))
        outcomes = {case: self.script(len(self.measured) + number, case) for number, case in enumerate(cases)}
        timed = sum(not isinstance(outcome, Skipped | Failed) for outcome in outcomes.values())
        race = Race(f"{id(self)}.{name}", heat, str(self.renewed), max(timed, 1), repeats)
        source, made = random.Random(name), []
        for case, outcome in outcomes.items():
            one = trial(case, outcome, environment=self.environment)
            if isinstance(one.outcome, Measured):
                us = one.outcome.step_us.median
                samples = tuple(us * source.uniform(0.999, 1.001) for _ in range(rounds * VISITS * repeats))
                raced = replace(
                    one.outcome,
                    step_us=summarize(samples),
                    rank_samples_us=(samples,),
                    stages=one.outcome.stages if whole else (),
                    stop=StopReason.ROUNDS,
                    race=race,
                )
                one = replace(one, outcome=raced)
            self.measured.append(case)
            made.append(replace(one, policy=self.policies[-1]))
        return made

    def renew(self) -> bool:
        self.renewed += self.can_renew
        return self.can_renew

    def verify(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Verified | Skipped | Failed]]:
        for number, case in enumerate(cases):
            yield case, self.verdict(number)

    def audit(self, cases: Iterable[Case]) -> Iterator[tuple[Case, list[Audited] | Skipped | Failed]]:
        for number, case in enumerate(cases):
            yield case, self.audited(number)

    def probe(self) -> dict[str, object]:
        if not self.kernels:
            raise UnfitError("no worker comes up here")
        fused = {"decode_cp_a2a_alltoall": "needs fabric memory"}
        return {
            "kernels": self.kernels,
            "exchanges": self.exchanges,
            "flashinfer_exchanges": fused,
            "timer": "cuda_graph_events",
            "timer_floor_us": 4.8,
            "paces": self.paces,
        }
