"""A table reads the same on a terminal, in a pipe and on a page, and no cell can do harm there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.grid import Column, Grid, folded, printable, taken

GRID = Grid(
    "Fruit",
    (Column("name", wrap=True), Column("count", right=True)),
    (("apple", "3"), ("a very long name of a fruit that nobody has eaten in this part of the world", "12")),
    footnotes=("(a) a note",),
)


def test_plain_text_is_a_line_per_row_and_right_aligns_numbers() -> None:
    text = GRID.to_text().splitlines()
    assert text[0] == "Fruit"
    assert len(text) == 3 + len(GRID.rows) + 1
    assert text[3].endswith("    3")
    assert text[4].startswith(f"{GRID.rows[1][0]}  ")
    assert text[-1] == "(a) a note"


WIDE = Grid(
    "",
    (Column("model", wrap=True), Column("batch", wrap=True), Column("time"), Column("95%", right=True)),
    (("qwen3-235b-a22b", "_".join(["16q1s32k"] * 8), "1.0 s", "±2.4%"),),
)


def test_a_terminal_folds_the_widest_text_and_only_if_it_must() -> None:
    for width, whole in ((120, True), (80, False)):
        assert "qwen3-235b-a22b" in WIDE.to_text(width)
        assert ("_".join(["16q1s32k"] * 8) in WIDE.to_text(width)) is whole


@pytest.mark.parametrize("width", [80, 60, 45])
def test_no_cell_is_cut_and_no_word_is_broken(width: int) -> None:
    out = WIDE.to_text(width)
    assert out.count("16q1s32k") == 8
    for cell in ("qwen3-235b-a22b", "1.0 s", "±2.4%", "95%"):
        assert cell in out
    assert max(map(len, out.splitlines())) <= width


def test_a_terminal_too_narrow_for_any_folding_is_said_to_be() -> None:
    assert WIDE.to_text(36) == WIDE.to_text()
    long = replace(WIDE, footnotes=("a sentence that is longer than thirty-six columns are wide",))
    *rows, one, other = long.to_text(36).splitlines()
    assert rows == long.to_text().splitlines()[:-1]
    assert (one, other) == ("a sentence that is longer than", "thirty-six columns are wide")


def test_headings_are_folded_before_any_cell() -> None:
    grid = Grid("", (Column("step µs", right=True), Column("found", wrap=True)), (("12.5", "as it was"),))
    assert grid.to_text(15).splitlines() == [" step found", "   µs", "----- ---------", " 12.5 as it was"]


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        ("16q1s32k_q2ks32k", ["16q1s32k_", "q2ks32k"]),
        ("fa2+cuda_core", ["fa2+", "cuda_core"]),
        ("mask:computed", ["mask:", "computed"]),
        ("q64,kv4,d128", ["q64,kv4,", "d128"]),
        ("trtllm_gen 8,192 tokens", ["trtllm_gen", "8,192", "tokens"]),
        ("tiny tp 4 dcp 2 12.5 µs", ["tiny tp 4", "dcp 2", "12.5 µs"]),
    ],
)
def test_cells_are_folded_between_values_and_never_inside_one(cell: str, lines: list[str]) -> None:
    grid = Grid("", (Column("x", wrap=True),), ((cell,),))
    assert grid.to_text(max(map(len, lines))).splitlines()[2:] == lines


def test_a_terminal_breaks_titles_and_footnotes_between_words() -> None:
    grid = Grid("what was measured here", (Column("x"),), (("1",),), footnotes=("  a note that goes on",))
    lines = grid.to_text(12).splitlines()
    assert lines == ["what was", "measured", "here", "x", "-", "1", "  a note", "  that goes", "  on"]


@pytest.mark.parametrize("value", ["53.5 µs", "34 s", "2 h", "1.5 GiB", "3 %", "dcp 2", "tp 8"])
def test_no_sentence_is_broken_inside_a_value(value: str) -> None:
    sentence = f"a case with {value} measured"
    for width in range(10, len(sentence)):
        broken = folded(sentence, width)
        assert value in broken
        assert broken.replace("\n", " ") == sentence


def test_no_title_reaches_the_terminal_raw() -> None:
    assert Grid("a\x1b[2Jb", (), ()).to_text().splitlines()[0] == "a\\x1b[2Jb"


def test_markdown_aligns_and_escapes() -> None:
    page = Grid("a|b", (Column("x", right=True),), (("1|2<b>`*_[",),)).to_markdown().splitlines()
    assert page == ["**a\\|b**", "", "| x |", "| ---: |", "| 1\\|2\\<b>\\`\\*\\_\\[ |"]


def test_no_cell_is_read_as_markup() -> None:
    grid = Grid("[red]title[/]", (Column("x"),), (("[bold]cell[/bold]",),), footnotes=("[link]",))
    out = grid.to_text(80, colours=True)
    assert all(word in out for word in ("[red]title[/]", "[bold]cell[/bold]", "[link]"))


def test_the_rows_pointed_out_are_drawn_in_colour_where_there_is_colour() -> None:
    grid = Grid("", (Column("x"),), (("plain",), ("best",)), emphasized=frozenset({1}))
    lines = grid.to_text(80, colours=True).splitlines()
    assert [("\x1b[1;32m" in line) for line in lines if "plain" in line or "best" in line] == [False, True]
    assert "\x1b" not in grid.to_text(80)


def test_a_table_that_fits_80_columns_plain_fits_a_terminal_of_80() -> None:
    columns = tuple(Column("a heading") for _ in range(7))
    grid = Grid("", columns, (("12345678901",) * 5 + ("1",) * 2,))
    assert max(map(len, grid.to_text().splitlines())) == 79
    assert grid.to_text(80).count("12345678901") == 5


@given(st.text())
def test_nothing_printed_can_move_a_cursor(text: str) -> None:
    assert printable(text).isprintable()


def test_printable_text_is_left_alone() -> None:
    assert printable("8q1s32k ±0.8 % µs – ×") == "8q1s32k ±0.8 % µs – ×"
    assert printable("\x1b[2Jx\n") == "\\x1b[2Jx\\n"


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells in a table of 1 columns"):
        Grid("t", (Column("x"),), (("1", "2"),))


def test_wide_characters_and_accents_shift_no_column() -> None:
    names = ("千问", "qwen", "e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}")
    grid = Grid("", (Column("name"), Column("µs", right=True)), tuple((name, "1.0") for name in names))
    assert {taken(line) for line in grid.to_text().splitlines()} == {len("qwen") + 2 + len("1.0")}
