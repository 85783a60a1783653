"""What typer finds wrong in a command line, as a sentence that says what would be right.

Which click typer brings along differs between versions: what is read of a mistake and of a command is what all of them have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import typer

OF_THEIR_OWN = {("recommend", "--dcp"): "recommend answers for every legal dcp size: leave --dcp out"}
"""What to do about an option that a command might be expected to have."""


def described(mistake: Any, words: Sequence[str], app: typer.Typer) -> str:
    """Say what typer found wrong, what would be right, and where help is.

    Args:
        mistake: as typer raised it; without the context of its command where an option lacks its value.
        words: the command line without the program's name.
        app: the program.
    """
    program = str(app.info.name)
    context = getattr(mistake, "ctx", None)
    command, path = (context.command, context.command_path) if context else _named(words, app)
    name = path.removeprefix(program).strip()
    option = getattr(mistake, "option_name", None) or ""
    if option == "--ranks" and name:
        return f"--ranks stands before the command: {program} --ranks 2 {name}"
    where = f"See '{path} --help'"
    if fix := OF_THEIR_OWN.get((name, option)):
        return f"{fix}. {where}."
    possibilities = getattr(mistake, "possibilities", None)
    found = mistake.message if possibilities else mistake.format_message()  # which says the possibilities too
    message = " ".join(found.split()).removesuffix(".")
    if near := _near(option, possibilities or ()):
        return f"{message}; did you mean {' or '.join(near)}? {where}."
    if message.endswith("?"):
        return f"{message} {where}."
    if message.startswith(("No such command", "Missing command")):
        return f"{message}: there are {', '.join(command.commands)}. {where}."
    if hasattr(command, "commands") and message.startswith("No such option"):
        return f"{message}. What a command takes stands after the command. {where}."
    if hasattr(command, "commands") or type(mistake) is typer.BadParameter:  # which says what the value may be
        return f"{message}. {where}."
    return f"{message}. {where}, for example: {_example(command, option)}"


def _named(words: Sequence[str], app: typer.Typer) -> tuple[Any, str]:
    """Return the command that a line names, and its name behind the program's."""
    command, path = typer.main.get_command(app), str(app.info.name)
    for word in words:
        if inner := getattr(command, "commands", {}).get(word):
            command, path = inner, f"{path} {word}"
    return command, path


def _near(option: str, possibilities: Sequence[str]) -> list[str]:
    """Return the options most likely meant; dashes, which all have, make none alike."""
    bare = {one.lstrip("-"): one for one in possibilities}
    return [bare[one] for one in difflib.get_close_matches(option.lstrip("-"), bare)]


def _example(command: Any, option: str) -> str:
    """Return the first example of a command's help with an option, else the first, in one line."""
    _, _, examples = command.help.partition("Examples:\n")
    whole = re.sub(r"\\\n\s*", "", examples).strip().splitlines()
    return max(whole, key=lambda example: option in example.split()).strip()
