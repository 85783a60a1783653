"""Pictures of the pages for a dark ground: they are there, and greys of the one that turns itself have a counterpart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "<picture>" in page.read_text("utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_picture_and_its_dark_one_stand_in_folders_of_one_name(page: Path) -> None:
    pictures = re.findall(r"<picture>\n(.*?)</picture>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert pictures
    for picture in pictures:
        (dark,), (light,) = re.findall(r'srcset="([^"]+)"', picture), re.findall(r'src="([^"]+)"', picture)
        assert dark == f"{Path(light).parent}/dark/{Path(light).name}"
        assert 'media="(prefers-color-scheme: dark)"' in picture
        assert (page.parent / light).is_file()
        assert (page.parent / dark).is_file()


def test_every_page_s_picture_of_measurements_has_a_dark_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = [
        found for page in pages for found in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert shown == ["fold.svg"], "it turns dark itself"


def test_the_picture_of_fold_turns_its_greys_and_keeps_the_colours_that_its_words_name() -> None:
    text = (ROOT / "docs" / "fold.svg").read_text(encoding="utf-8")
    style, drawing = re.fullmatch(r".*?<style>(.*?)</style>(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    turned = dict(re.findall(r'\[((?:fill|stroke)="[^"]+")\] \{ (?:fill|stroke): (#\w{6}) \}', style))
    used = set(re.findall(r'\b((?:fill|stroke)="[^"]+")', drawing))
    greys = {one for one in used if re.search(r'"(?:white|#(\w\w)\1\1)"', one)}
    middle = {'stroke="#9a9a9a"'}
    assert turned.keys() == greys - middle
    assert {'fill="#0072b2"', 'fill="#009e73"', 'fill="#f2c078"'} == used - greys
