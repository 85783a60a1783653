"""What the pages show of the command line is true: every command runs, and every output shown is its output.

Workers are stand-ins, on two scripted GPUs where a command measures; all else is real.
What cannot run here is listed with the reason.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import bench.environment
import bench.fitness
from bench.audit import NULL, Audited
from bench.cli import main
from bench.cli.exits import Exit
from bench.cli.reference import commands
from bench.cli.screen import draw
from bench.environment import Device
from bench.profile import Profile
from bench.report.choices import entries_grid
from bench.shipped import EXCHANGES, shipped_profiles
from bench.store import Store, read_run
from bench.tune.pick import pick
from tests.bench.stand_in import Scripted

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(REFERENCE.rglob("*.md")),
]
TRIED = ("make", ".venv/bin/pytest")
"""Programs that set up environments, or run the tests that these are among: whether they can do what they are asked to."""
PROGRAMS = ("dcpbench", "torchrun", "pip", "sbatch", "srun", "source", "git", ".ci/run", ".venv/bin/pre-commit", *TRIED)
NOT_RUN = {
    ".ci/run": "runs the tests that this one is among",
    ".venv/bin/pre-commit install": "would change what this checkout does before a commit",
    "source .venv/bin/activate": "is of the shell",
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $HEAD -m bench sweep decode": "needs two nodes; "
    "tests/nodes makes some",
    "dcpbench sweep decode --cluster auto": "needs a Ray cluster",
    "dcpbench --ranks 2 sweep decode --cluster auto": "needs a Ray cluster; tests/bench/test_cluster.py starts one",
}
DRAWINGS = {("exchanges.md", "mailbox"), ("exchanges.md", "rank"), ("fold.md", "row")}
"""Indented blocks that hold no command: their page, and the word that they begin with."""
MODULES_NOT_RUN = {
    "python -m bench recommend …": "leaves out what is asked",
    "python -m bench.tune.replay results/reference/h200/exhaustive": "takes minutes; tests/bench/tune/test_replay.py runs parts",
    "python -m bench.tune.replay results/reference/h200 results/reference/h200/exhaustive": "takes minutes, as above",
    "python -m tests.bench.paper_device": "takes minutes; tests/bench/test_verdict.py runs parts",
}
ELSEWHERE = {
    "grep": "is of the system",
    "mpirun": "is of an MPI; tests/nodes has what it starts",
    "nvbench-compare-robust": "is of cuda-bench, which nothing here needs",
    "pytest": "runs the tests that this one is among",
}
"""Programs in sentences that are not run."""
MEASURED = {
    "dcpbench tune --model qwen3-235b-a22b --tp 8 --dcp 1,2 --batch 16q1s32k,64q1s32k,q512s8704,8q4s32k,q2ks32k "
    "--path decode,split,fold --kernel fa2,fa3 --space all --time-budget 140s": "on an H200",
}
"""Commands whose output is shown as a GPU gave it: they run here, and give other times."""
SESSION = REFERENCE / "h200" / "apart" / "20261129T002124.479757Z-c47fbe.jsonl"
"""The run of that command."""
FEW = 24
"""Trials of a run that stand for all of them."""
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ON_GPUS = {"tune", "sweep", "audit"}
FEWER = ["--context", "8k", "--concurrency", "8"]
"""Batches of a shipped sweep where a search chooses among all settings, of which there are hundreds for each."""
VARIABLES = {"SLURM_ARRAY_TASK_ID": "3"}
PLACES = {"<gpu>": "h200"}
TRACE = "arrival,prompt,output\n" + "".join(f"{n / 2},{900 * (n % 5 + 1)},{40 + n}\n" for n in range(8))
MODEL = '{"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 94}'


@dataclass(frozen=True)
class Shown:
    """A command on a page, and the output shown with it, if any."""

    page: str
    command: str
    output: tuple[str, ...]

    @property
    def parts(self) -> list[str]:
        """What is shown of the output, whatever its line ends, between the places where an ellipsis leaves something out."""
        return [" ".join(part.split()) for part in "\n".join(self.output).split("…")]


def blocks(text: str) -> list[str]:
    """Return the code blocks of a page in which commands stand: fenced ones of a shell, and indented ones."""
    fenced = re.findall(r"^ *```(?:console|bash|sh|shell)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:(?<=\n\n)|\A)((?: {4}.*\n|\n(?= {4}))+)", rest)
    return [*fenced, *(re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in indented)]


def lines_of(block: str) -> list[str]:
    """Return the lines of a block, one for each command of several."""
    return re.sub(r" *\\\n\s*(?=\S)", " ", block).splitlines() if "vllm serve" not in block else block.splitlines()


def unknown_in(page: Path) -> list[str]:
    """Return the lines of a page's blocks that should be commands, of programs that this file does not know."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        lines = [line for line in lines_of(block) if line.strip()]
        if (page.name, lines[0].split()[0]) in DRAWINGS:
            continue
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
        found += [line for line in typed if not re.match(r'#|\w+="', line) and line.split()[0] not in PROGRAMS]
    return found


def said_in(page: Path) -> list[str]:
    """Return the code within a page's sentences that reads as a command: with an option or a file behind its first word."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    return [code for code in codes if re.match(r"[a-z.][\w./-]* (?:.* )?(?:-{1,2}[a-z]|\S+\.jsonl?\b)", code)]


def shown_in(page: Path) -> list[Shown]:
    """Return the commands of a page with what is shown of their output: that of a command behind a dollar."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        variables = VARIABLES | dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
        lines = lines_of(block)
        for number, line in enumerate(lines):
            words = line.removeprefix("$ ")
            if not words.startswith(tuple(f"{program} " for program in PROGRAMS)):
                continue  # output, or what unknown_in returns
            for name, value in variables.items():
                words = words.replace(f"${name}", value)
            output: list[str] = []
            for following in lines[number + 1 :] if line.startswith("$ ") else []:
                if following.startswith("$ "):
                    break
                output.append(following.rstrip())
            found.append(Shown(page.name, re.split(r"\s+#| && | > ", words)[0], tuple(output)))
    return found


EVERY = [one for page in PAGES for one in shown_in(page)]
SHOWING = {one.command for one in EVERY if one.output}
ONCE = {one.command: one for one in EVERY if one.output or one.command not in SHOWING}
RUN = [one for one in ONCE.values() if one.command not in NOT_RUN and one.command.split()[0] not in TRIED]
SAID = {code for page in PAGES for code in said_in(page)}
MODULES = {
    re.sub("|".join(PLACES), lambda place: PLACES[place[0]], code) for code in SAID if code.startswith("python ")
}
TRY = [one for one in ONCE.values() if one.command.split()[0] in TRIED]


LAST = "20261130T000000.000000Z-000000.jsonl"
"""Comes after the other runs: of exchanges, which not every run tells of."""


def save_unrendered(figure: Figure, target: BytesIO, **how: object) -> None:
    """Stand in for what takes a picture most of its time."""
    target.write(PIXEL if how["format"] == "png" else b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of somebody who has runs, profiles, a model and a trace under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", save_unrendered)
    earlier = sorted((REFERENCE / "h200" / "earlier").glob("*.jsonl"))
    seed = next((REFERENCE / "h200").glob("20261128T215335*.jsonl"))
    (profile,) = shipped_profiles("q16,kv1,d128,dtype=bfloat16")
    for folder in ("results/profiles", "baseline", "path/to/your"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(profile, tmp_path / "results" / "profiles")
    shutil.copytree(tmp_path / "results" / "profiles", tmp_path / "results" / "reference" / "h200" / "profiles")
    for run, names in (
        (earlier[0], ("before.jsonl", "baseline/run.jsonl")),
        (seed, (f"results/{seed.name}", f"results/reference/h200/{seed.name}")),
        (earlier[1], ("after.jsonl", f"results/{LAST}")),
    ):
        some = run.read_text(encoding="utf-8").splitlines(keepends=True)[:FEW]
        for name in names:
            (tmp_path / name).write_text("".join(some), encoding="utf-8")
    for name in ("before", "after", "decode", "prefill", "monday", "tuesday", "mine", "downloaded", "other"):
        shutil.copy(profile, tmp_path / f"{name}.json")
    (tmp_path / "requests.csv").write_text(TRACE)
    (tmp_path / "path/to/your/config.json").write_text(MODEL)
    return tmp_path


def two_gpus(stand_in: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have two GPUs of the kind that the reference was measured on."""
    (profile,) = shipped_profiles("q16,kv1,d128,dtype=bfloat16")
    there = Profile.load(profile).environment
    cards = tuple(Device("NVIDIA H200", f"GPU-{n}", 141 << 30, 140 << 30) for n in range(2))
    monkeypatch.setattr(bench.environment, "devices", lambda: cards)
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: there)
    monkeypatch.setattr(bench.fitness, "fitness", lambda _: [])
    stand_in.kernels = dict.fromkeys(("reference", "fa2", "fa3"), "")
    stand_in.audited = lambda _: [Audited(NULL, 4.8, 2.0, 1, 0.0), Audited("step", 103.0, 100.0, 3, 0.2)]
    stand_in.environment = there


def stored() -> int:
    """Return how many trials the results folder holds."""
    return len(Store.read(Path("results"), sentinels=True)[0])


@pytest.mark.parametrize("shown", RUN, ids=lambda one: f"{one.page}: {one.command.removeprefix('dcpbench ')[:70]}")
def test_a_command_that_a_page_shows_runs_and_says_what_the_page_says(
    shown: Shown, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scripted: Scripted
) -> None:
    program, *words = shlex.split(shown.command)
    assert program == "dcpbench", "what is not dcpbench is not run, and NOT_RUN says why"
    if "recommend" in words:
        shutil.rmtree(world / "results")  # pages ask what ships
    if "tune" in words and "mine.toml" in words:
        shutil.copy(ROOT / "sweeps" / "quick.toml", world / "mine.toml")
    scripted.exchanges = dict.fromkeys(("ag_rs", "a2a", "direct"), "")
    if set(words) & ON_GPUS:
        two_gpus(scripted, monkeypatch)
    if {"decode", "all"} <= set(words):
        words += FEWER
    before = stored()
    code = main([str(match) for word in words for match in ([*Path().glob(word)] if "*" in word else [word])])
    out, err = capsys.readouterr()
    refused = any(line.startswith("dcpbench: ") for line in shown.output)
    assert code == (Exit.USAGE if refused else Exit.DONE), err
    if shown.command not in MEASURED:
        said = " ".join((err + out).split())
        assert [part for part in shown.parts if part not in said] == []
    assert bool(scripted.measured) == (bool(set(words) & ON_GPUS) and "--dry-run" not in words)
    assert stored() - before == (0 if "audit" in words else len(scripted.measured)), "an audit stores nothing"


@pytest.mark.parametrize("shown", TRY, ids=lambda one: f"{one.page}: {one.command}")
def test_what_a_page_asks_of_make_and_pytest_is_something_that_they_can_do(
    shown: Shown, pytestconfig: pytest.Config
) -> None:
    program, *words = shlex.split(shown.command)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return
    markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="marker", choices=markers)
    parser.add_argument("paths", nargs="*")
    asked = parser.parse_args(words)
    assert [path for path in asked.paths if not (ROOT / path).exists()] == []


def test_every_program_that_a_page_shows_is_run_or_said_not_to_be() -> None:
    assert [(page.name, line) for page in PAGES for line in unknown_in(page)] == []
    of_dcpbench = {one.words.split()[0] for one in commands()}
    known = {*PROGRAMS, *ELSEWHERE, *of_dcpbench, "python"}
    assert {code for code in SAID if code.split()[0] not in known} == set()


@pytest.mark.parametrize("command", sorted(MODULES - MODULES_NOT_RUN.keys()))
def test_a_module_that_a_page_runs_writes_what_ships(command: str, tmp_path: Path) -> None:
    """In a folder that links to the runs that ship: what the command writes is its own."""
    here = tmp_path / "results" / "reference" / "h200"
    shutil.copytree(REFERENCE / "h200", here, copy_function=os.symlink)
    command, _, target = command.partition(" > ")
    _, *words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout
    assert not target or done.stdout == (ROOT / target).read_text(encoding="utf-8")
    ours, theirs = (
        {path.name: path.read_bytes() for path in (top / EXCHANGES).iterdir()} for top in (here, REFERENCE / "h200")
    )
    assert ours == theirs


def test_what_is_not_run_stands_on_a_page_still() -> None:
    there = {one.command for one in EVERY} | MODULES
    assert {command for command in (*NOT_RUN, *MEASURED, *MODULES_NOT_RUN) if command not in there} == set()
    assert ELSEWHERE.keys() - {code.split()[0] for code in SAID} == set()
    assert {page for page, _ in DRAWINGS} <= {page.name for page in PAGES}


def test_the_table_of_the_first_session_is_picked_from_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = (one for one in EVERY if one.command in MEASURED)
    trials, _ = read_run(SESSION)
    batches = {(trial.case.layout.dcp, trial.case.layout.interleave, trial.case.workload) for trial in trials}
    for profile in pick(trials):
        draw(entries_grid(profile, batches))
    said = " ".join(capsys.readouterr().out.split())
    assert [part in said for part in shown.parts] == [True, True, False], "the last are the files that were written"


def test_a_command_named_within_a_sentence_exists_with_its_options() -> None:
    flags = {
        one.words: {word for parameter in one.parameters for word in re.findall(r"--?[a-z][\w-]*", parameter.written)}
        for one in commands()
    }
    wrong, seen = [], 0
    for page in PAGES:
        for code in re.findall(r"`dcpbench (?!--install-completion`)([^`]+)`", page.read_text(encoding="utf-8")):
            words = re.sub(r"^--ranks \S+ ", "", " ".join(code.split()))
            named = [name for name in flags if f"{words} ".startswith(f"{name} ")]
            seen += 1
            if not named or set(re.findall(r"(?<=[ \[])--?[a-z][\w-]*", words)) - flags[named[0]]:
                wrong.append(f"{page.name}: {code}")
    assert seen
    assert wrong == []
