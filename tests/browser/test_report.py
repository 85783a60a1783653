"""The report in a real browser, the network off: it shows all, sorts, filters, complains of nothing, and runs no label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from bench.record import Failed, Skipped, Trial
from bench.report.page import page
from bench.report.plot import FIGURES
from bench.tune.pick import pick
from tests.bench.made_up import cases, trial

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>&amp;"\' [red]\x1b[31m'
TRIALS = [trial(case) for case in cases(["8q1s1k", "16q1s8k", "q512", "q512s8704"], exchanges=("ag_rs",))]
TRIALS += [trial(case) for case in cases(["32q1s8k"], dcps=(1,), kernels=("fa2",))]  # which has no runner-up

COMMAND = " ".join(
    (
        "dcpbench report",
        *(f"/srv/measured/results/20261128T0709{second}.482873Z-0924e9.jsonl" for second in range(10, 30)),
    )
)
"""Of 20 files."""
A4 = {"width": 703, "height": 1017}
"""What its margins leave of a sheet, in CSS pixels: 186 by 269 mm."""


def named(one: Trial, name: str) -> Trial:
    return replace(one, case=replace(one.case, shape=replace(one.case.shape, name=name)))


@cache
def usual() -> str:
    return made(TRIALS)


def made(trials: Sequence[Trial]) -> str:
    return page(trials, pick(trials), command=COMMAND)


def opened(browser: Any, folder: Path, trials: Sequence[Trial]) -> Any:
    file = folder / "report.html"
    file.write_text(usual() if trials is TRIALS else made(trials), encoding="utf-8")
    browser.get(file.as_uri())
    return browser


def find(browser: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    found: list[Any] = browser.find_elements(By.CSS_SELECTOR, selector)
    return found


def column(browser: Any, number: int) -> list[str]:
    cells = find(browser, f"#trials tbody tr:not([hidden]) td:nth-child({number})")
    return [str(cell.get_attribute("data-value") or cell.text) for cell in cells]


def test_the_network_is_off_for_addresses_too(browser: Any, tmp_path: Path) -> None:
    from selenium.common.exceptions import WebDriverException

    opened(browser, tmp_path, TRIALS)
    refused = pytest.raises(WebDriverException, match="ERR_INTERNET_DISCONNECTED")
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server, refused:
        browser.get(f"http://127.0.0.1:{server.server_port}/")
    browser.get_log("browser")  # which says so too


def test_everything_is_shown_and_the_browser_complains_of_nothing(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, TRIALS)
    assert browser.title.startswith("dcpbench: ")
    pictures = find(browser, "figure img")
    captions = [caption.text.split(": ")[0].replace(" ", "-") for caption in find(browser, "figcaption")]
    missing = [line.text.split(": ")[0] for line in find(browser, "#pictures li")]
    assert len(pictures) == len(captions)
    assert sorted([*{*captions}, *missing]) == sorted(FIGURES)
    assert pictures[0].get_attribute("alt").startswith("Which dcp: the fastest attention step of one layer")
    assert all(browser.execute_script("return arguments[0].naturalWidth", picture) > 300 for picture in pictures)
    assert find(browser, "#trials output")[0].text == f"{len(TRIALS)} of {len(TRIALS)} shown"
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_a_click_and_a_key_sort_numbers_as_numbers(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, TRIALS)
    head = find(browser, "#trials th button")[5]
    assert head.text == "step µs"
    head.click()
    times = [float(text) for text in column(browser, 6)]
    assert times == sorted(times)
    assert len(times) == len(TRIALS)
    head.send_keys(Keys.ENTER)
    assert [float(text) for text in column(browser, 6)] == sorted(times, reverse=True)
    assert find(browser, "#trials th")[5].get_attribute("aria-sort") == "descending"


def test_a_table_of_settings_sorts_too_by_key_what_is_no_number_last(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, TRIALS)
    chosen = next(table for table in find(browser, "#settings table") if table.text.startswith("Chosen for"))
    heads = chosen.find_elements("css selector", "th button")
    (place,) = (number for number, head in enumerate(heads) if head.text == "next")
    heads[place].send_keys(Keys.ENTER)
    rows = [row.find_elements("css selector", "td") for row in chosen.find_elements("css selector", "tbody tr")]
    numbers = [float("inf") if (text := cells[place].text) == "–" else float(text) for cells in rows]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1


def test_only_rows_with_all_words_are_shown(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, TRIALS)
    (field,) = find(browser, "#trials input")
    field.send_keys("Q512S8704 fold")
    shown = column(browser, 4)
    assert set(shown) == {"q512s8704"}
    assert all(text.startswith("fold") for text in column(browser, 5))
    assert find(browser, "#trials output")[0].text == f"{len(shown)} of {len(TRIALS)} shown"
    field.clear()
    field.send_keys("12q512")  # the end of one cell and the beginning of the next are no word
    assert column(browser, 4) == []


def test_the_command_of_a_row_opens_by_keyboard(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path, TRIALS)
    summary, code = find(browser, "#trials summary")[0], find(browser, "#trials details code")[0]
    assert not code.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert code.text.startswith("dcpbench --ranks ")


def test_hostile_labels_stay_text(browser: Any, tmp_path: Path) -> None:
    hostile = [named(TRIALS[0], HOSTILE), replace(TRIALS[1], outcome=Skipped(HOSTILE)), *TRIALS[2:4]]
    hostile.append(replace(TRIALS[4], outcome=Failed("crashed", HOSTILE)))
    opened(browser, tmp_path, hostile)
    assert browser.title.startswith("dcpbench: ")
    assert len(find(browser, "img")) == len(find(browser, "figure img"))
    assert len(find(browser, "script")) == 1
    assert any("<script>" in text for text in column(browser, 1))
    assert any("<script>" in heading.text for heading in find(browser, "#answer h3"))
    reasons = [cell.text for cell in find(browser, "#others td:nth-child(3)")]
    assert sum("onerror" in reason for reason in reasons) == 2
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


@pytest.mark.parametrize("width", [390, 1600])
def test_the_page_fits_a_phone_and_a_desk(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, TRIALS)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    """Show pages on a screen of 390 by 844."""
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_screen_of_a_phone_begins_the_answer_whatever_command_made_the_page(
    phone: Any, tmp_path: Path
) -> None:
    opened(phone, tmp_path, TRIALS)
    assert COMMAND in find(phone, "#machine")[0].text
    first = find(phone, "#answer li")[0].rect
    assert first["y"] + first["height"] < 844


def drawn(browser: Any) -> list[dict[str, float]]:
    """Return of each picture its width and height as shown and as made, and of its frame what it shows and holds sideways."""
    found: list[dict[str, float]] = browser.execute_script(
        """return [...document.querySelectorAll("figure img")].map(one => {
          const shown = one.getBoundingClientRect(), frame = one.parentElement;
          return { width: shown.width, height: shown.height, madeWidth: one.naturalWidth, madeHeight: one.naturalHeight,
            seen: frame.clientWidth, held: frame.scrollWidth };
        })"""
    )
    return found


def test_a_phone_shows_pictures_as_large_as_they_were_drawn_and_moves_them_sideways(phone: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    opened(phone, tmp_path, TRIALS)
    for picture in drawn(phone):
        assert picture["width"] == pytest.approx(picture["madeWidth"] * 96 / 150, abs=1)
        assert picture["height"] == pytest.approx(picture["madeHeight"] * 96 / 150, abs=1)
        assert picture["seen"] < 390 < picture["held"]
    frame = find(phone, "figure .wide")[0]
    frame.send_keys(*[Keys.ARROW_RIGHT] * 3)
    WebDriverWait(phone, 5).until(lambda _: phone.execute_script("return arguments[0].scrollLeft > 0", frame))


def test_a_desk_shows_pictures_whole(browser: Any, tmp_path: Path) -> None:
    for picture in drawn(opened(browser, tmp_path, TRIALS)):
        assert 0 < picture["width"] <= picture["seen"] == picture["held"]
        assert picture["height"] / picture["width"] == pytest.approx(
            picture["madeHeight"] / picture["madeWidth"], rel=0.01
        )


def test_no_cell_runs_into_the_next_on_a_phone(phone: Any, tmp_path: Path) -> None:
    opened(phone, tmp_path, TRIALS + [trial(case) for case in cases(["1024q1s131073"], exchanges=("ag_rs",))])
    wider = """return [...document.querySelectorAll("td")].filter(c => c.scrollWidth > c.clientWidth).map(c => c.innerText)"""
    assert phone.execute_script(wider) == []


def test_paper_shows_pictures_whole_and_keeps_their_proportions(paper: Any) -> None:
    for picture in drawn(paper):
        assert 0 < picture["width"] <= A4["width"]
        assert 0 < picture["height"] <= A4["height"]
        assert picture["height"] / picture["width"] == pytest.approx(
            picture["madeHeight"] / picture["madeWidth"], rel=0.01
        )


def test_a_phone_shows_the_label_of_every_row_beside_what_it_is_of(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, TRIALS)
    width = 390
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    labelled = 0
    for table in find(browser, "table"):
        for row in table.find_elements("css selector", "tbody tr"):
            for label in row.find_elements("css selector", "td.label"):
                first = row.find_elements("css selector", "td")[0].rect
                labelled += 1
                assert label.text
                assert first["x"] >= 0
                assert first["x"] + first["width"] <= label.rect["x"]
                assert label.rect["x"] + label.rect["width"] <= width
    assert labelled > len(TRIALS)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def paper(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open the report as it is printed on A4 by somebody who reads it on a dark screen."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**A4, "deviceScaleFactor": 1, "mobile": False})
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    yield opened(browser, tmp_path, TRIALS)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_paper_every_command_stands_and_nothing_to_click(paper: Any) -> None:
    for selector in ("#trials input", "nav", "#trials summary"):
        assert not find(paper, selector)[0].is_displayed()
    seen = "return [...document.querySelectorAll('#trials td code')].filter(c => c.checkVisibility()).map(c => c.innerText)"
    commands = paper.execute_script(seen)
    assert len(commands) == len(TRIALS)
    assert all(command.startswith("dcpbench --ranks ") for command in commands)


def test_paper_is_light_and_nothing_is_cut_off_at_its_edge(paper: Any) -> None:
    body = find(paper, "body")[0]
    assert body.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"
    assert body.value_of_css_property("color") == "rgba(27, 31, 36, 1)"
    assert find(paper, "figure img")[0].value_of_css_property("filter") == "none"
    for selector, width in (
        ("#dcp table", A4["width"]),
        ("#settings table", A4["width"]),
        ("figure img", A4["width"]),
        ("#trials table", A4["height"]),
    ):
        assert 0 < max(one.size["width"] for one in find(paper, selector)) <= width  # every case stands sideways


def test_the_head_of_a_table_stands_on_each_of_its_pages(paper: Any) -> None:
    head = find(paper, "#trials thead")[0]
    assert head.value_of_css_property("display") == "table-header-group"
    # Chromium repeats a head without the buttons in it.
    assert {button.value_of_css_property("display") for button in find(paper, "#trials th button")} == {"contents"}


def test_of_a_table_that_was_filtered_paper_says_by_which_words(paper: Any) -> None:
    paper.execute_script("document.querySelector('#trials input').value = 'fold'")
    assert find(paper, "#trials input")[0].is_displayed()
    assert find(paper, "#trials output")[0].is_displayed()
