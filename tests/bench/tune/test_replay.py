"""What the search promises, replayed on what an H200 took for every candidate, and on a space larger than was ever measured.

``python -m bench.tune.replay results/reference/h200`` prints the whole table, over more seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

from bench.noise import NOISES, white
from bench.shipped import reference_folder
from bench.store import Store
from bench.tune.batch import Batch
from bench.tune.paper import MADE_UP_ON, Table, made_up_table, table_of, told_apart
from bench.tune.replay import (
    STRATEGIES,
    Score,
    as_searched,
    by_medians,
    by_one_look,
    by_oracle,
    by_races,
    main,
    p90,
    replay,
    scores_grid,
)


@cache
def reference() -> tuple[Table, list[Batch]]:
    trials, _ = Store.read(reference_folder() / "h200")
    table = table_of(trials)
    return table, told_apart(table, trials[-1].environment)


@cache
def large() -> tuple[Table, list[Batch]]:
    table = made_up_table()
    return table, told_apart(table, MADE_UP_ON)


def regrets(scores: Sequence[Score]) -> list[float]:
    return sorted(score.regret for score in scores)


def check_promises(scores: Sequence[Score]) -> None:
    """Hold what a search promises of its choices, whatever they cost."""
    found = regrets(scores)
    assert mean(found) <= 0.01
    assert p90(found) <= 0.03
    assert mean(score.false_win for score in scores) <= 0.01
    assert max(score.over_default for score in scores) <= 0.01


@pytest.mark.parametrize("noise", NOISES)
def test_on_what_was_measured_the_search_keeps_its_promises(noise: str) -> None:
    table, batches = reference()
    assert len(batches) > 100
    scores = replay(table, batches, by_races, NOISES[noise], range(1))
    check_promises(scores)


def test_real_searches_found_nearly_the_best_of_every_candidate_in_a_tenth_of_the_time() -> None:
    """Five batches of which an H200 measured every candidate that runs, and then searched for the best."""
    trials, _ = Store.read(reference_folder() / "h200" / "exhaustive")
    table = table_of(trials)
    batches = told_apart(table, trials[-1].environment)
    assert [len(batch.candidates) for batch in batches] == [312, 312, 204, 204, 204]
    scores = as_searched(table, batches, trials)
    assert len(scores) == len(batches)
    check_promises(scores)
    assert not any(score.false_win for score in scores)
    assert mean(score.seconds for score in scores) <= 0.1


def test_between_real_ranks_searches_found_nearly_the_best_of_what_was_measured_whole() -> None:
    """A batch of decodes and a chunk on two H200s; of so few candidates a search saves little, as docs/method.md says."""
    trials, _ = Store.read(reference_folder() / "h200" / "exhaustive" / "two-gpus")
    table = table_of(trials)
    batches = told_apart(table, trials[-1].environment)
    assert sorted(len(batch.candidates) for batch in batches) == [72, 84]
    scores = as_searched(table, batches, trials)
    assert len(scores) == len(batches)
    check_promises(scores)
    assert not any(score.false_win for score in scores)
    assert max(score.regret for score in scores) == pytest.approx(0.007, abs=0.0005)
    assert mean(score.cases for score in scores) == pytest.approx(0.40, abs=0.005)
    assert mean(score.seconds for score in scores) == pytest.approx(0.60, abs=0.005)


@pytest.mark.parametrize("noise", ["white", "two clocks"])
def test_replayed_on_every_candidate_of_five_batches_the_search_keeps_its_promises(noise: str) -> None:
    trials, _ = Store.read(reference_folder() / "h200" / "exhaustive")
    table = table_of(trials)
    scores = replay(table, told_apart(table, trials[-1].environment), by_races, NOISES[noise], range(3))
    check_promises(scores)
    assert mean(score.cases for score in scores) <= 0.2


@pytest.mark.parametrize("noise", ["white", "two clocks"])
def test_of_many_candidates_a_tenth_is_measured(noise: str) -> None:
    table, batches = large()
    assert len(table) > 3000
    scores = replay(table, batches, by_races, NOISES[noise], range(2))
    check_promises(scores)
    assert mean(score.cases for score in scores) <= 0.1
    assert mean(score.seconds for score in scores) <= 0.1


def test_measuring_one_after_another_is_fooled_where_races_are_not() -> None:
    """A device with two clock rates: what each case took depends on when it was its turn."""
    table, batches = reference()
    some = batches[::3]
    alone, raced = (replay(table, some, way, NOISES["two clocks"], range(1)) for way in (by_medians, by_races))
    assert mean(score.false_win for score in raced) == 0
    assert mean(regrets(raced)) < mean(regrets(alone))
    looks = replay(table, some, by_one_look, NOISES["spiky"], range(1))
    assert mean(score.false_win for score in looks) > 0


def test_the_oracle_regrets_nothing_and_what_is_random_does() -> None:
    table, batches = reference()
    assert max(regrets(replay(table, batches, by_oracle(table), white, range(1)))) == 0
    guessed = replay(table, batches, STRATEGIES["a random third"], white, range(1))
    assert mean(regrets(guessed)) > 0.01
    assert mean(score.cases for score in guessed) < 0.8


def test_scores_are_printed_a_line_a_way() -> None:
    table, batches = reference()
    scores = {("white", name): replay(table, batches[:3], way, white, range(1)) for name, way in STRATEGIES.items()}
    lines = scores_grid("what searching is worth", scores).to_text().splitlines()
    assert len(lines) == 3 + len(STRATEGIES)
    assert lines[3].split()[:2] == ["white", "races"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere: no batch there had two candidates measured each alone"),
        (["nowhere", "--seeds", "0"], "--seeds is a positive whole number, not 0"),
    ],
)
def test_what_cannot_be_replayed_is_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
