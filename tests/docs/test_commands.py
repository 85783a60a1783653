"""docs/commands.md is what the program says of itself today, and says all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.cli.reference import MEANINGS, Command, commands, page

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
WITH_OPTIONS = [command for command in commands() if any(not one.is_argument for one in command.parameters)]


def test_the_committed_reference_is_what_the_program_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m bench.cli.reference > docs/commands.md"


@pytest.mark.parametrize("command", WITH_OPTIONS, ids=lambda command: command.words)
def test_the_reference_tells_of_every_option_that_help_shows(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.words
    assert main([*words.split(), "--help"]) == Exit.DONE
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    section = page().split(f"\n## dcpbench {words}\n")[1].split("\n## ")[0]
    assert shown
    assert {flag for flag in shown if flag not in section} == set()


def test_a_section_says_what_is_required_what_may_be_given_and_what_is_if_not() -> None:
    memory = page().split("\n## dcpbench memory\n")[1].split("\n## ")[0]
    assert "| `--model NAME` | Preset, config.json, or q64,kv4,d128. *Required.* |" in memory
    assert "| `--page-size N` | Tokens per page. *1 to 65536.* *Default: 16.* |" in memory
    merge = page().split("\n## dcpbench profile merge\n")[1].split("\n## ")[0]
    assert "dcpbench profile merge [OPTIONS] A B" in merge
    assert "| `--to PATH, -o PATH` |" in merge


def test_every_exit_code_has_its_meaning() -> None:
    assert list(MEANINGS) == list(Exit)
    assert "|---|\n| 0 | done |\n" in page()
    method = (PAGE.parent / "method.md").read_text(encoding="utf-8")
    for code, meaning in MEANINGS.items():
        assert f"\n| {int(code)} | {meaning} |\n" in page()
        assert f"\n| {int(code)} | {meaning} |\n" in method
