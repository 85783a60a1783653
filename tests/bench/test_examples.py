"""The examples in every command's help: each is understood, and those that only read are run."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from bench.cli import main
from bench.cli.exits import Exit
from bench.cli.program import app
from bench.profile.profile import Profile
from bench.store import Store
from bench.tune.pick import pick
from tests.bench.made_up import trials
from tests.bench.stand_in import Scripted

PROGRAM: Any = typer.main.get_command(app)
NOT_READING = ("tune", "sweep", "verify", "audit", "doctor", "plot", "report")
"""Commands that measure, or draw, which takes seconds: their own tests run them."""


def commands(group: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield every command of a group with its name, and the groups themselves."""
    yield " ".join(names), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


COMMANDS = dict(commands(PROGRAM))


def examples(command: Any) -> list[str]:
    """Return the examples of a command's help, as typed."""
    shown = re.sub(r"\\\n\s*", "", (command.help or "").partition("Examples:")[2])
    return re.findall(r"^\s*(dcpbench .*)$", shown, re.MULTILINE)


EXAMPLES = list(dict.fromkeys(example for command in COMMANDS.values() for example in examples(command)))


def words_of(example: str) -> list[str]:
    """Return what the program is given, as a shell would: without what belongs to the shell, patterns and variables filled in."""
    program = re.split(r" (?:>>?|&&|\|) ", example)[0].replace("$SLURM_ARRAY_TASK_ID", "2")
    words = shlex.split(program)[1:]
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_two_examples(name: str) -> None:
    assert len(examples(COMMANDS[name])) >= 2
    assert max(map(len, (COMMANDS[name].help or "").partition("Examples:")[2].splitlines())) <= 78, (
        "else it is broken in two"
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_understood(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name, command in COMMANDS.items():
        if not hasattr(command, "commands"):
            monkeypatch.setattr(command, "callback", lambda _name=name, **_: asked.append(_name))
    words = words_of(example)
    PROGRAM(words, prog_name="dcpbench", standalone_mode=False, obj=words)
    (name,) = asked
    assert re.match(rf"dcpbench (--ranks \d+ )?{name}( |$)", example)


def written(folder: Path, *batches: str) -> Path:
    """Write a run of some batches into a folder, and return its file."""
    with Store.open(folder) as store:
        for one in trials(*batches, exchanges=("ag_rs", "a2a")):
            store.append(one)
    assert store.path is not None
    return store.path


def saved(run: Path, *names: str) -> Profile:
    """Save the profile of a run under some names."""
    profile = max(pick(Store.read(run.parent)[0]), key=lambda one: len(one.entries))
    for name in names:
        profile.write(Path(name))
    return profile


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the files lie that examples name."""
    folder = tmp_path_factory.mktemp("workplace")
    with contextlib.chdir(folder):
        lay_out(folder)
    return folder


def lay_out(tmp_path: Path) -> None:
    """Put files where examples look for them."""
    decodes, prefills = written(tmp_path / "decodes", "8q1s32k", "64q1s32k"), written(tmp_path / "prefills", "q512s8k")
    for folder in ("results", "results/reference/h200", "baseline"):
        Path(folder).mkdir(parents=True)
        shutil.copy(decodes, folder)
    for name in ("before.jsonl", "after.jsonl"):
        shutil.copy(decodes, name)
    saved(decodes, "before.json", "after.json", "decode.json", "monday.json", "mine.json", "other.json").save(
        Path("results/profiles")
    )
    saved(prefills, "prefill.json", "tuesday.json")
    Path("requests.csv").write_text("arrival,prompt,output\n0,4000,20\n0.5,900,30\n1.0,12000,10\n", encoding="utf-8")


@pytest.mark.parametrize("example", [one for one in EXAMPLES if not re.search(f" ({'|'.join(NOT_READING)})( |$)", one)])
def test_every_example_that_reads_is_run(
    example: str,
    workplace: Path,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace)
    assert main(words_of(example)) == Exit.DONE, capsys.readouterr().err
    assert capsys.readouterr().out
    assert scripted.measured == []
