"""The marks of a cell say how its answer stands, and what it rests on."""

from __future__ import annotations

import pytest

from bench.recommend.answer_map import Cell
from bench.recommend.decision import Decision, Origin
from bench.recommend.recommend import Why
from bench.report.answer_map import cell_text
from tests.bench.report.test_advice import exchange, options, part, recommendation


@pytest.mark.parametrize(
    ("decision", "holding", "limit_us", "why", "told"),
    [
        (options(part(1, 100, 100), part(2, 50, 50), part(4, 70, 70)), (99, 99, 99), None, Why.FASTEST, "2 50"),
        (options(part(1, 100, 100), part(2, 150, 150), part(4, 120, 120)), (99, 99, 99), None, Why.FASTEST, "1 120"),
        (options(part(1, 90, 110), part(2, 97, 97), part(4, 200, 200)), (99, 99, 99), None, Why.LEVEL, "2~1 88…108"),
        (
            options(part(1, 100, 100), part(2, 95, 105), part(4, 90, 110)),
            (99, 99, 99),
            None,
            Why.LEVEL,
            "1~2,4 95…105",
        ),
        (
            options(part(1, 100, 100), part(2, 60, 60, exchange(20, 80)), part(4, 300, 300)),
            (99, 99, 99),
            None,
            Why.OPEN,
            "1?2 80…140sb",
        ),
        (
            options(part(1, 100, 100), part(2, 40, 40, exchange(10, 20)), part(4, 300, 300)),
            (99, 99, 99),
            None,
            Why.FASTEST,
            "2 50…60sb",
        ),
        (
            options(part(1, 100, 100), part(2, 40, 40, exchange(10, 20, Origin.MODELLED)), part(4, 300, 300)),
            (99, 99, 99),
            None,
            Why.FASTEST,
            "2 50…60sm",
        ),
        (options(part(1, 50, 50), part(2, 60, 60), part(4, 80, 80)), (3, 6, 16), None, Why.FITS, "4+ 160"),
        (options(part(1, 50, 50), part(2, 60, 60), part(4, 40, 91)), (3, 6, 16), None, Why.FITS, "4+ 80…182"),
        (options(part(1, 50, 50), part(2, 60, 60), part(4, 80, 80)), (3, 6, 12), None, Why.MOST, "4* 160"),
        (options(part(1, 140, 142), part(2, 100, 120), part(4, 60, 130)), (99, 99, 99), 80.0, Why.MAY_KEEP, "4<! 67"),
        (options(part(1, 100, 100), part(2, 50, 50)), (99, 99, 99), None, Why.FASTEST, "2 50u"),
        (options(part(1, 100, 100)), (99, 99, 99), None, Why.UNKNOWN, "–u"),
        (options(part(1, 100, 100)), (3, 6, 16), None, Why.FITS, "4+u"),
        (None, (99, 99, 99), None, Why.UNKNOWN, "–u"),
    ],
)
def test_a_cell_tells_its_answer_how_sure_it_is_and_from_what(
    decision: Decision | None, holding: tuple[int, ...], limit_us: float | None, why: Why, told: str
) -> None:
    cell = Cell(recommendation(decision, holding, limit_us=limit_us))
    assert (cell.found.answer.why, cell_text(cell)) == (why, told)


def test_an_exchange_of_which_nothing_is_known_has_no_upper_end() -> None:
    unknown = part(2, 40, 40, exchange(0, float("inf"), Origin.UNKNOWN))
    cell = Cell(recommendation(options(part(1, 100, 100), unknown), (99, 99)))
    assert cell_text(cell) == "1?2 40…∞sb"
