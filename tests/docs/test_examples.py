"""What stands behind >>> in the docstrings of the library, and on the pages, is what happens."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("bench", "dcp_core")
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # a long sentence is wrapped
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert done.attempted
    assert not done.failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    done = doctest.testfile(str(page), module_relative=False, optionflags=FLAGS, encoding="utf-8")
    assert done.attempted
    assert not done.failed


def test_the_page_of_the_library_is_among_them_and_its_packages_are() -> None:
    assert {"bench.profile.profile", "bench.timeline", "dcp_core.build"} <= set(MODULES)
    assert {"api.md", "fold.md", "limits.md"} <= {page.name for page in PAGES}
