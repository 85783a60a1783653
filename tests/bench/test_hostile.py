"""Files and names from others: whatever stands in them is read right, or is one sentence and the documented exit code."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.cli import main
from bench.cli.exits import Exit
from bench.cli.screen import Bar, Headway
from bench.files import FileError
from bench.grid import printable
from bench.line import encode
from bench.recommend.trace_file import read_trace
from bench.record import SCHEMA, Environment, Failed, Measured, Skipped, Trial
from bench.shipped import shipped_profiles
from bench.store import StorageError, Store, read_run
from bench.sweep import Sweep
from bench.times import Piece
from bench.tune.pick import pick
from dcp_core import ModelShape
from tests.bench.made_up import H200, QWEN, trials
from tests.pages import promise, table

HUGE = "9" * 5000
DEEP = "[" * 100_000
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 10**300, -0.5, 1e308, "", "x", "fa2", "\x1b[2J", "[red]", "../..", "\u202e", "q1s9"),
    *([], {}, [[]], {"a": 1}, [None] * 3, "9" * 200, "<script>", "a\nb", "8q1s32k", "bfloat16", "simulated"),
)
TOKENS = (
    *'{}[]",:=\n\x00\\\t#-+.',
    "NaN",
    "Infinity",
    "1e999",
    "null",
    "true",
    "inf",
    "9" * 400,
    "[[",
    '"""',
    "\x7f",
    "ÿ",
    "µ",
)


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the program, and return its exit code and its complaint, which is one printable line at most."""
    code = main(words)
    out, err = capsys.readouterr()
    assert out.replace("\n", "").isprintable()
    assert err.replace("\n", "").isprintable()
    complaints = [line for line in err.splitlines() if line.startswith("dcpbench: ")]
    if code == Exit.DONE:
        assert complaints == []
        return code, ""
    (complaint,) = complaints
    assert len(complaint) < 1000
    return code, complaint


def sealed(content: object) -> str:
    """Return a line of a run with the right checksum, whatever it says."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'{{"checksum": "{checksum}", "trial": {text}}}\n'


def sealed_deep(depth: int) -> str:
    """Return a line with the right checksum, and lists in lists."""
    text = f'{{"case":{"[" * depth}{"]" * depth}}}'
    return f'{{"checksum":"{hashlib.sha256(text.encode()).hexdigest()[:16]}","trial":{text}}}\n'


# --- What is mutated ------------------------------------------------------------------------------------------------


def traced() -> Trial:
    (one,) = trials("8q1s32k", dcps=(2,), kernels=("fa2",), exchanges=("ag_rs",))[:1]
    assert isinstance(one.outcome, Measured)
    return replace(one, outcome=replace(one.outcome, timeline=(Piece("_rescale", 0.0, 3.5, communicates=True),)))


TRIAL = encode(traced()).decode()
CONFIG = {
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "linear_attention", "full_attention", "sliding_attention"],
    "torch_dtype": "bfloat16",
    "_name_or_path": "some/model",
    "text_config": {"hidden_size": 8192},
}
SWEEP = """schema = 1
description = "one"
model = ["qwen3-235b-a22b", "q64,kv4,d128"]
tp = 8
dcp = [1, 2]
context = ["8k", 512]
new = [1, 64]
concurrency = 2
[set]
page_size = [16, 64]
[policy]
precision = "quick"
max_seconds = 0.3
[gpu]
kernel = "fa2"
[[part]]
path = ["split", "fold"]
[[part]]
synthetic = true
dcp = 4
"""
TRACE = [{"arrival": number / 2, "prompt": 100 + number, "output": 10} for number in range(4)]


def small_profile() -> Any:
    data = json.loads(shipped_profiles("q2,kv1,d128,dtype=bfloat16", "h200")[0].read_text(encoding="utf-8"))
    return {**data, "entries": data["entries"][:3]}


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of JSON data with a key or an index of it."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


def changed(data: Any, source: random.Random) -> Any:
    """Return JSON data with one to three values replaced, removed, added or taken from elsewhere in it."""
    data = json.loads(json.dumps(data))
    for _ in range(source.randint(1, 3)):
        holder, key = source.choice(list(places(data)) or [([None], 0)])
        match source.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[source.choice(["unknown", "schema", key[:-1], key.upper()])] = deepcopy(source.choice(VALUES))
            case 2:
                other, place = source.choice(list(places(data)))
                holder[key] = json.loads(json.dumps(other[place]))
            case _:
                holder[key] = deepcopy(source.choice(VALUES))
    return data


def torn(text: str, source: random.Random) -> bytes:
    """Return a text with one to three wrong things in it: characters, pieces twice or gone, bytes that are no UTF-8."""
    for _ in range(source.randint(1, 3)):
        start = source.randrange(len(text) + 1)
        end = start + source.choice([0, 1, 1, 3, 30])
        middle = source.choice([source.choice(TOKENS), text[start:end] * 2, ""])
        text = text[:start] + middle + text[end:]
    return text.encode("latin-1" if source.random() < 0.1 else "utf-8", "replace")


def mutated(kind: str, source: random.Random) -> bytes:
    """Return a file of a kind with something wrong in it."""
    if kind == "sweep":
        return torn(SWEEP, source)
    if kind == "run":
        if source.random() < 0.3:
            return torn(TRIAL * 2, source)
        content = changed(json.loads(TRIAL)["trial"], source)
        return (TRIAL + sealed(content)).encode()
    data = {"profile": small_profile, "config": lambda: CONFIG, "trace": lambda: TRACE}[kind]()
    if kind == "trace":
        text = "\n".join(json.dumps(row) for row in (changed(data, source) if source.random() < 0.5 else data))
        return torn(text, source) if source.random() < 0.7 else text.encode()
    return torn(json.dumps(data), source) if source.random() < 0.5 else json.dumps(changed(data, source)).encode()


COMMANDS: dict[str, tuple[str, list[str]]] = {
    "run": (".jsonl", ["show", "FILE"]),
    "profile": (".json", ["profile", "show", "FILE"]),
    "sweep": (".toml", ["sweep", "FILE", "--dry-run"]),
    "config": (".json", ["memory", "--tp", "4", "--model", "FILE"]),
    "trace": (".jsonl", []),
}


ALSO_OF_A_RUN = (
    ["show", "given.jsonl", "--csv"],
    ["show", "given.jsonl", "--nvbench", "given.nvbench"],
    ["show", "given.jsonl", "--exchanges"],
    ["compare", "given.jsonl", "given.jsonl"],
)
"""What else reads one, and may stumble over what ``show`` does not look at."""


def used(kind: str, content: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Give a file to the command that reads its kind, and return the exit code and the complaint."""
    suffix, command = COMMANDS[kind]
    path = folder / f"given{suffix}"
    path.write_bytes(content)
    if command:
        return said([str(path) if word == "FILE" else word for word in command], capsys)
    try:
        read_trace(path)
    except FileError as error:
        return Exit.USAGE, str(error)
    return Exit.DONE, ""


SLICE, WHOLE = 60, 3400
"""Mutated files of each kind: in CI, and in all."""


@pytest.mark.parametrize(
    "count", [SLICE, pytest.param(WHOLE, marks=[pytest.mark.endurance, pytest.mark.timeout(1800)])]
)
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_mutated_file_is_a_sentence_or_read_right(
    kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ends = []
    for seed in range(count):
        content = mutated(kind, random.Random(f"{kind} {seed}"))
        try:
            ends.append(used(kind, content, tmp_path, capsys)[0])
            if kind == "run" and ends[-1] == Exit.DONE:
                for command in ALSO_OF_A_RUN:
                    assert said(command, capsys)[0] in {Exit.DONE, Exit.USAGE}, command
        except Exception as error:
            raise AssertionError(f"{kind} {seed}: {content[-3000:]!r}") from error
    assert set(ends) == {Exit.DONE, Exit.USAGE}, "mutations are wrong enough to tell, and some leave what can be used"
    if count == WHOLE:
        found = [count, ends.count(Exit.USAGE), ends.count(Exit.DONE)]
        assert [f"{number:,}" for number in found] == mutated_files()[kind]


def mutated_files() -> dict[str, list[str]]:
    """Return what docs/surviving.md says of each kind: how many files, how many were refused, how many were read."""
    return {kind: figures for kind, *figures in table("docs/surviving.md", "| run |")}


def test_the_page_tells_of_every_kind_of_file_that_is_mutated_and_of_every_hostile_one() -> None:
    told = mutated_files()
    assert list(told) == list(COMMANDS)
    for figures in told.values():
        whole, refused, read = (int(figure.replace(",", "")) for figure in figures)
        assert whole == refused + read == WHOLE
    assert f"{WHOLE * len(COMMANDS):,} of {WHOLE * len(COMMANDS):,}" in promise("A mutated file")
    assert f"{len(HOSTILE)} of {len(HOSTILE)}" in promise("Hostile files")
    assert f"{len(NAMES)} of {len(NAMES)} names" in promise("A name moves no cursor")


# --- What nobody writes by accident ---------------------------------------------------------------------------------


def run_with(**changes: object) -> str:
    return sealed({**json.loads(TRIAL)["trial"], **changes})


def config_with(**changes: object) -> str:
    return json.dumps({**CONFIG, **changes})


HOSTILE: dict[str, tuple[str, str | bytes, str]] = {
    "a run with NaN": ("run", TRIAL.replace('"seconds":0.5', '"seconds":NaN'), "holds no trials"),
    "a run with infinity": ("run", TRIAL.replace('"seconds":0.5', '"seconds":1e999'), "holds no trials"),
    "a run with a key twice": ("run", TRIAL.replace('"ranks":2', '"ranks":2,"ranks":2'), "holds no trials"),
    "a run with a checksum twice": ("run", TRIAL.replace("{", '{"checksum":"0",', 1), "holds no trials"),
    "a run too deep": ("run", f'{{"checksum":"0","trial":{{"case":{DEEP}}}}}', "holds no trials"),
    "a run just deep enough to be read": ("run", sealed_deep(900), "holds no trials"),
    "a run with a huge number": ("run", TRIAL.replace('"ranks":2', f'"ranks":{HUGE}'), "holds no trials"),
    "a run with a large number": ("run", run_with(seconds=10**4000), "holds no trials"),
    "a run of a huge schema": ("run", run_with(schema=10**4000), "use a newer dcpbench"),
    "a newer run": ("run", run_with(schema=SCHEMA + 1), f"written with schema {SCHEMA + 1}, this dcpbench reads up to"),
    "a run of no schema": ("run", run_with(schema="2"), "holds no trials"),
    "another program's lines": ("run", '{"level": "info"}\n' * 100, "holds no trials"),
    "a run that is a profile": ("run", json.dumps(small_profile(), indent=1), "holds no trials"),
    "an empty run": ("run", "", "holds no trials"),
    "a run of one long line": ("run", b"x" * (9 << 20), "holds no trials"),
    "a run in UTF-16": ("run", TRIAL.encode("utf-16"), "holds no trials"),
    "a profile with NaN": ("profile", '{"kind": "dcpbench profile", "schema": NaN}', "NaN is no number"),
    "a profile with a key twice": ("profile", '{"kind": "dcpbench profile", "schema": 1, "schema": 2}', "stands twice"),
    "a profile too deep": ("profile", f'{{"kind": {DEEP}', "nested more deeply than any file of ours"),
    "a profile with a huge number": ("profile", f'{{"kind": "dcpbench profile", "schema": {HUGE}}}', "not valid JSON"),
    "a newer profile": ("profile", json.dumps({**small_profile(), "schema": 99}), "use a newer dcpbench"),
    "a profile that is a run": ("profile", TRIAL, "no profile"),
    "a profile that is a list": ("profile", "[]", "no profile"),
    "a profile in UTF-16": ("profile", json.dumps(small_profile()).encode("utf-16"), "is no UTF-8"),
    "a profile beyond 32 MiB": ("profile", b" " * (33 << 20), "larger than 32768 KiB"),
    "a sweep with NaN": ("sweep", SWEEP.replace("max_seconds = 0.3", "max_seconds = nan"), "max_seconds is a positive"),
    "a sweep with a key twice": ("sweep", SWEEP.replace("tp = 8", "tp = 8\ntp = 8"), "not valid TOML"),
    "a sweep too deep": ("sweep", f"tp = {DEEP}", "not valid TOML"),
    "a sweep of dotted keys": ("sweep", f"{'a.' * 5000}b = 1", "unknown key 'a'"),
    "a sweep with a huge number": ("sweep", SWEEP.replace("tp = 8", f"tp = {HUGE}"), "not valid TOML"),
    "a sweep with a large number": ("sweep", SWEEP.replace("tp = 8", f"tp = {10**300}"), "tp"),
    "a newer sweep": ("sweep", SWEEP.replace("schema = 1", "schema = 2"), "use a newer dcpbench"),
    "a sweep with a date": ("sweep", SWEEP.replace("tp = 8", "tp = 2026-01-01"), "tp"),
    "a sweep of everything": ("sweep", SWEEP.replace("tp = 8", f"tp = {[8] * 100_000}"), "tp"),
    "a sweep beyond 1 MiB": ("sweep", b"#" * (2 << 20), "larger than 1024 KiB"),
    "a config with a number that is none": ("config", config_with(num_hidden_layers=float("nan")), "num_hidden_layers"),
    "a config too deep": ("config", f'{{"num_attention_heads": {DEEP}', "not valid JSON"),
    "a config with a key twice": ("config", config_with().replace("{", '{"head_dim": 64, ', 1), "stands twice"),
    "a config with a huge number": ("config", f'{{"num_attention_heads": {HUGE}}}', "not valid JSON"),
    "a config with a large number": ("config", config_with(num_attention_heads=10**4000), "q_heads of a model"),
    "a config with large numbers all over": (
        "config",
        config_with(num_attention_heads=10**4000, hidden_size=10**4000 + 1, head_dim=None),
        "hidden_size",
    ),
    "a config with a list for a number": ("config", config_with(head_dim=["x" * 5000]), "head_dim"),
    "a config of another architecture": (
        "config",
        config_with(kv_lora_rank=["x" * 5000]),
        "multi-head latent attention",
    ),
    "a config with a text for a type": ("config", config_with(torch_dtype="x" * 5000), "unknown dtype"),
    "a config that is a list": ("config", "[]", "is an object"),
    "a config in UTF-16": ("config", config_with().encode("utf-16"), "not valid JSON"),
    "a config of 64 MB": ("config", b" " * 64_000_000, "larger than 16 MiB"),
    "a trace with NaN": ("trace", '{"arrival": NaN, "prompt": 1, "output": 1}', "NaN is no number"),
    "a trace with a key twice": ("trace", '{"arrival": 1, "arrival": 2, "prompt": 1, "output": 1}', "stands twice"),
    "a trace too deep": ("trace", f'{{"arrival": {DEEP}', "nested more deeply"),
    "a trace with a huge number": ("trace", f'{{"arrival": {HUGE}, "prompt": 1, "output": 1}}', "no JSON"),
    "a trace with a large number": ("trace", f'{{"arrival": {10**4000}, "prompt": 1, "output": 1}}', "arrival is a"),
    "a trace of a large prompt": ("trace", f'{{"arrival": 1, "prompt": {10**4000}, "output": 1}}', "prompt is a whole"),
    "a trace of one long cell": ("trace", f"arrival,prompt,output\n{'1' * 200_000},1,1", "no CSV"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_nobody_writes_by_accident_is_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, content, sentence = HOSTILE[what]
    code, complaint = used(kind, content if isinstance(content, bytes) else content.encode(), tmp_path, capsys)
    assert code == Exit.USAGE
    assert sentence in complaint


def test_a_line_however_deep_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    depths = range(10, 1200, 5)  # around where the interpreter's own limit lies, which reading and writing reach apart
    path.write_text("".join(map(sealed_deep, depths)) + TRIAL, encoding="utf-8")
    found, notices = read_run(path)
    assert len(found) == 1
    assert sum(1 + int((re.findall(r" and (\d+) more", notice) or [0])[0]) for notice in notices) == len(depths)


# --- Names ----------------------------------------------------------------------------------------------------------

NAMES = {
    "markup": "[bold red]x[/bold red] [/] [link=file:///]",
    "escapes": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "lines": "one\ntwo\r\nthree\u2028four\u0085",
    "ways out": "../../../../tmp/out/of/here",
    "pages": "<script>alert(1)</script><img src=x onerror=y>&amp;",
    "cells": 'a,b;"c"|d`e`\t=1+1',
    "mathematics": "$x^{2$ \\frac %s {0} {name}",
    "other directions": "\u202egnp.exe\u200b\ufeff",
    "half a character": "\udcff\ud800",
    "nothing to see": " ",
    "all at once": '../<script>[red]|a,"b`_*$x^{\\ \x1b[2J\x9b\n\r\u2028\u202e\udcff %s {0} =1+1',
    "length": "long" * 25,
}


each_name = pytest.mark.parametrize(
    "what", [what if what == "all at once" else pytest.param(what, marks=pytest.mark.endurance) for what in NAMES]
)


def named_run(folder: Path, name: str) -> Path:
    """Write runs in which all that a file can name bears one name, and return the newest."""
    shape = replace(QWEN, name=name)
    found = []
    for one in trials("8q1s32k", "q2ks32k", "16q1s32k", shape=shape, exchanges=("loopback", "ag_rs", "a2a")):
        assert isinstance(one.outcome, Measured)
        environment = Environment({**H200.hard, "device_name": name, "driver": name}, {"cpu": name, name: name})
        stages = tuple(replace(stage, variant=name) for stage in one.outcome.stages)
        stages += (replace(stages[0], name=name),)
        outcome = replace(one.outcome, timer=name, stages=stages, flags=(name,))
        found.append(replace(one, outcome=outcome, environment=environment, clocks=({name: name}, {"sm_mhz": name})))
    found.append(replace(found[0], outcome=Skipped(name), ranks=3))
    found.append(replace(found[0], outcome=Failed(name, name, name), ranks=4))
    for _ in range(2):
        with Store.open(folder) as store:
            for one in found:
                store.append(one)
    assert store.path is not None
    return store.path


def printed(words: list[str], capsys: pytest.CaptureFixture[str], codes: tuple[int, ...] = (Exit.DONE,)) -> str:
    assert main(words) in codes, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    return out


def sheet_of(text: str) -> list[dict[str, str]]:
    """Return the rows of CSV: each as wide as its headings, and no cell a formula."""
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    assert len(rows) == len(text.splitlines()) - 1 > 0
    for row in rows:
        assert None not in row
        assert None not in row.values()
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row.values())
    return rows


@each_name
def test_whatever_a_file_names_is_shown_as_text(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results, name = tmp_path / "results", NAMES[what]
    newest = named_run(results, name)
    plain = printed(["show"], capsys)
    assert printable(name).strip()[:60] in plain
    marked = printed(["show", "--markdown"], capsys)
    assert not re.search(r"(?<!\\)<(script|img)", marked)
    rows = [line for line in marked.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "no name adds a column"
    assert name in {
        trial["case"]["shape"]["name"] for trial in json.loads(printed(["show", "--json"], capsys))["trials"]
    }
    for words in (["show", "--exchanges"], ["show", str(newest)]):
        printed(words, capsys)
        printed([*words, "--markdown"], capsys)
        sheet_of(printed([*words, "--csv"], capsys))
    printed(["show", "--nvbench", str(tmp_path / "nvbench.json")], capsys)
    assert name in (tmp_path / "nvbench.json").read_text(encoding="utf-8") or json.dumps(name)[1:-1] in (
        tmp_path / "nvbench.json"
    ).read_text(encoding="utf-8")
    older = min(results.glob("*.jsonl"))
    for form in ([], ["--markdown"], ["--json"], ["--csv"]):
        compared = printed(["compare", str(older), str(newest), "--all", *form], capsys)
        if form == ["--csv"]:
            assert any(printable(name).strip()[:60] in row["model"] for row in sheet_of(compared))
    for profile in pick(Store.read(results)[0]):
        profile.save(results / "profiles")
    written = {path.relative_to(results).parts[0] for path in results.rglob("*")}
    assert written == {"profiles", older.name, newest.name, ".lock"}
    for path in (results / "profiles").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9.,=_-]+", path.name)
        for words in (["show"], ["validate"]):
            printed(["profile", *words, str(path)], capsys)
        printed(["profile", "diff", str(path), str(path)], capsys)
    for words in (["lookup", "8q1s32k"], ["export"]):
        printed(["profile", *words, "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2", "--anyway"], capsys)


class Terminal(io.StringIO):
    """A terminal as far as the program can tell."""

    def isatty(self) -> bool:
        return True


@each_name
def test_a_terminal_shows_a_name_and_obeys_none(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screens = Terminal(), Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    named_run(tmp_path, NAMES[what])
    for name, screen in zip(("stdout", "stderr"), screens, strict=True):
        monkeypatch.setattr(sys, name, screen)
    assert main(["show", "--results", str(tmp_path)]) == Exit.DONE
    bar = Bar(Headway(1, 1.0))
    bar.now(NAMES[what])
    bar.advance(NAMES[what], 1.0)
    bar.close()
    for screen in screens:
        drawn = re.sub(r"\x1b\[[\d;?]*[mKAHhl]", "", screen.getvalue())  # colours, and the cursor of the bar
        assert re.sub(r"[\r\n]", "", drawn).isprintable()
        assert printable(NAMES[what]).strip()[:20] in drawn


@each_name
def test_whatever_a_file_names_is_drawn_as_text_below_its_folder(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named_run(tmp_path / "results", NAMES[what])
    out = printed(["plot", "--to", "pictures", "--figure", "latency,breakdown"], capsys)
    assert "latency.svg" in out
    for picture in (tmp_path / "pictures").glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(picture).iter()}
        assert not tags & {"script", "img", "image", "foreignObject", "a"}
    assert {path.name for path in tmp_path.iterdir()} == {"results", "pictures"}


@each_name
def test_whatever_a_model_is_called_is_said_as_text(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "_name_or_path": NAMES[what]}), encoding="utf-8")
    typed = ["--model", "./config.json", "--tp", "8"]
    printed(["memory", *typed], capsys)
    printed(["sweep", *typed, "--batch", "8q1s32k", "--dry-run"], capsys)
    printed(["recommend", *typed, "--context", "32k", "--concurrency", "8"], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


@pytest.mark.parametrize("what", [what for what, name in NAMES.items() if "/" not in name and name.isascii()])
def test_whatever_a_file_is_called_is_said_as_text(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results, name = tmp_path / "results", NAMES[what]
    newest = named_run(results, "a model")
    newest.rename(results / f"{name}.jsonl")
    with (results / f"{name}.jsonl").open("ab") as file:
        file.write(b"torn")
    printed(["show", f"{name}.jsonl"], capsys)
    sweep = tmp_path / f"{name}.toml"
    sweep.write_text(SWEEP, encoding="utf-8")
    printed(["sweep", str(sweep), "--dry-run"], capsys)
    sweep.write_text("", encoding="utf-8")
    printed(["sweep", str(sweep), "--dry-run"], capsys, (Exit.USAGE,))


@pytest.mark.parametrize("folder", ["smile \U0001f600", 'quote "', "delete \x7f \x1b", "back\\slash", "µ — ß"])
def test_a_sweep_that_is_written_for_a_model_finds_it_again(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    model = f"./{folder}/config.json"
    asked = ["--model", model, "--tp", "8", "--context", "32k", "--concurrency", "8"]
    printed(["recommend", *asked, "--sweep", "mine.toml"], capsys)
    (shape,) = {case.shape for case in Sweep.load("mine.toml").expand(1).cases}
    assert shape == ModelShape.from_hf_config(model)


def test_a_link_in_the_place_of_a_lock_or_a_profile_leads_to_no_other_file(tmp_path: Path) -> None:
    precious, results = tmp_path / "precious", tmp_path / "results"
    precious.write_text("mine", encoding="utf-8")
    named_run(results, "a model")
    profile, *_ = [one.save(results / "profiles") for one in pick(Store.read(results)[0])]
    profile.unlink()
    profile.symlink_to(precious)
    pick(Store.read(results)[0])[0].save(results / "profiles")
    assert not profile.is_symlink()
    (results / ".lock").unlink()
    (results / ".lock").symlink_to(precious)
    with pytest.raises(StorageError, match="remove the link that stands in its place"):
        Store.open(results)
    assert precious.read_text(encoding="utf-8") == "mine"
