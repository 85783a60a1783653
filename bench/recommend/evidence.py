"""What is known of a dcp size: its profile, and what trials beside that tell of exchanges. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench.collective import CollectiveModel, Kind, Row, Way, fit_all, model_for, readings
from bench.line import decode
from bench.predict import messages
from bench.profile.entry import Geometry
from bench.profile.profile import Profile
from bench.recommend.decision import Exchange, Origin
from bench.recommend.steptime import Span, StepTimes, as_engine, fastest
from bench.record import SCHEMA, Label, Measured, Trial
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, PathName
from dcp_core.shapes import DType

ENGINE_EXCHANGES = (ExchangeName.AG_RS, ExchangeName.A2A)
"""Those that vLLM has for grouped-query attention."""
EXCHANGES = (*ENGINE_EXCHANGES, ExchangeName.DIRECT)
"""Those between real ranks."""


@dataclass(frozen=True, slots=True)
class Exchanges:
    """What trials tell of exchanges: models of those between real ranks, and the ways in which simulated cases were timed.

    Args:
        ways: each with the key of a case.
    """

    models: tuple[CollectiveModel, ...] = ()
    ways: frozenset[tuple[str, Way]] = frozenset()

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Exchanges:
        """Read trials."""
        known = list(trials)
        simulated = (
            (trial, trial.outcome)
            for trial in known
            if isinstance(trial.outcome, Measured) and trial.outcome.label is Label.SIMULATED
        )
        ways = frozenset((trial.case.key, Way.of(trial, outcome)) for trial, outcome in simulated)
        return cls(tuple(fit_all(readings(known))), ways)


class Telling:
    """A reader of runs for what they tell of exchanges beside profiles: the rest is not checked, nor made a trial of.

    Of simulated cases only the way in which they were timed is asked, so that of all of a layout that were timed alike
    one will do. Of exchanges between real ranks those of messages like the profiles' are.

    Args:
        profiles: by dcp.
    """

    def __init__(self, profiles: Mapping[int, Profile]) -> None:
        self._proofs = {case for profile in profiles.values() for case in proofs(profile)}
        self._rows = {_row(profile.geometry, dcp) for dcp, profile in profiles.items()}
        self._told: set[str] = set()

    def __call__(self, line: bytes) -> Trial | None:
        """Return the trial of a line; None if it adds nothing. See ``bench.store.Reader``."""
        from pydantic_core import from_json

        try:
            # In a quarter of the time that decoding takes to read JSON, since few lines add anything.
            adds, about = self._adds(from_json(line)["trial"])
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            adds, about = True, ""  # no whole trial: as it is decoded, it will tell
        if not adds:
            return None
        trial = decode(line)
        if about:
            self._told.add(about)
        return trial

    def _adds(self, trial: Mapping[str, Any]) -> tuple[bool, str]:
        """Tell whether a trial adds anything, and of a simulated one what that is."""
        case, outcome = trial["case"], trial["outcome"]
        if not 1 <= trial["schema"] <= SCHEMA:
            return True, ""
        if outcome["kind"] != "measured" or trial.get("is_sentinel"):
            return False, ""
        if outcome["label"] != Label.SIMULATED:
            shape, layout = case["shape"], case["layout"]
            if layout["dcp"] == 1 or case["settings"]["path"] != PathName.DECODE:
                return False, ""
            row = Row(shape["q_heads"] // layout["tp"], shape["head_dim"], DType(shape["dtype"]).itemsize)
            return row in self._rows, ""
        way = (
            trial["environment"]["hard"],
            outcome["timer"],
            outcome["flushed_bytes"],
            trial["policy"],
            trial["protocol"],
        )
        about = repr((case["shape"], case["layout"], way))
        return about not in self._told and Case.from_json(case).key in self._proofs, about


def _row(geometry: Geometry, dcp: int) -> Row:
    """Return what a token's message is made of where a group of ``dcp`` gathers a geometry's heads."""
    return Row(geometry.q_heads // dcp, geometry.head_dim, geometry.dtype.itemsize)


def proofs(profile: Profile) -> set[str]:
    """Return the keys of the cases that a profile was picked from."""
    return {candidate.case for entry in profile.entries for candidate in entry.candidates}


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one dcp size: a profile of its geometry, and what was measured of exchanges on the same machine.

    Args:
        beside: returns what the trials that it was picked from, among others, tell of exchanges; asked only where a step
            lacks its own, since reading them takes longer than all the rest.
    """

    profile: Profile
    beside: Callable[[], Exchanges] = Exchanges

    @classmethod
    def of(cls, profile: Profile, trials: Iterable[Trial]) -> Evidence:
        """Join a profile with the trials that it was picked from, and others that were made beside them."""
        exchanges = Exchanges.of(trials)
        return cls(profile, lambda: exchanges)

    @property
    def way(self) -> Way | None:
        """In which the profile's simulated steps were timed; None if not one and the same, or not known."""
        known = proofs(self.profile)
        ways = {way for case, way in self.beside().ways if case in known}
        return ways.pop() if len(ways) == 1 else None


@lru_cache(maxsize=16)
def step_times(evidence: Evidence, layout: DcpLayout, *, engine: bool) -> StepTimes:
    """Return what is known of steps on a layout, as ``decide`` would have it; once, since a profile has hundreds."""
    pick = as_engine(evidence.profile.environment) if engine else fastest
    return StepTimes.of(evidence.profile, layout, pick)


def modelled(case: Case, evidence: Evidence, among: Iterable[ExchangeName]) -> Exchange | None:
    """Return the modelled time of a case's exchanges, by the quickest of some; None if none of them was fitted for it."""
    way, models = evidence.way, evidence.beside().models
    if way is None:
        return None
    sent = list(messages(case))
    found = []
    for exchange in among:
        kind = Kind(way, exchange, case.layout.dcp, Row.of(case))
        fitted = [(model_for(models, operation, kind), operation, tokens) for operation, tokens in sent]
        brackets = [
            model.at(kind.dcp, kind.row.wire_bytes(operation, kind.dcp, tokens))
            for model, operation, tokens in fitted
            if model
        ]
        if sent and len(brackets) == len(sent):
            total = [sum(one) for one in zip(*((b.low_us, b.time_us, b.high_us) for b in brackets), strict=True)]
            span = Span(sorted(total)[1], min(total), max(total))
            found.append(Exchange(span, Origin.MODELLED, len(sent) // 2, exchange))
    return min(found, key=lambda one: one.span.median_us, default=None)
