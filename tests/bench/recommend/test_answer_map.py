"""A map says in each cell what the one question would be answered, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli.exits import Exit
from bench.profile.profile import Profile
from bench.recommend.answer_map import MOST_CELLS, MOST_CONCURRENCIES, MOST_CONTEXTS, NUMBERS, AnswerMap, measured_axes
from bench.recommend.decision import Limits, break_even_requests
from bench.recommend.evidence import Evidence
from bench.recommend.grounds import Grounds
from bench.recommend.recommend import Recommendation, Traffic, crossing, decide, rooms_of
from bench.report.answer_map import cell_text, cells_grid, contexts_grid, to_json
from bench.shipped import shipped_profiles
from dcp_core.layout import DcpLayout
from dcp_core.serving import Limits as ServerLimits
from dcp_core.shapes import Request, Workload
from tests.bench.made_up import QWEN
from tests.bench.recommend.conftest import Run

EVIDENCE = {
    dcp: Evidence(Profile.load(shipped_profiles(f"q{8 * dcp},kv1,d128,dtype=bfloat16", "h200")[0])) for dcp in (1, 2)
}
ASSUMED = Limits(None, "NVIDIA H200")
MODEL = ("--model", "qwen3-235b-a22b", "--tp", "8", "--gpu", "h200")


def grounds(budget_gib: int, slo_us: float | None = None) -> Grounds:
    rooms = rooms_of(QWEN, 8, budget=budget_gib << 30, upper=False, server=ServerLimits(), multiprocessors=132)
    return Grounds("qwen3-235b-a22b", QWEN, 8, EVIDENCE, ASSUMED, rooms, slo_us)


def decodes(context: int, requests: int, new: int = 1) -> Traffic:
    return Traffic(((Workload((Request(new, context + new),) * requests), 1.0),), requests, context + new)


@given(
    st.sets(st.integers(1, 1 << 19), min_size=1, max_size=3),
    st.sets(st.integers(1, 512), min_size=1, max_size=3),
    st.sampled_from([1, 1, 4]),
    st.integers(6, 120),
    st.sampled_from([None, 5_000.0, 20_000.0]),
)
def test_a_cell_is_what_is_decided_for_its_traffic_by_itself(
    contexts: set[int], concurrencies: set[int], new: int, budget_gib: int, slo_us: float | None
) -> None:
    base = grounds(budget_gib, slo_us)
    found = AnswerMap.of(base, sorted(contexts), sorted(concurrencies), lambda *place: decodes(*place, new))
    assert set(found.cells) == {(context, requests) for context in contexts for requests in concurrencies}
    for (context, requests), cell in found.cells.items():
        traffic = decodes(context, requests, new)
        engine, tuned = (decide(QWEN, 8, traffic, EVIDENCE, ASSUMED, engine=engine) for engine in (True, False))
        alone = Recommendation("qwen3-235b-a22b", QWEN, 8, traffic, engine, tuned, base.rooms, slo_us)
        assert cell.found == alone
        assert (cell.found.answer, cell.found.tuned_answer) == (alone.answer, alone.tuned_answer)
        told = cell_text(cell)
        other = engine and tuned and alone.answer.between != alone.tuned_answer.between
        assert ("t" in told) is bool(other), "where the tuned settings would change the answer is marked"
        if alone.decision is None:
            continue
        assert told.startswith(str(alone.answer.dcp)) or not alone.answer.is_firm
        if len(alone.answer.between) > 1 and not told.startswith("–"):
            size = told.split()[0]
            assert re.match(r"\d+[~?]", size), "what is not sure looks different"
            assert {int(one) for one in re.findall(r"\d+", size)} == set(alone.answer.between)
    for context in contexts:
        batch = decodes(context, 1, new).batches[0][0]
        engine_measured = any(cell.found.engine for (where, _), cell in found.cells.items() if where == context)
        asked = crossing(QWEN, 8, batch, EVIDENCE, ASSUMED, engine=engine_measured)
        compared = [(requests, decision) for requests, decision in asked if len(decision.options) > 1]
        assert found.pays.get(context) == (break_even_requests(compared) if compared else None)


def test_every_cell_of_the_pages_has_a_time_and_a_sure_one_one_number() -> None:
    contexts, concurrencies = measured_axes(EVIDENCE[1].profile, 8)
    found = AnswerMap.of(grounds(60), contexts, concurrencies, decodes)
    for cell in found.cells.values():
        ratio = cell.ratio
        assert ratio is not None
        assert ratio.low <= ratio.median <= ratio.high
        assert cell.is_between or "…" not in cell_text(cell)
        decision = cell.found.decision
        assert decision is not None
        if cell.found.answer.is_firm and len(cell.found.fitting) == 2:
            assert (ratio.median < 1) is (cell.found.answer.dcp > 1)


def test_the_axes_are_powers_of_two_within_what_was_measured_and_few() -> None:
    for profile in (EVIDENCE[1].profile, EVIDENCE[2].profile):
        for tp in (8, 16, 32):
            contexts, concurrencies = measured_axes(profile, tp)
            assert len(contexts) <= MOST_CONTEXTS
            assert len(concurrencies) <= MOST_CONCURRENCIES
            assert all(one & (one - 1) == 0 for one in (*contexts, *concurrencies))
    assert axes_of("1q1s8193", "16q1s32769") == ([8192, 16384, 32768], [1, 2, 4, 8, 16])
    assert axes_of("3q1s20001") == ([20000], [3])
    many = [f"{requests}q1s8193" for requests in (1, 8, 16, 32, 64, 128)]
    assert axes_of(*many, "256q1s4097", "256q1s8193") == ([4096, 8192], [1, 8, 16, 32, 64, 128, 256])
    assert axes_of("q2ks10k", "8q1s8k_q2ks10k") == ([], [])


def axes_of(*batches: str) -> tuple[list[int], list[int]]:
    """Return the axes of a profile that holds these batches of dcp 1."""
    entry = next(one for one in EVIDENCE[1].profile.of_layout(DcpLayout(8)) if one.workload.is_decode)
    entries = tuple(replace(entry, workload=Workload.parse(batch)) for batch in batches)
    return measured_axes(replace(EVIDENCE[1].profile, entries=entries), 8)


def test_a_table_explains_the_marks_that_it_has_and_no_others() -> None:
    found = AnswerMap.of(grounds(60), [1024, 32768, 1 << 17], [1, 16, 64], decodes)
    grid = cells_grid(found)
    cells = "".join(re.sub(r"^\d+|(?<=[~?*+!<])[\d,]+|[\d…–]+", "", cell) for row in grid.rows for cell in row[1:])
    marks = set(cells) - {" "}
    explained = {note[0] for note in grid.footnotes if note[1] == " "}
    assert explained - {"–"} == marks
    assert marks
    below = contexts_grid(found)
    assert [row[0] for row in below.rows] == ["1k", "32k", "128k"]
    assert below.footnotes[-1] == "In 60.0 GiB of each GPU, that weights leave. Fit: the KV cache of all 94 layers."
    assert all(len(line) <= 100 for line in grid.to_text().splitlines()[1 : 3 + len(grid.rows)])


def test_what_lies_beyond_what_was_measured_is_marked_and_not_sure() -> None:
    found = AnswerMap.of(grounds(100_000), [32768], [256, 320, 2000], decodes)
    measured, beside, beyond = (found.cells[32768, requests] for requests in (256, 320, 2000))
    for cell in (measured, beside):
        assert not cell.is_extrapolated
        assert cell.found.answer.is_firm
    assert beyond.is_extrapolated
    assert not beyond.found.answer.is_firm
    assert re.fullmatch(r"2~1 \d+…\d+mxt?", cell_text(beyond))
    assert any(note.startswith("x a step is extrapolated") for note in cells_grid(found).footnotes)
    assert to_json(found)["cells"][-1]["extrapolated"] is True
    assert found.pays == AnswerMap.of(grounds(60), [32768], [64], decodes).pays


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--weights", "121GiB", "--slo-us", "20000"),
        ("--new", "4", "--exchange-us", "0,40"),
        ("--chunk", "8k", "--gpu-memory", "80GiB"),
    ],
    ids=" ".join,
)
def test_each_cell_is_what_the_command_answers_to_that_question(options: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*MODEL, "--map", "--context", "8k,64k", "--concurrency", "1,24,64", "--json", *options)
    assert code == Exit.DONE
    told: dict[str, Any] = json.loads(out)
    assert len(told["cells"]) == 6
    fits = {row["context"]: row["fits"] for row in told["contexts"]}
    for cell in told["cells"]:
        place = ("--context", str(cell["context"]), "--concurrency", str(cell["concurrency"]))
        code, out, _ = run(*MODEL, *place, "--json", *options)
        alone = json.loads(out)
        assert code == Exit.DONE
        for name in ("answer", "tuned_answer", "unmeasured"):
            assert cell[name] == alone[name]
        assert cell["batches"] == [one["batch"] for one in alone["batches"]]
        assert fits[cell["context"]] == {dcp: room["requests"] for dcp, room in alone["capacity"].items()}
        decision = {one["dcp"]: one["us_per_layer"] for one in alone["engine"] or alone["tuned"]}
        mine, base = decision[cell["of_dcp_1"]["dcp"]], decision[1]
        assert cell["of_dcp_1"]["median"] == pytest.approx(mine["median_us"] / base["median_us"])


def test_from_how_many_requests_on_it_pays_is_what_the_answer_says(run: Run) -> None:
    _, out, _ = run(*MODEL, "--context", "32k", "--concurrency", "64")
    told = re.search(r"dcp 2 may be faster than dcp 1 .*from (\d+) requests on, and surely is from (\d+) on", out)
    assert told
    _, out, _ = run(*MODEL, "--map", "--context", "32k", "--concurrency", "64")
    assert re.search(rf"^ +32k +{told[2]} \({told[1]}\) ", out, re.MULTILINE)


def pays(out: str) -> dict[str, str]:
    """What the table below a map says of each context: ``64 (1)``."""
    _, below = out.split("What pays, and what fits")
    return dict(re.findall(r"^ *(\d+k) +(not seen|[–\d]+ \(\d+\)|–) ", below, re.MULTILINE))


@pytest.mark.parametrize("beside", [("--chunk", "2k"), ("--new", "2k"), ("--new", "4")], ids=" ".join)
def test_beside_a_chunk_and_of_chunks_a_map_says_from_how_many_requests_on_it_pays(
    beside: tuple[str, ...], run: Run
) -> None:
    numbers = ",".join(map(str, NUMBERS))
    _, out, _ = run(*MODEL, "--map", "--context", "8k,128k", "--concurrency", numbers, *beside)
    _, told, _ = run(*MODEL, "--map", "--context", "8k,128k", "--concurrency", numbers, "--json", *beside)
    cells = json.loads(told)["cells"]
    for context in (8192, 131072):
        ratios = [None if one["extrapolated"] else one["of_dcp_1"] for one in cells if one["context"] == context]
        at_best, surely = None, None
        for requests, ratio in zip(NUMBERS, ratios, strict=True):
            if ratio:
                at_best = None if ratio["low"] > 1 else at_best or requests
                surely = surely or requests if ratio["high"] < 1 else None
        expected = "not seen" if at_best is None else f"{surely or '–'} ({at_best})"
        assert pays(out)[f"{context // 1024}k"] == expected


def test_a_context_where_nothing_is_compared_has_no_number_of_requests(run: Run) -> None:
    beyond = ("--model", "qwen3-235b-a22b", "--tp", "32", "--gpu", "h200", "--map", "--new", "64k")
    _, out, _ = run(*beyond, "--context", "32k,128k", "--concurrency", "1")
    assert pays(out)["128k"] == "–"
    assert "A lone –: none of them was." in out
    _, out, _ = run(*beyond, "--context", "32k,128k", "--concurrency", "1", "--json")
    assert ["pays_at_best_from" in one for one in json.loads(out)["contexts"]] == [False, False]
    _, out, _ = run(*MODEL, "--map", "--context", "32k,128k", "--concurrency", "1", "--json")
    assert ["pays_at_best_from" in one for one in json.loads(out)["contexts"]] == [True, True]


def test_where_tp_is_too_small_a_map_says_what_an_answer_does(run: Run) -> None:
    little = ("--model", "qwen3-235b-a22b", "--tp", "4", "--gpu", "h200")
    _, alone, _ = run(*little, "--context", "8k", "--concurrency", "8")
    code, out, _ = run(*little, "--map")
    assert code == Exit.DONE
    assert "the smallest tp for dcp 2 is 8." in out
    assert alone.startswith(out.strip())
    _, out, _ = run(*little, "--map", "--json")
    assert alone.startswith(json.loads(out)["text"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--map", "--trace", "x.csv"), "--map is of context by concurrency: leave out --trace"),
        (("--map", "--sweep", "x.toml"), "--map is of context by concurrency: leave out --sweep"),
        (("--context", "2k,32k", "--concurrency", "8"), "--context 2k,32k is a list.* or --map for all"),
        (("--context", "2k", "--concurrency", "1,8"), "--concurrency 1,8 is a list.* or --map for all"),
        (("--context", "2k", "--concurrency", "0"), "--concurrency takes whole numbers from 1 up"),
        (("--map", "--concurrency", "1,many"), "--concurrency takes whole numbers from 1 up, as 1,2, not 'many'"),
        (("--map", "--context", "1k,long"), "'long' is no number of tokens"),
        (("--map", "--context", ","), "--context has no value in ','"),
        (
            ("--map", "--context", ",".join(map(str, range(1, 300))), "--concurrency", "1,2,3,4,5,6,7"),
            f"299 contexts by 7 numbers of requests are more than the {MOST_CELLS} cells of a map",
        ),
    ],
)
def test_what_is_no_map_is_said_in_one_sentence(words: tuple[str, ...], complaint: str, run: Run) -> None:
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (Exit.USAGE, "")
    (line,) = err.splitlines()
    assert re.match(f"dcpbench: .*{complaint}", line)


def test_a_profile_without_decodes_needs_the_places_told(run: Run, tmp_path: Path) -> None:
    files = []
    for dcp in (1, 2):
        profile = EVIDENCE[dcp].profile
        longer = tuple(entry for entry in profile.entries if not entry.workload.is_decode)
        files += ["--profile", str(replace(profile, entries=longer).save(tmp_path))]
    code, _, err = run(*MODEL[:4], *files, "--map")
    assert code == Exit.USAGE
    assert "no decode of dcp 1 at tp 8 was measured here: give --context and --concurrency" in err
    code, out, _ = run(*MODEL[:4], *files, "--map", "--context", "8k", "--concurrency", "8")
    assert code == Exit.DONE
    assert "1 not measured near enough" in out
    assert "– no times near enough." in out
