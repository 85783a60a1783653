"""How well a way of searching chooses, and what it costs: replayed on tables of what every candidate takes, without a device.

    python -m bench.tune.replay results/reference/h200 [another folder] [--seeds 10]

Prints regret, false wins, losses over the default, and the share of cases opened and of time, on the tables of some folders,
and on a made-up one of a space larger than any that was measured. Batches that a real search went over too come first, by what
it chose and how long it took. Standard library only.
"""

from __future__ import annotations

import math
import random
import sys
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from bench.grid import Column, Grid
from bench.noise import NOISES, Noise
from bench.record import Measured, Skipped, Trial
from bench.tune.batch import Batch
from bench.tune.loop import search
from bench.tune.paper import LEAST_SAMPLES, MADE_UP_ON, NOWHERE, Paper, Table, made_up_table, table_of, told_apart
from bench.tune.search import found
from bench.tune.space import order_of
from dcp_core.settings import Case

WORTH_SAYING = 0.01
"""Relative; a loss over the default beyond this counts as one."""


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one batch: how much slower the choice is than the best and than the default, and what it cost.

    Args:
        false_win: published over the default, and not faster.
    """

    regret: float
    over_default: float
    false_win: bool
    cases: float
    seconds: float


Strategy = Callable[[Batch, Paper], Case]
"""Chooses a candidate of a batch."""


def by_races(batch: Batch, paper: Paper) -> Case:
    """Search as dcpbench does."""
    *_, (_, trials) = search([batch], (), paper, now=lambda: paper.seconds)
    chosen = found(batch, trials).chosen
    if chosen is None:
        raise ValueError("nothing was chosen among candidates that all run")
    return chosen


def by_one_look(batch: Batch, paper: Paper) -> Case:
    """Time each candidate once, and take the fastest."""
    return min(batch.candidates, key=lambda case: paper.alone(case, 1))


def by_medians(batch: Batch, paper: Paper) -> Case:
    """Measure every candidate by itself, and take the best median."""
    return min(batch.candidates, key=lambda case: paper.alone(case, LEAST_SAMPLES))


def at_random(batch: Batch, paper: Paper) -> Case:
    """Measure a third of the candidates, at least two, and the default; take the best median."""
    some = paper.source.sample(batch.candidates, max(2, len(batch.candidates) // 3))
    tried = dict.fromkeys([*([batch.default] if batch.default else []), *some])
    return min(tried, key=lambda case: paper.alone(case, LEAST_SAMPLES))


def by_oracle(table: Table) -> Strategy:
    """Return the strategy that knows the table."""
    return lambda batch, _paper: min(batch.candidates, key=lambda case: table[case].step_us)


STRATEGIES: Mapping[str, Strategy] = {
    "races": by_races,
    "each alone": by_medians,
    "one look each": by_one_look,
    "a random third": at_random,
}


def replay(
    table: Table, batches: Sequence[Batch], strategy: Strategy, noise: Callable[[], Noise], seeds: Iterable[int]
) -> list[Score]:
    """Let a strategy search every batch once for each seed."""
    return [
        _replayed(table, batch, strategy, noise, f"{seed} {number}")
        for seed in seeds
        for number, batch in enumerate(batches)
    ]


def as_searched(table: Table, batches: Sequence[Batch], trials: Iterable[Trial]) -> list[Score]:
    """Judge by a table what real searches chose and took, those of its batches that were searched and confirmed.

    A search was also about the candidates that turned out not to run: they stand in no table.
    """
    tried: dict[Case, list[Trial]] = defaultdict(list)
    for trial in trials:
        if isinstance(trial.outcome, Skipped) or (isinstance(trial.outcome, Measured) and trial.outcome.race):
            tried[trial.case].append(trial)
    refused = [case for case in tried if case not in table]
    scores = []
    for batch in batches:
        beside = [case for case in refused if batch.is_about(case)]
        candidates = sorted({*batch.candidates, *beside}, key=lambda case: order_of(case.settings))
        own = [trial for case in candidates for trial in tried.get(case, ())]
        finding = found(replace(batch, candidates=tuple(candidates)), own) if own else None
        if finding and finding.done and finding.chosen and finding.chosen in table:
            opened = {trial.case for trial in own}
            scores.append(_score(table, batch, finding.chosen, opened, finding.seconds))
    return scores


def _replayed(table: Table, batch: Batch, strategy: Strategy, noise: Callable[[], Noise], seed: str) -> Score:
    paper = Paper(table, noise(), hash_of(seed))
    chosen = strategy(batch, paper)
    return _score(table, batch, chosen, paper.opened, paper.seconds)


def _score(table: Table, batch: Batch, choice: Case, opened: Collection[Case], seconds: float) -> Score:
    chosen = table[choice].step_us
    best = min(table[case].step_us for case in batch.candidates)
    default = table[batch.default].step_us if batch.default else None
    exhaustive_s = sum(table[case].trial_s for case in batch.candidates)
    return Score(
        regret=chosen / best - 1,
        over_default=chosen / default - 1 if default else 0.0,
        false_win=default is not None and chosen != default and chosen >= default,
        cases=len(opened) / len(batch.candidates),
        seconds=seconds / exhaustive_s,
    )


def p90(ordered: Sequence[float]) -> float:
    """Return the least of ascending numbers that nine tenths of them do not exceed: of fewer than ten the largest."""
    return ordered[math.ceil(0.9 * len(ordered)) - 1]


def hash_of(text: str) -> int:
    """Return a number for a text, the same in every process."""
    return random.Random(text).getrandbits(32)


def scores_grid(title: str, scores: Mapping[tuple[str, str], Sequence[Score]]) -> Grid:
    """Return a table of what strategies are worth: regret, false wins, losses over the default, and their share of the cost."""
    columns = (
        Column("noise"),
        Column("search"),
        Column("regret", right=True),
        Column("p90", right=True),
        Column("worst", right=True),
        Column("false wins", right=True),
        Column("losses", right=True),
        Column("cases", right=True),
        Column("time", right=True),
    )
    return Grid(title, columns, tuple(_cells(*names, found) for names, found in scores.items()))


def _cells(noise: str, strategy: str, scores: Sequence[Score]) -> tuple[str, ...]:
    regrets = sorted(score.regret for score in scores)
    numbers = (
        mean(regrets),
        p90(regrets),
        regrets[-1],
        mean(score.false_win for score in scores),
        mean(score.over_default > WORTH_SAYING for score in scores),
        mean(score.cases for score in scores),
        mean(score.seconds for score in scores),
    )
    return (
        noise,
        strategy,
        *(f"{100 * number:.2f}%" for number in numbers[:5]),
        *(f"{100 * n:.0f}%" for n in numbers[5:]),
    )


def main(words: Sequence[str]) -> int:
    """Replay the runs of some folders, and a made-up table, and print what each strategy is worth."""
    asked = ArgumentParser(prog="python -m bench.tune.replay", description=(__doc__ or "").partition("\n")[0])
    asked.add_argument(
        "folder", nargs="*", type=Path, help="of runs that measured every candidate of some batches alone"
    )
    asked.add_argument("--seeds", type=int, default=10, help="searches of each batch with each noise (10)")
    given = asked.parse_args(words)
    if given.seeds < 1:
        asked.error(f"--seeds is a positive whole number, not {given.seeds}")
    for folder in given.folder:
        _replay_folder(folder, range(given.seeds), asked)
    table = made_up_table()
    _report("made up", table, told_apart(table, MADE_UP_ON), range(-(-given.seeds // 2)))
    return 0


def _replay_folder(folder: Path, seeds: Sequence[int], asked: ArgumentParser) -> None:
    from bench.files import FileError
    from bench.store import Store

    try:
        trials, notices = Store.read(folder)
    except FileError as error:
        asked.error(str(error))
    for notice in notices:
        _print(notice)
    table = table_of(trials)
    batches = told_apart(table, trials[-1].environment if trials else NOWHERE)
    if not batches:
        asked.error(
            f"{folder}: no batch there had two candidates measured each alone, as a sweep or --search exhaustive does"
        )
    _report(str(folder), table, batches, seeds, as_searched(table, batches, trials))


def _report(
    title: str, table: Table, batches: Sequence[Batch], seeds: Sequence[int], searched: Sequence[Score] = ()
) -> None:
    candidates = sum(len(batch.candidates) for batch in batches)
    title = f"{title}: {candidates} candidates for {len(batches)} batches, {len(seeds)} times"
    scores = {("the device's", f"races of {len(searched)}"): searched} if searched else {}
    scores |= {
        (noise, name): replay(table, batches, strategy, make, seeds)
        for noise, make in NOISES.items()
        for name, strategy in STRATEGIES.items()
    }
    _print(scores_grid(title, scores).to_text())
    _print("")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
