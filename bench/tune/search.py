"""What to measure next to find the best settings for one batch, and what was found: decided from trials, and nothing else.

Screen every candidate once; race the best against one another and the engine's default; confirm the winner in a fresh
process. A search keeps no state: it reads what was measured, so that going on after an interruption is reading the store.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.record import Heat, Measured, Trial
from bench.tune.batch import Batch, cache_of
from bench.tune.known import Known
from bench.verdict import Comparison, Verdict
from dcp_core.settings import Case

ROUNDS = 10
"""Of one race: with its visits and their samples about the most that a trial keeps of each case."""
SEATS = 16
"""Cases held open at once while screening."""
SCREEN_ALL = 24
"""Candidates that are all screened. Of more, those next to the best ones found are, as long as they lead on."""


@dataclass(frozen=True, slots=True)
class Step:
    """A race to run. ``whole``: time planning and every stage of each case too."""

    heat: Heat
    cases: tuple[Case, ...]
    rounds: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a search found, so far or in the end.

    Args:
        chosen: the winner if it was shown to beat the default in a fresh process, else the default; None if nothing runs.
        comparison: of the winner with the default; None if they are one, or there is no default.
        runner_up: the best of the others, as ``(case, its time over the chosen one's)``; None if it was alone.
        heat: how far the search came; None if nothing was measured.
        screened: of how many ``candidates``.
        trials, seconds: spent on it.
    """

    chosen: Case | None
    default: Case | None
    comparison: Comparison | None
    runner_up: tuple[Case, float] | None
    heat: Heat | None
    screened: int
    candidates: int
    trials: int
    seconds: float
    done: bool


def next_step(batch: Batch, trials: Sequence[Trial]) -> Step | None:
    """Return the race to run after these trials of a batch; None if there is nothing left to find out."""
    known = Known(batch, trials)
    return _screen(known) or _race(known) or _confirm(known)


def first_step(batch: Batch, trials: Sequence[Trial]) -> Step | None:
    """Return the race that gives a coarse picture: the default beside the likeliest settings of each path."""
    known = Known(batch, trials)
    return _screening(known, [case for case in batch.likeliest if known.wants(case)])


def found(batch: Batch, trials: Sequence[Trial]) -> Finding:
    """Return what these trials of a batch say."""
    known = Known(batch, trials)
    step = _screen(known) or _race(known)
    winner = None if step else known.winner
    comparison = None
    if winner and batch.default and winner != batch.default:
        comparison = known.versus(winner, batch.default, Heat.CONFIRMED)
    beaten = comparison is not None and comparison.verdict is Verdict.FASTER
    default = batch.default if batch.default in known.times else None
    chosen = winner if beaten or default is None else default
    chosen = chosen or (min(known.ratios, key=known.ratios.__getitem__) if known.ratios else None)
    others = {case: known.beside(case, chosen) for case in known.ratios if chosen and case != chosen}
    second = min(others, key=others.__getitem__, default=None)
    heats = [trial.outcome.race.heat for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.race]
    return Finding(
        chosen,
        default,
        comparison,
        (second, others[second]) if second else None,
        max(heats, key=list(Heat).index, default=Heat.SCREENED if known.times else None),
        len(known.times),
        len(batch.candidates),
        len(trials),
        sum(trial.seconds for trial in trials),
        done=not (step or _confirm(known)),
    )


def _screen(known: Known) -> Step | None:
    """Screen the likeliest first, then all; of many what the best ones lead to."""
    batch = known.batch
    unseen = [case for case in batch.likeliest if known.wants(case)]
    if not unseen and len(batch.candidates) <= SCREEN_ALL:
        unseen = [case for case in batch.candidates if known.wants(case)]
    elif not unseen:
        unseen = known.leads
    # Those with one cache beside one another: laying it out is what a case costs most.
    return _screening(known, sorted(unseen, key=cache_of))


def _screening(known: Known, cases: Sequence[Case]) -> Step | None:
    """Return the screening of the first of some cases beside the reference; None if there are none."""
    if not cases or known.reference is None:
        return None
    others = [case for case in cases if case != known.reference][: SEATS - 1]
    return Step(Heat.SCREENED, (known.reference, *others), rounds=1)


def _race(known: Known) -> Step | None:
    racing = known.racing
    if len(racing) < 2 or known.is_a_duel or known.is_worn_out(racing, Heat.RACED):
        return None
    verdicts = [known.versus(case, racing[0], Heat.RACED) for case in racing[1:]]
    if all(seen is not None and seen.verdict is Verdict.SAME for seen in verdicts):
        return None
    return Step(Heat.RACED, racing, ROUNDS)


def _confirm(known: Known) -> Step | None:
    """Prove the winner against the default; where the default itself won, or there is none, look at every stage of it."""
    winner, default = known.winner, known.batch.default
    if winner is None:
        return None
    pair = (winner,) if default in (None, winner) or default not in known.times else (default, winner)
    seen = known.versus(winner, pair[0], Heat.CONFIRMED)
    enough = seen and (seen.verdict is not Verdict.AMBIGUOUS or known.is_worn_out(pair, Heat.CONFIRMED))
    if enough:
        return None
    return Step(Heat.CONFIRMED, pair, ROUNDS, whole=seen is None)
