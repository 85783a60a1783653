"""Links of the pages lead somewhere on GitHub, and files that they name are there. (make docs checks those of the site.)"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "results" / "reference").rglob("*.md")),
]


def prose(page: Path) -> str:
    """Return a page without its fenced code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    text, lost = prose(page), []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:docs|tests|bench|dcp_core|sweeps)/[\w./-]*\w)`", prose(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_linked_from_the_one_that_says_which_answers_what() -> None:
    index = ROOT / "docs" / "index.md"
    others = {page.name for page in index.parent.glob("*.md")} - {index.name}
    assert others - set(re.findall(r"\]\(([\w-]+\.md)", index.read_text(encoding="utf-8"))) == set()
