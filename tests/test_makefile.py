"""What make would do, by its own word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


def installed_for(target: str, environment: Path) -> list[str]:
    words = ["make", "--dry-run", target, f"VENV={environment}"]
    said = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    return re.findall(r"--editable (\S+)$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "installed"), [("demo", ["."]), ("setup", [".", "'.[dev]'"]), ("test", [".", "'.[dev]'"])]
)
def test_a_demo_installs_the_program_alone_and_a_test_what_it_needs_besides(
    target: str, installed: list[str], tmp_path: Path
) -> None:
    assert installed_for(target, tmp_path) == installed


def test_after_a_demo_a_test_still_installs_the_rest(tmp_path: Path) -> None:
    (tmp_path / ".ready").touch()
    assert installed_for("test", tmp_path) == ["'.[dev]'"]
