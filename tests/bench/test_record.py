"""The record: every rule of measuring has its field, and a value that cannot be is never born."""

from __future__ import annotations

import math
import re
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from bench.record import MAX_PIECES, Measured, Trial
from bench.stats import summarize
from bench.times import FEWEST_FOR_P99, Outliers, Pace, Piece
from tests.bench.made_up import cases, trial

METHOD = Path(__file__).parents[2] / "docs" / "method.md"
RULES = re.findall(r"^\| (\d+)\. ([^|]+) \| (.+) \|$", METHOD.read_text(encoding="utf-8"), re.MULTILINE)


def parts_of(kind: Any) -> list[Any]:
    """Return the types that a field is made of: of ``tuple[StageTime, ...]`` that of a stage."""
    inner = get_args(kind)
    return [part for one in inner for part in parts_of(one)] if inner else [kind]


def field_of(kind: Any, name: str) -> Any:
    """Return the type of a field or derived field of a record."""
    for part in parts_of(kind):
        if is_dataclass(part):
            derived = getattr(part, name, None)
            found = get_type_hints(derived.fget).get("return") if isinstance(derived, property) else None
            if (known := get_type_hints(part).get(name, found)) is not None:
                return known
    return None


def test_the_thirteen_rules_are_all_told() -> None:
    assert [int(number) for number, _, _ in RULES] == list(range(1, 14))


@pytest.mark.parametrize(("number", "rule", "fields"), RULES, ids=[rule for _, rule, _ in RULES])
def test_a_rule_is_kept_in_fields_that_a_trial_has(number: str, rule: str, fields: str) -> None:
    paths = re.findall(r"`([a-z0-9_.]+)`", fields)
    assert paths
    for path in paths:
        kind: Any = Trial
        for name in path.split("."):
            kind = field_of(kind, name)
            assert kind is not None, f"rule {number}: a trial has no {path}"


PIECE = Piece("attend", 0.0, 1.0, communicates=False)


def measured() -> Measured:
    (case,) = cases(["q8s1k"], dcps=(1,), kernels=("fa2",))
    outcome = trial(case).outcome
    assert isinstance(outcome, Measured)
    return outcome


def test_skew_and_straggler_of_a_step_are_those_of_its_ranks() -> None:
    between = replace(measured(), rank_samples_us=((10.0, 11.0, 12.0), (12.0, 14.0, 11.0)))
    assert between.skew_us == (2.0, 3.0, 1.0)
    assert between.straggler == 1
    alone = replace(measured(), rank_samples_us=((10.0, 11.0, 12.0),))
    assert (alone.skew_us, alone.straggler) == ((), None)


def test_a_pace_is_what_states_tell_together() -> None:
    states = [{"sm_mhz": "1980", "event_reasons": "none"}, {}, {"sm_mhz": "1755", "event_reasons": "idle, sync boost"}]
    assert Pace.of(states) == Pace(2, 1755, 1980, ("idle", "sync boost"))
    assert Pace.of([{"event_reasons": "idle"}]) == Pace(1, None, None, ("idle",))
    assert Pace.of([{"temperature_c": "61"}, {"power_w": "480"}, {"temperature_c": "47"}]) == Pace(
        3, temperature_c_low=47, temperature_c_high=61, power_w_low=480, power_w_high=480
    )
    assert Pace.of([{}, {}]) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: Pace(0), "of one reading or more, not 0"),
        (lambda: Pace(1, 1980, 1755), "an SM clock from 1980 to 1755 MHz"),
        (lambda: Pace(1, None, 1755), "an SM clock from None to 1755 MHz"),
        (lambda: Pace(1, temperature_c_low=61, temperature_c_high=47), "a temperature from 61 to 47 °C"),
        (lambda: Pace(1, temperature_c_low=61), "a temperature from 61 to None °C"),
        (lambda: Pace(1, power_w_low=-1, power_w_high=700), "a power from -1 to 700 W"),
        (lambda: Outliers(above=-1), "counts of outliers should be neither negative"),
        (lambda: replace(summarize([1.0] * 298), p99=1.0), f"from {FEWEST_FOR_P99} samples on, and this is of 298"),
        (lambda: replace(summarize([1.0]), outliers=Outliers(above=1, far_below=1)), "2 outliers among 1 samples"),
        (lambda: replace(measured(), dropped=-1), "dropped and peak_bytes should be neither negative"),
        (lambda: Piece("attend", -1.0, 2.0, communicates=False), "times of 'attend' should be neither negative"),
        (lambda: Piece("attend", 0.0, math.inf, communicates=False), "nor infinite, not inf"),
        (lambda: Piece("attend", 3.0, 2.5, communicates=False), "'attend' ends at 2.5 µs, before it begins at 3"),
        (lambda: replace(measured(), timeline=(PIECE,) * (MAX_PIECES + 1)), "has 256 pieces of work at most, not 257"),
        (lambda: replace(measured(), timer_empty_us=-1.0), "what else a timer reads should be neither negative"),
        (lambda: replace(measured(), timer_empty_end_us=-1.0), "what else a timer reads should be neither negative"),
    ],
)
def test_what_cannot_be_is_refused(change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        change()
