"""The page of maps is what the program prints today."""

from __future__ import annotations

from tests.docs.maps import MAPS, WIDTH, page
from tests.docs.test_shown import REFERENCE

PAGE = REFERENCE / "h200" / "maps.md"


def test_the_committed_maps_are_what_the_program_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.maps > results/reference/h200/maps.md"


def test_its_tables_take_no_more_than_a_wide_terminal() -> None:
    shown = page().split("```")[1::2]
    assert len(shown) == len(MAPS)
    assert max(len(line) for block in shown for line in block.splitlines()) <= WIDTH
