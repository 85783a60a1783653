"""The report as a file: whole, small, safe, and the same for the same trials. How a browser shows it is in tests/browser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.record import Failed, Measured, Skipped, Trial
from bench.report.page import MOST_MAPS, page
from bench.report.plot import FIGURES
from bench.store import Store
from bench.tune.pick import pick
from tests.bench.made_up import QWEN, cases, trial

pytestmark = pytest.mark.timeout(400)  # all pictures of two thousand trials take 45 s of one core

TRIALS = [trial(case) for case in cases(["8q1s1k", "q512"], exchanges=("ag_rs",))]
MAPPED = [trial(case) for case in cases(["8q1s1k", "16q1s8k", "q512", "q512s8704"], exchanges=("ag_rs",))]
"""Enough for a decision map."""
HOSTILE = "\"><script>alert(1)</script><b onclick=x>'&\x1b[31m\n=1+1"


@pytest.fixture(scope="module")
def whole() -> str:
    return page(TRIALS, pick(TRIALS), command="dcpbench report")


@pytest.fixture(scope="module")
def mapped() -> str:
    return page(MAPPED, pick(MAPPED), command="dcpbench report")


class Elements(HTMLParser):
    """Counts elements, and keeps what each is given."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_the_answer_comes_first_and_every_case_has_a_row_with_its_command(whole: str) -> None:
    assert whole.index('id="answer"') < whole.index('id="pictures"') < whole.index('id="trials"')
    assert whole.count("<code>dcpbench --ranks ") == len(TRIALS)
    for one in TRIALS:
        assert f"<td>{one.case.workload}</td>" in whole


def test_the_map_stands_between_the_answer_and_the_other_pictures_and_tables_after_them(mapped: str) -> None:
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', mapped))
    names = ["answer", "map", "pictures", "dcp", "settings", "words", "trials", "others", "machine"]
    assert list(sections) == re.findall(r'<li><a href="#(\w+)">', mapped) == names
    assert "<table" not in sections["answer"] + sections["map"] + sections["pictures"]
    kinds = [f"decision map: qwen3-235b-a22b-tp-8-{phase}" for phase in ("decode", "chunked-prefill")]
    assert re.findall("<figcaption>(.*?)</figcaption>", sections["map"]) == kinds
    assert re.findall('aria-label="(.*?)"', sections["map"]) == kinds
    assert sections["pictures"].count("<figure>") > 1
    assert "decision map" not in sections["pictures"]
    assert "<caption>Which dcp" in sections["dcp"]
    assert "<caption>Chosen for" in sections["settings"]


def test_without_a_map_the_page_has_no_section_for_it_and_says_why() -> None:
    skipped = [replace(TRIALS[0], outcome=Skipped("no such kernel"))]
    found = page(skipped, pick(skipped), command="")
    assert 'href="#map"' not in found
    assert 'id="map"' not in found
    assert "<p>Nothing was measured, so no dcp can be told.</p>" in found
    assert "<li>decision-map: " in found


def test_the_command_that_made_the_page_stands_once_where_it_was_measured() -> None:
    command = "dcpbench report " + " ".join(f"results/{number}.jsonl" for number in range(20))
    found = page(TRIALS, pick(TRIALS), command=command)
    assert found.count(command) == 1
    assert found.index('id="machine"') < found.index(command)


def test_each_picture_says_what_it_shows_and_that_is_its_title(mapped: str) -> None:
    drawn = [figures for draw in FIGURES.values() if not isinstance(figures := draw(MAPPED), str)]
    pages = [list(figures.values()) if isinstance(figures, Mapping) else [figures] for figures in drawn]
    titles = [escape(figure.get_suptitle()) for page in pages for figure in page if not isinstance(figure, str)]
    assert len(titles) > 3
    assert all(titles)
    assert re.findall('<img alt="([^"]*)"', mapped) == titles


def test_which_dcp_to_run_is_said_before_which_settings(whole: str) -> None:
    words = [
        "<h3>qwen3-235b-a22b, tp 8, on NVIDIA H200</h3>",
        "<li>Decode: dcp ",
        "<caption>Which dcp",
        "<p class=answer>Of ",
        "<caption>Chosen for",
    ]
    places = [whole.index(word) for word in words]
    assert places == sorted(places)


def test_every_table_can_be_sorted_and_every_long_one_filtered(large: str) -> None:
    assert len(re.findall(r"<th\b", large)) == large.count("<th scope=col") == large.count("<button type=button>")
    tables = re.findall(r"(<div class=controls>.*?</div>)?<div class=wide[^>]*><table>(.*?)</table>", large)
    long = [table.count("<tr") > 20 for _, table in tables]
    assert any(long)
    assert not all(long)
    assert [bool(controls) for controls, _ in tables] == long


def test_the_answer_says_in_words_that_nothing_was_gained() -> None:
    (case,) = cases(["q1s1k"], dcps=(1,), kernels=("fa2",))
    assert "Of 1 choice, none was shown to be faster than" in page([trial(case)], pick([trial(case)]), command="")


def test_every_element_is_closed(whole: str) -> None:
    assert Elements(whole).open == []


def test_nothing_outside_the_page_is_asked_for(whole: str) -> None:
    found = Elements(whole)
    assert not {"link", "iframe", "object"} & set(found.names)
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "default-src 'none'" in whole
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]+|http-equiv", "", whole)


def test_hostile_names_and_reasons_stay_text() -> None:
    shape = replace(TRIALS[0].case.shape, name=HOSTILE)
    hostile = [
        replace(TRIALS[0], case=replace(TRIALS[0].case, shape=shape)),
        replace(TRIALS[1], outcome=Skipped(HOSTILE)),
        replace(TRIALS[2], outcome=Failed("crashed", HOSTILE)),
    ]
    found = Elements(page(hostile, pick(hostile), command=f"dcpbench report {HOSTILE}"))
    assert found.names.count("script") == 1
    assert "b" not in found.names
    assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_the_same_trials_make_the_same_page(whole: str) -> None:
    assert page(TRIALS, pick(TRIALS), command="dcpbench report") == whole


@pytest.fixture(scope="module")
def large() -> str:
    """Make the page of two thousand trials, of so many models that not all of their maps are on it."""
    batches = [f"{requests}q{new}s{total}" for total in ("8k", "32k") for new, requests in product((1, 4, 512), (1, 4))]
    some = list(cases(batches, kernels=("fa2",), exchanges=("ag_rs",)))
    many: list[Trial] = []
    for number in range(1, 2000 // len(some) + 2):
        shape = replace(QWEN, name=f"model-{number}", layers=number)
        many += [trial(replace(case, shape=shape)) for case in some]
    many = many[:2000]
    assert len(many) == 2000
    return page(many, pick(many), command="dcpbench report")


def test_two_thousand_trials_fit_into_five_megabytes(large: str) -> None:
    assert large.count("<code>dcpbench --ranks ") == 2000
    assert len(large.encode()) < 5_000_000


def test_of_many_maps_the_page_has_the_largest_and_says_how_many_more_there_are(large: str) -> None:
    shown = re.findall("<figcaption>decision map: (.*?)</figcaption>", large)
    models = dict.fromkeys(name.rsplit("-tp-8-", 1)[0] for name in shown)
    answers = re.findall(r"<h3>(model-\d+), tp 8, on ", large)
    assert len(shown) == MOST_MAPS
    assert list(models) == [name for name in dict.fromkeys(answers) if name in models]
    (more,) = re.findall(r"<li>decision-map: (\d+) more with fewer cells, which .*? draws</li>", large)
    assert int(more) > 3 * MOST_MAPS


def test_a_flag_has_a_letter_in_its_row_and_its_words_once_below() -> None:
    capped, apart = "stopped at the cap", "samples are <b>correlated</b>"
    flags = [(capped, apart), (), (apart,), *[()] * (len(TRIALS) - 3)]
    found = []
    for one, mine in zip(TRIALS, flags, strict=True):
        assert isinstance(one.outcome, Measured)
        found.append(replace(one, outcome=replace(one.outcome, flags=mine)))
    section = page(found, pick(found), command="x", draws={}).split('<section id="trials">')[1].split("</section>")[0]
    cells = [re.findall("<td.*?>(.*?)</td>", row)[9] for row in section.split("<tbody>")[1].split("<tr>")[1:]]
    assert cells == ["(b) (a)", "", "(a)", *[""] * (len(TRIALS) - 3)]
    assert f"<li>(a) 2 cases flagged: {escape(apart)}.</li><li>(b) 1 case flagged: {capped}.</li>" in section
    assert section.count(escape(apart)) == section.count(capped) == 1


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(tmp_path / "results") as store:
        for one in TRIALS[:3]:
            store.append(one)
    assert main(["report", "--results", str(tmp_path / "results"), "-o", str(tmp_path / "page.html")]) == Exit.DONE
    said = capsys.readouterr()
    assert "report   " in said.out
    told = re.findall(r"^\[(\d+)/(\d+).*?\] drawn ([a-z-]+)$", said.err, re.MULTILINE)
    assert told == [(str(number), str(len(FIGURES)), name) for number, name in enumerate(FIGURES, start=1)]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["report", "--results", str(tmp_path / "none"), "-o", str(tmp_path / "page.html")]) == Exit.USAGE


def test_pictures_turn_dark_on_a_dark_screen_and_stay_light_on_paper(whole: str) -> None:
    rules = re.findall(r"@media ([^{]+?) \{[^}]*figure img \{ filter: invert", whole)
    assert rules == ["screen and (prefers-color-scheme: dark)"]
