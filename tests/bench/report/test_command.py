"""The command that measures a case again, read as the program reads it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from bench.cli.options import Asked, takes_groups
from bench.record import Trial
from bench.report.command import command_of
from bench.shipped import reference_folder
from bench.store import Store
from bench.sweep import Sweep
from dcp_core.settings import canonical
from dcp_core.shapes import ModelShape
from tests.bench.made_up import cases, trial


def cases_asked_for(command: str) -> list[object]:
    """Return the cases that a command would measure, as ``sweep`` works them out on a GPU."""
    asked: list[Asked] = []

    def sweep(asked_for: Asked) -> int:
        asked.append(asked_for)
        return 0

    program, ranks_option, ranks, name, *words = shlex.split(command)
    assert (program, ranks_option, name) == ("dcpbench", "--ranks", "sweep")
    app = typer.Typer()
    app.command()(takes_groups(sweep))
    kept, skip = [], False
    for word in words:
        if skip or word in ("--precision", "--eager", "--trace"):
            skip = word == "--precision"
            continue
        kept.append(word)
    app(kept, standalone_mode=False)
    (found,) = asked
    if found.sweep:
        whole = Sweep.load(found.sweep, on_gpu=True).override(found.axes(), found.settings())
    else:
        whole = Sweep.from_options(found.axes(), found.settings(), on_gpu=True)
    if found.synthetic:
        whole = replace(whole, parts=tuple(replace(part, synthetic=True) for part in whole.parts))
    return list(whole.expand(int(ranks)).cases)


def test_every_shipped_trial_s_command_measures_its_case_and_nothing_else() -> None:
    trials = Store.read(reference_folder() / "h200")[0]
    for one in trials[::23]:
        assert cases_asked_for(command_of(one)) == [one.case], command_of(one)


@pytest.mark.parametrize("path", ["split", "mask", "fold", "decode"])
def test_settings_that_are_not_at_their_default_are_in_it(path: str) -> None:
    batch = "8q1s1k" if path == "decode" else "q8s1k"
    for case in cases([batch]):
        if case.settings.path != path:
            continue
        changed = replace(
            case, settings=replace(case.settings, page_size=64, skip_empty_context=False, kv_layout="HND")
        )
        changed = replace(changed, settings=canonical(changed.settings, changed.layout, changed.workload))
        command = command_of(trial(changed))
        assert "--set page_size=64" in command
        assert "--set kv_layout=HND" in command
        assert cases_asked_for(command) == [changed]


def made(shape: ModelShape, one: Trial) -> Trial:
    return replace(one, case=replace(one.case, shape=shape))


def test_a_model_is_called_by_its_preset_by_its_heads_or_by_its_file(tmp_path: Path) -> None:
    one = trial(next(iter(cases(["8q1s1k"]))))
    own = ModelShape(64, 4, 128, 3, name="; rm -rf / #")
    assert "--model q64,kv4,d128,l3 " in command_of(made(own, one))
    assert "--model CONFIG.json " in command_of(made(replace(own, kv_dtype="float8_e4m3fn"), one))
    assert "rm" not in command_of(made(own, one))
    assert "--model qwen3-235b-a22b " in command_of(made(ModelShape.preset("qwen3-235b-a22b"), one))


def test_how_it_was_timed_is_in_it() -> None:
    one = trial(next(iter(cases(["8q1s1k"]))))
    eager = replace(one, policy=replace(one.policy, graphs=False, precision=0.005))
    assert command_of(eager).endswith("--eager --precision 0.005")
    assert command_of(replace(one, policy=replace(one.policy, trace=True))).endswith(" --trace --precision 0.01")
    warm = replace(one, policy=replace(one.policy, cold=False, calls=20))
    assert " sweep exchange --model" in command_of(warm)
