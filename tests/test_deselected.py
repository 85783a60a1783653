"""What a run of the tests says of those that it left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def last_lines(path: str, *words: str) -> list[str]:
    """Return how pytest ends on the tests of the browser and of make, collected and not run, with some PATH."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests/browser", "tests/test_makefile.py", *words]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-2:]


@pytest.mark.parametrize("there", [True, False])
def test_tests_of_the_browser_count_as_deselected_and_are_said_not_to_have_run(tmp_path: Path, *, there: bool) -> None:
    if there:
        (tmp_path / "chromedriver").symlink_to(shutil.which("true") or "")
    above, closing = last_lines(str(tmp_path))
    (browser,) = re.findall(r"(\d+) deselected", closing)
    lacking = "" if there else "; there is no chromedriver here"
    assert above == f"Not run, deselected by marker: {browser} browser{lacking}."


def test_of_tests_that_were_asked_for_nothing_is_said(tmp_path: Path) -> None:
    above, closing = last_lines(str(tmp_path), "-m", "browser")
    assert "Not run" not in above
    assert " tests collected" in closing
