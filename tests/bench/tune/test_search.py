"""Searching: what is measured next follows from what was measured, and only what was shown to be faster replaces the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from bench.noise import white
from bench.record import Failed, Heat, Measured, Skipped, Trial
from bench.tune.batch import Batch
from bench.tune.known import FINALISTS, MOST_ROUNDS
from bench.tune.loop import search
from bench.tune.paper import Paper, Runner
from bench.tune.search import SEATS, Finding, Step, first_step, found, next_step
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.settings import canonical

MODEL, LAYOUT = ModelShape.preset("qwen3-235b-a22b"), DcpLayout(8, 2)


def case(batch: str = "q2ks32k", **settings: object) -> Case:
    workload = Workload.parse(batch)
    return Case(MODEL, LAYOUT, workload, canonical(Settings.from_json(settings), LAYOUT, workload))


DEFAULT = case(kernel="fa3")
FOLD, MASK, SPLIT = case(path="fold", kernel="fa2"), case(path="mask", kernel="fa2"), case(kernel="fa2")
A2A = case(kernel="fa3", exchange="a2a")


def table(**times_us: float) -> dict[Case, Runner]:
    cases = {"default": DEFAULT, "fold": FOLD, "mask": MASK, "split": SPLIT, "a2a": A2A}
    return {cases[name]: Runner(time, scatter=0.0, open_s=1.0, trial_s=2.0) for name, time in times_us.items()}


def searched(
    times: dict[Case, Runner], *, known: Sequence[Trial] = (), seed: int = 0, scatter: float = 0.003
) -> tuple[Finding, list[Trial]]:
    batch, paper = Batch(tuple(times), DEFAULT if DEFAULT in times else None), Paper(times, white(scatter), seed)
    done = list(search([batch], known, paper, now=lambda: paper.seconds))
    trials = done[-1][1] if done else list(known)
    return found(batch, trials), trials[len(known) :]


def heats(trials: Sequence[Trial]) -> list[Heat]:
    return [trial.outcome.race.heat for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.race]


def took_part(trials: Sequence[Trial], heat: Heat) -> set[Case]:
    return {trial.case for trial, run in zip(trials, heats(trials), strict=True) if run is heat}


def test_the_best_is_screened_raced_confirmed_and_chosen() -> None:
    finding, trials = searched(table(default=100, fold=90, mask=500, split=95, a2a=97))
    assert finding.chosen == FOLD
    assert finding.comparison is not None
    assert finding.comparison.ratio == pytest.approx(0.9, rel=0.01)
    assert finding.runner_up is not None
    assert finding.runner_up[0] == SPLIT
    assert finding.runner_up[1] == pytest.approx(95 / 90, rel=0.01)
    assert took_part(trials, Heat.SCREENED) == {DEFAULT, FOLD, MASK, SPLIT, A2A}
    assert took_part(trials, Heat.RACED) == {DEFAULT, FOLD, SPLIT, A2A}, "what is far behind is not raced"
    assert took_part(trials, Heat.CONFIRMED) == {DEFAULT, FOLD}
    assert finding.done
    assert (finding.heat, finding.screened, finding.candidates, finding.trials) == (Heat.CONFIRMED, 5, 5, len(trials))


def test_it_is_confirmed_in_another_process() -> None:
    _, trials = searched(table(default=100, fold=90, split=95))
    of = {
        heat: {
            t.outcome.race.process
            for t in trials
            if isinstance(t.outcome, Measured) and t.outcome.race and t.outcome.race.heat is heat
        }
        for heat in Heat
    }
    assert not of[Heat.CONFIRMED] & (of[Heat.SCREENED] | of[Heat.RACED])


def test_inside_the_noise_the_default_stays() -> None:
    for seed in range(20):
        finding, _ = searched(table(default=100, fold=100, split=100.2, a2a=99.8), seed=seed, scatter=0.01)
        assert finding.chosen == DEFAULT


def test_one_rival_goes_straight_to_the_confirmation() -> None:
    finding, trials = searched(table(default=100, fold=90))
    assert finding.chosen == FOLD
    assert Heat.RACED not in heats(trials)
    finding, trials = searched(table(default=100, fold=150))
    assert finding.chosen == DEFAULT
    assert took_part(trials, Heat.CONFIRMED) == {DEFAULT}, "it is looked at in full all the same"


def test_of_equals_that_beat_the_default_that_most_like_it_is_chosen() -> None:
    finding, _ = searched(table(default=100, fold=90.05, split=90.1, a2a=90.0), scatter=0.001)
    assert finding.chosen in (SPLIT, A2A)


def test_without_a_default_the_best_is_published_as_it_is() -> None:
    finding, _ = searched(table(fold=90, split=100, mask=120))
    assert (finding.chosen, finding.default, finding.comparison) == (FOLD, None, None)


def test_going_on_is_reading_what_was_measured() -> None:
    times = table(default=100, fold=90, mask=110, split=91, a2a=97)
    _, trials = searched(times)
    for cut in range(len(trials) + 1):
        finding, more = searched(times, known=trials[:cut], seed=cut)
        assert finding.chosen == FOLD
        whole = [trial for run in runs(trials[:cut]).values() if len(run) == run[0].outcome.race.cases for trial in run]  # type: ignore[union-attr]
        assert took_part(more, Heat.SCREENED) - {DEFAULT} <= times.keys() - took_part(whole, Heat.SCREENED)
    assert searched(times, known=trials)[1] == []


def test_until_it_is_confirmed_the_default_stands() -> None:
    times = table(default=100, fold=50, split=95, a2a=97)
    _, trials = searched(times)
    batch = Batch(tuple(times), DEFAULT)
    first = heats(trials).index(Heat.CONFIRMED)
    assert found(batch, []).chosen is None
    for cut in range(len(times), first):
        finding = found(batch, trials[:cut])
        assert not finding.done
        assert finding.chosen == DEFAULT
    assert found(batch, trials).chosen == FOLD


def test_cases_measured_by_themselves_need_no_screening() -> None:
    times = table(default=100, fold=90, mask=500, split=95, a2a=97)
    _, trials = searched(times)
    alone = [replace(t, outcome=replace(t.outcome, race=None)) for t in trials if t.outcome.race.heat is Heat.SCREENED]  # type: ignore[union-attr]
    _, more = searched(times, known=alone)
    assert Heat.SCREENED not in heats(more)


@pytest.mark.parametrize("outcome", [Skipped("no"), Failed("incorrect", "no")])
def test_what_cannot_run_is_not_asked_for_again(outcome: Skipped | Failed) -> None:
    times = table(default=100, fold=90, split=95)
    _, trials = searched(times)
    refused = [replace(trials[0], case=FOLD, outcome=outcome)]
    finding, more = searched(times, known=refused)
    assert finding.chosen == SPLIT
    assert FOLD not in {trial.case for trial in more}


def test_a_default_that_cannot_run_is_not_compared_with() -> None:
    times = table(default=100, fold=90, split=95)
    _, trials = searched(times)
    finding, _ = searched(times, known=[replace(trials[0], case=DEFAULT, outcome=Skipped("no"))])
    assert (finding.chosen, finding.default, finding.comparison) == (FOLD, None, None)


def test_what_another_timer_timed_is_not_compared() -> None:
    times = table(default=100, fold=90, split=95)
    _, trials = searched(times)
    eager = next(t for t in trials if t.case == FOLD)
    eager = replace(eager, outcome=replace(eager.outcome, timer="another", step_us=replace(eager.outcome.step_us)))  # type: ignore[union-attr]
    finding = found(Batch(tuple(times), DEFAULT), [*(t for t in trials if t.case != FOLD), eager])
    assert finding.chosen != FOLD


def test_what_cannot_win_is_not_measured() -> None:
    times = table(default=100, fold=90, mask=300)
    batch = Batch(tuple(times), DEFAULT, least_us={MASK: 200.0, DEFAULT: 1e9, FOLD: 50.0})
    paper = Paper(times, white(0.0), 0)
    trials = paper.race(Step(Heat.SCREENED, (DEFAULT, FOLD), 1))
    later = next_step(batch, trials)
    assert later is not None
    assert MASK not in later.cases
    assert DEFAULT in later.cases, "the default is the yardstick, whatever its bound says"


def test_a_race_ends_at_its_cap() -> None:
    times = table(default=100, fold=99.3, split=99.3, a2a=99.3)
    _, trials = searched(times, scatter=0.05)
    most = max(
        sum(t.outcome.step_us.count for t in trials if t.case == one and t.outcome.race.heat is Heat.RACED)
        for one in times
    )  # type: ignore[union-attr]
    assert most <= MOST_ROUNDS * 2 * 3


# --- Larger spaces --------------------------------------------------------------------------------------------------

KNOBS = {
    "path": ("split", "fold"),
    "kernel": ("fa2", "fa3"),
    "new_kernel": (None, "fa2", "fa3"),
    "exchange": ("ag_rs", "a2a", "direct"),
    "page_size": (16, 32, 64),
    "kv_layout": ("NHD", "HND"),
    "replayable": (False, True),
}


def large(cost: Callable[[Settings], float]) -> dict[Case, Runner]:
    from itertools import product

    times = {}
    for values in product(*KNOBS.values()):
        try:
            one = case(**dict(zip(KNOBS, values, strict=True)))
        except ValueError:
            continue
        times[one] = Runner(cost(one.settings), scatter=0.0, open_s=1.0, trial_s=2.0)
    return times


def test_of_many_candidates_few_are_measured_and_the_best_found() -> None:
    def cost(settings: Settings) -> float:
        kernels = {"fa2": 40.0, "fa3": 50.0}[settings.kernel] + {"fa2": 30.0, "fa3": 20.0}[settings.kernel_for_new]
        exchange = {"ag_rs": 25.0, "a2a": 20.0, "direct": 9.0}[settings.exchange]
        return (kernels + exchange) * (1.1 if settings.path == "fold" else 1.0) * (1 + settings.page_size / 1000)

    times = large(cost)
    finding, trials = searched(times)
    assert len(times) > 150
    assert finding.chosen is not None
    best = min(runner.step_us for runner in times.values())
    assert times[finding.chosen].step_us <= 1.005 * best
    assert len({trial.case for trial in trials}) < len(times) / 3
    assert max(len(run) for run in runs(trials).values()) <= SEATS
    assert len(took_part(trials, Heat.RACED)) <= FINALISTS + 1


def runs(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if isinstance(trial.outcome, Measured) and trial.outcome.race:
            found.setdefault(trial.outcome.race.name, []).append(trial)
    return found


def test_every_race_has_the_yardstick_in_it() -> None:
    _, trials = searched(large(lambda settings: 100.0 + settings.page_size))
    for run in runs(trials).values():
        if heats(run)[0] is Heat.SCREENED:
            assert DEFAULT in {trial.case for trial in run}


def test_one_change_of_a_kernel_leads_to_each_pass_alone() -> None:
    batch = Batch(tuple(large(lambda settings: 1.0)), DEFAULT)
    near = batch.neighbours(DEFAULT)
    assert case(kernel="fa2", new_kernel="fa3") in near, "the context alone"
    assert case(kernel="fa3", new_kernel="fa2") in near, "the new tokens alone"
    assert case(kernel="fa2") in near, "both"
    assert DEFAULT not in near
    assert set(near) <= set(batch.candidates)


# --- Within a budget ------------------------------------------------------------------------------------------------


ORDERED = ("q2ks32k", "q2ks33k", "q2ks34k")


def budgeted(budget_s: float, batches: int = 3) -> tuple[list[Finding], Paper, list[list[Trial]]]:
    tables: dict[Case, Runner] = {}
    for number in range(batches):
        for one, runner in table(default=100, fold=80, mask=300, split=95, a2a=97).items():
            tables[replace(one, workload=Workload.parse(f"q2ks{32 + number}k"))] = runner
    lots = [[one for one in tables if str(one.workload) == f"q2ks{32 + number}k"] for number in range(batches)]
    every = [Batch(tuple(lot), lot[0]) for lot in lots]
    paper = Paper(tables, white(0.003), 0)
    trials: list[Trial] = []
    done = []
    for batch, so_far in search(every, (), paper, budget_s=budget_s, now=lambda: paper.seconds):
        done.append(so_far[sum(trial.case in batch.places for trial in trials) :])
        trials += done[-1]
    return [found(batch, [t for t in trials if t.case in batch.candidates]) for batch in every], paper, done


def test_with_a_budget_every_batch_gets_a_look_before_any_is_searched_in_full() -> None:
    _, _, done = budgeted(1000.0)
    looked = [str(run[0].case.workload) for run in done[:3]]
    assert looked == ["q2ks32k", "q2ks33k", "q2ks34k"]
    assert {trial.case.settings.path for trial in done[0]} == {"split", "fold", "mask"}


@pytest.mark.parametrize(
    ("often", "first"),
    [
        ({}, ("q2ks34k", "q2ks33k", "q2ks32k")),
        ({"q2ks33k": 8.0}, ("q2ks33k", "q2ks34k", "q2ks32k")),
        ({"q2ks32k": 30.0, "q2ks34k": 0.5}, ("q2ks32k", "q2ks34k", "q2ks33k")),
    ],
)
def test_after_that_look_what_carries_most_of_the_time_comes_first(
    often: dict[str, float], first: tuple[str, ...]
) -> None:
    """Of three batches the second takes twice as long as the first, and the last ten times."""
    tables: dict[Case, Runner] = {}
    for number, factor in enumerate((1, 2, 10)):
        for one, runner in table(default=100, fold=80, mask=300, split=95, a2a=97).items():
            tables[replace(one, workload=Workload.parse(f"q2ks{32 + number}k"))] = replace(
                runner, step_us=factor * runner.step_us
            )
    lots = [tuple(one for one in tables if str(one.workload) == name) for name in ORDERED]
    every = [Batch(lot, lot[0]) for lot in lots]
    paper = Paper(tables, white(0.003), 0)
    steps = {Workload.parse(batch): count for batch, count in often.items()}
    order = [str(batch.workload) for batch, _ in search(every, (), paper, budget_s=1e6, often=steps, now=lambda: 0.0)]
    assert order[:3] == list(ORDERED)
    assert tuple(dict.fromkeys(order[3:])) == first
    plain = [str(batch.candidates[0].workload) for batch, _ in search(every, (), paper, now=lambda: 0.0)]
    assert list(dict.fromkeys(plain)) == list(ORDERED)


def test_with_enough_time_a_budget_changes_nothing() -> None:
    findings, paper, _ = budgeted(1000.0)
    assert [finding.chosen and finding.chosen.settings.path for finding in findings] == ["fold"] * 3
    assert all(finding.done for finding in findings)
    assert paper.seconds < 1000


@pytest.mark.parametrize("budget_s", [0.0, 1.0, 5.0, 12.0, 25.0, 40.0, 60.0])
def test_whatever_the_budget_the_answer_is_valid_and_in_time(budget_s: float) -> None:
    findings, paper, done = budgeted(budget_s)
    longest = max((sum(trial.seconds for trial in run) for run in done), default=0.0)
    assert paper.seconds <= budget_s + longest
    for finding in findings:
        assert finding.chosen is None or finding.chosen.settings.path in ("split", "fold")
        if finding.chosen and finding.chosen.settings.path == "fold":
            assert finding.comparison is not None
            assert finding.comparison.high < 1


def test_a_race_that_compiles_is_no_measure_of_those_to_come() -> None:
    class Compiling(Paper):
        def race(self, step: Step) -> list[Trial]:
            self.seconds += 30.0 if len(raced) == 2 else 0.0
            raced.append(step.heat)
            return super().race(step)

    tables: dict[Case, Runner] = {}
    for name in ORDERED:
        for one, runner in table(default=100, fold=80, split=95, a2a=97).items():
            tables[replace(one, workload=Workload.parse(name))] = runner
    lots = [tuple(one for one in tables if str(one.workload) == name) for name in ORDERED]
    every, raced = [Batch(lot, lot[0]) for lot in lots], list[Heat]()
    paper = Compiling(tables, white(0.003), 0)
    trials: dict[Workload, list[Trial]] = {}
    for batch, so_far in search(every, (), paper, budget_s=90.0, now=lambda: paper.seconds):
        trials[batch.candidates[0].workload] = list(so_far)
    assert all(found(batch, trials[batch.candidates[0].workload]).done for batch in every)


def test_a_process_that_cannot_be_renewed_confirms_nothing() -> None:
    times = table(default=100, fold=90, split=95)

    class Stuck(Paper):
        def renew(self) -> bool:
            return False

    batch, paper = Batch(tuple(times), DEFAULT), Stuck(times, white(0.003), 0)
    *_, (_, trials) = search([batch], (), paper, now=lambda: paper.seconds)
    assert Heat.CONFIRMED not in heats(trials)
    assert found(batch, trials).chosen == DEFAULT
    assert first_step(batch, trials) is None
