"""What stands behind >>> in the docstrings of the library, and on the pages, is what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (
    "bench.profile.profile",
    "dcp_core.build",
    "dcp_core.cache",
    "dcp_core.layout",
    "dcp_core.lse",
    "dcp_core.mesh",
    "dcp_core.settings",
    "dcp_core.shapes",
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


def test_the_page_of_the_library_is_among_them() -> None:
    assert {"api.md", "fold.md", "limits.md"} <= {page.name for page in PAGES}
