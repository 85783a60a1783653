"""The program as a user meets it: what it says, what it writes, how it ends. Workers are stand-ins, all else is real."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import bench.cli
import bench.cli.screen
import bench.environment
import bench.fitness
import bench.supervisor
from bench.cli import completion, main
from bench.cli.campaign import shuffled
from bench.cli.exits import Exit
from bench.cli.obstacle import obstacle
from bench.cli.options import paragraphs, ranks_here, values_of
from bench.cli.screen import Bar, Headway, Lines, clock, screen
from bench.cli.searching import Search, Space
from bench.environment import Device
from bench.fitness import Finding
from bench.orders import Compiling
from bench.profile.profile import Profile
from bench.record import Environment, Failed, Heat, Measured, Outcome, Skipped, Verified
from bench.report import kv_memory
from bench.shipped import reference_folder, shipped_geometries, shipped_profiles
from bench.store import Store
from bench.tune.pick import pick
from dcp_core.settings import Case
from tests.bench.made_up import CPU, QWEN, trials
from tests.bench.stand_in import RIGHT, Scripted

COMMANDS = (
    "tune",
    "sweep",
    "verify",
    "recommend",
    "show",
    "compare",
    "plot",
    "report",
    "memory",
    "doctor",
    "audit",
    "profile show",
    "profile lookup",
    "profile export",
    "profile diff",
    "profile merge",
    "profile validate",
)
TYPED = ("--model", "tiny", "--tp", "4", "--dcp", "1,2", "--context", "512,1k", "--new", "1,8", "--exchange", "ag_rs")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


# --- Starting -----------------------------------------------------------------------------------------------------------


def test_help_answers_without_anything_heavy() -> None:
    code = "import sys; from bench.cli import main; main(['--help']); print([name for name in sys.modules if '.' not in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "triton", "flashinfer", "matplotlib", "pydantic", "scipy", "numpy", "pynvml"}
    assert all(
        name in done.stdout for name in ("tune", "sweep", "verify", "show", "plot", "profile", "memory", "doctor")
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == Exit.DONE
    out = capsys.readouterr().out
    examples = out.partition("Examples:")[2]
    assert len(re.findall(r"^\s+dcpbench ", examples, re.MULTILINE)) >= 2
    assert max(map(len, out.splitlines())) <= 80


def test_no_command_is_a_question_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == Exit.DONE
    assert "Usage: dcpbench" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from dcp_core import __version__

    assert run("--version") == Exit.DONE
    assert capsys.readouterr().out == f"dcpbench {__version__}\n"


def test_each_flag_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "--help") == Exit.DONE
    out = capsys.readouterr().out
    assert "--thorough" in out
    assert "--thorough,--thorough" not in out.replace(" ", "")
    assert "--no-thorough" not in out


# --- Printing -----------------------------------------------------------------------------------------------------------

REFERENCE = f"--results {reference_folder() / 'h200'}"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a shell, as ``dcpbench``, and return its exit code with what was printed."""
    program = f'dcpbench() {{ "{sys.executable}" -m bench "$@"; }}; '
    variables = os.environ | {"PYTHONPATH": str(Path(bench.cli.__file__).parents[2])} | environment
    return subprocess.run(
        ["bash", "-c", program + line], capture_output=True, text=True, check=False, env=variables, timeout=120
    )


@pytest.mark.parametrize("command", [f"show {REFERENCE}", f"show {REFERENCE} --json", "--version", "show --help"])
def test_a_full_disk_behind_the_output_is_a_sentence_and_exit_code_5(command: str) -> None:
    done = shell(f"dcpbench {command} > /dev/full")
    assert done.returncode == Exit.STORAGE
    assert done.stderr == "dcpbench: cannot print: no space left on device; send the output somewhere else\n"


def test_a_closed_output_is_a_sentence_and_exit_code_5() -> None:
    done = shell(f"dcpbench show {REFERENCE} >&-")
    assert done.returncode == Exit.STORAGE
    assert done.stderr.startswith("dcpbench: cannot print: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_hears_no_complaint() -> None:
    done = shell(f"set -o pipefail; dcpbench show {REFERENCE} | head -1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_progress_that_cannot_be_printed_ends_no_measurement(where: str, tmp_path: Path) -> None:
    words = f"--model q4,kv1,d16 --tp 2 --dcp 1,2 --batch q3s9 --path split --exchange ag_rs --results {tmp_path}"
    done = shell(f"dcpbench --ranks 2 sweep {words} --precision 0.9 {where}", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == Exit.DONE
    assert [trial.outcome.kind for trial in Store.read(tmp_path)[0]] == ["measured", "measured"]


class Terminal(io.StringIO):
    """A terminal as far as the program can tell."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *names: str, term: str = "xterm", columns: int = 80) -> str:
    """Return what ``show`` prints on a terminal of some kind and width."""
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run("show", *names, *REFERENCE.split()) == Exit.DONE
    return out.getvalue()


def test_a_terminal_too_narrow_for_a_table_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = (on_a_terminal(monkeypatch, columns=columns) for columns in (120, 40))
    assert "\x1b[" in wide
    assert "\x1b[" not in narrow
    cells = re.compile(r"±\d+(?:\.\d)?%")
    assert len(cells.findall(narrow)) == len(cells.findall(re.sub(r"\x1b\[[\d;]*m", "", wide))) > 100


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in on_a_terminal(monkeypatch, term="dumb", columns=120)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with screen(1, 1.0) as view:
        assert isinstance(view, Lines)


def test_nobody_is_sent_colours_who_wants_none_and_a_pipe_is_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("_TYPER_FORCE_DISABLE_TERMINAL", raising=False)  # which NO_COLOR has the program set
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_a_terminal(monkeypatch, "last")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in on_a_terminal(monkeypatch, "last")
    monkeypatch.undo()
    for forced, coloured in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("FORCE_COLOR", forced)
        assert run("show", "last", *REFERENCE.split()) == Exit.DONE
        assert ("\x1b[" in capsys.readouterr().out) is coloured


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_no_cursor_is_moved_where_none_is_wanted_or_nobody_looks(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, "true")
    with screen(1, 1.0) as view:
        assert isinstance(view, Lines)
        view.advance("a result", 1.0)
    assert "\x1b" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_every_table_of_the_reference_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    out = on_a_terminal(monkeypatch, columns=80)
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in out.splitlines()) <= 80


def test_every_exit_code_is_told_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == set(Exit)


# --- Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tuen", "No such command 'tuen'"),
        ("sweep --modle tiny", "No such option: --modle"),
        ("--ranks 0 doctor", "--ranks"),
        ("--ranks", "Option '--ranks' requires an argument. See 'dcpbench --help'"),
        (
            "memory --tp 8",
            (
                "Missing option '--model'. See 'dcpbench memory --help', "
                "for example: dcpbench memory --model qwen3-235b-a22b --tp 8\n"
            ),
        ),
        (
            "compare last",
            "Missing argument 'after'. See 'dcpbench compare --help', for example: dcpbench compare before.jsonl",
        ),
        (
            "recommend",
            "for example: dcpbench recommend --model qwen3-235b-a22b --tp 8 --context 32k --concurrency 64\n",
        ),
        (
            "sweep quick --model",
            "requires an argument. See 'dcpbench sweep --help', for example: dcpbench sweep --model",
        ),
        ("recommend --model tiny --dcp 2", "recommend answers for every legal dcp size: leave --dcp out."),
        (
            "recommend --model tiny --tpp 2",
            "No such option: --tpp; did you mean --tp? See 'dcpbench recommend --help'.",
        ),
        ("plot --out here", "No such option: --out. See 'dcpbench plot --help', for example: dcpbench plot\n"),
        (
            "--ranks 2 tune quick --bogus",
            "No such option: --bogus. See 'dcpbench tune --help', for example: dcpbench tune quick\n",
        ),
        ("bogus", "No such command 'bogus': there are tune, sweep, verify, "),
        ("profile bogus", "No such command 'bogus': there are show, lookup, export, diff, merge, validate."),
        ("sweep", "name a sweep (dcp, decode"),
        ("sweep quikc", "unknown sweep 'quikc'; did you mean 'quick'?"),
        ("sweep nowhere.toml", "no such file"),
        ("sweep quick --model qwen3-23b", "did you mean 'qwen3-32b'?"),
        ("sweep quick --model mine", "any other by the path of its config.json, or as q64,kv4,d128"),
        ("sweep quick --path fald", "did you mean 'fold'?"),
        ("sweep quick --kernel fa4", "unknown kernel 'fa4'"),
        ("sweep quick --exchange agrs", "did you mean 'ag_rs'?"),
        ("sweep quick --batch 8q1x", "dcpbench: --batch: '8q1x', character 4"),
        ("sweep quick --context 8z", "dcpbench: --context: a whole number"),
        ("sweep quick --batch q8 --new 1", "--batch: give batches, or new to build them from, not both"),
        (
            "sweep --model tiny --tp 4 --dcp 2 --path tp --batch q8",
            "path tp is the dcp 1 baseline, asked for with dcp 2",
        ),
        ("sweep folder.toml", "folder.toml: a folder, where a sweep should be"),
        ("sweep quick --set pagesize=16", "unknown setting 'pagesize'; did you mean 'page_size'?"),
        ("sweep quick --set page_size", "has no value"),
        ("sweep quick --precision sloppy", "precision is quick, standard, strict"),
        ("sweep --model tiny --tp 3 --batch q8", "tp 3"),
        ("sweep --model qwen3-32b --tp 8 --dcp 2 --batch q8", "the smallest tp for dcp 2 is 16"),
        ("memory --model tiny --tp 4 --budget lots", "write it as 80GiB"),
        ("memory --model tiny --tp 4 --length 8x", "write it as 32k"),
        ("memory --model tiny --tp 4 --dcp two", "--dcp takes whole numbers"),
        ("memory --model qwen3-235b-a22b --tp 8 --dcp 4", "the nearest legal choice at tp 8 is dcp 2"),
        ("plot --figure latancy", "did you mean 'latency'?"),
        ("show", "holds no trials"),
        ("show /usr", "/usr holds no trials"),
        ("show trace.csv", "but a file of that name, which is none: the file of a run ends in .jsonl"),
        ("show last", "no run 'last'"),
        ("profile", "Missing command: there are show, lookup, "),
        ("profile show", "holds no profile"),
        ("profile show absent.json", "no such file"),
        ("profile show trace.csv", "trace.csv: no profile, for it is not valid JSON"),
        ("verify --path fald", "did you mean 'fold'?"),
        ("verify --dcp x", "--dcp takes whole numbers"),
        ("verify --dcp ,", "--dcp has no value"),
        ("memory --model tiny --tp 4 --dcp ,", "--dcp has no value"),
        ("sweep quick --batch ,", "--batch has no value"),
        ("sweep quick --set page_size=,", "has no value"),
        ("sweep quick --model q64,kv4", "'q64,kv4'"),
        ("sweep quick --ranks 2", "--ranks stands before the command: dcpbench --ranks 2 sweep"),
        ("--results mine show", "No such option: --results. What a command takes stands after the command."),
        ("--ranks 999 sweep quick", "--ranks 999, but without a GPU"),
        ("--ranks 999 verify", "cores can bear"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: str,
    says: str,
    scripted: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "trace.csv").write_text("arrival,prompt,output\n0,900,40\n")
    assert run(*words.split()) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("dcpbench: ")
    assert says in err
    assert scripted.measured == []


@pytest.mark.parametrize(
    "words", [("verify", "--dcp", ""), ("sweep", "quick", "--precision", ""), ("sweep", "--model", "")]
)
def test_an_empty_value_is_a_mistake_too(
    words: tuple[str, ...], scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == Exit.USAGE
    assert words[-2].lstrip("-") in capsys.readouterr().err


def test_sentences_do_not_run_into_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweeep") == Exit.USAGE
    assert re.search(r"\? See 'dcpbench --help'\.$", capsys.readouterr().err.strip())


def test_a_kernel_that_this_machine_lacks_is_refused_by_verify(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "--kernel", "fa2") == Exit.UNFIT
    assert "kernel fa2 does not run here: fa2 needs a CUDA device" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_exit_code_5(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run("sweep", *TYPED, "--results", tmp_path / "file" / "below") == Exit.STORAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_home_that_may_not_be_written_costs_nobody_a_picture_or_a_traceback(results: Path) -> None:
    with Store.open(results) as store:
        for one in trials("8q1s1k"):
            store.append(one)
    drawn = shell(
        f"dcpbench plot -o '{results}/pictures' --figure kv-memory --results '{results}'", HOME="/dev/null/none"
    )
    assert (drawn.returncode, drawn.stderr) == (Exit.DONE, "")
    assert (results / "pictures" / "kv-memory.png").exists()
    told = shell("dcpbench --install-completion", HOME="/dev/null/none")
    assert told.returncode == Exit.STORAGE
    assert told.stderr.startswith("dcpbench: cannot install completion: /dev/null/none")
    assert len(told.stderr.splitlines()) == 1


def test_a_folder_in_use_is_exit_code_6(scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(results):
        assert run("sweep", *TYPED, "--results", results) == Exit.LOCKED
    assert "in use by process" in capsys.readouterr().err
    assert scripted.measured == []


def test_a_bug_keeps_its_traceback(scripted: Scripted, results: Path) -> None:
    def broken(number: int, case: Case) -> Outcome | None:
        raise ZeroDivisionError

    scripted.script = broken
    with pytest.raises(ZeroDivisionError):
        run("sweep", *TYPED, "--results", results)


def test_where_nothing_can_be_measured_the_reason_for_most_of_it_comes_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("sweep", "--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "q4")
    assert run(*words, "--interleave", "3") == Exit.USAGE
    complaint = capsys.readouterr().err
    assert "can be measured: 2× interleave 3 must divide the page size 16" in complaint
    assert "; 1× path decode takes one new token" in complaint
    assert run(*words, "--interleave", "3,5,6,7,9") == Exit.USAGE
    assert "more reasons" in capsys.readouterr().err
    assert run(*words, "--path", "decode") == Exit.USAGE
    assert "can be measured: path decode takes one new token" in capsys.readouterr().err


# --- Measuring ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_cases_memory_and_time_and_measures_nothing(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", "quick", "--results", results, "--dry-run") == Exit.DONE
    out = capsys.readouterr().out
    assert "MiB" in out
    assert " s\n" in out
    assert "Not possible, and left out:" in out
    assert "path decode takes one new token per request" in out
    assert "to measure in about" in out
    assert scripted.ranks == []
    assert not results.exists()


def test_a_dry_run_for_machines_lists_every_case(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results, "--dry-run", "--json") == Exit.DONE
    plan = json.loads(capsys.readouterr().out)
    assert {Case.from_json(one["case"]).layout.dcp for one in plan["cases"]} == {1, 2}
    assert all(one["bytes"] > 0 and one["seconds"] > 0 and one["lacking"] for one in plan["cases"])
    assert plan["illegal"]


def test_axes_on_the_command_line_override_the_sweep_s(scripted: Scripted, results: Path) -> None:
    words = ("--model", "q8,kv2,d64", "--batch", "q4s64,2q1s32", "--path", "split", "--set", "page_size=16,32")
    assert run("sweep", "quick", *words, "--dcp", "2", "--exchange", "a2a", "--results", results) == Exit.DONE
    found = {(str(case.workload), case.settings.path, case.settings.page_size) for case in scripted.measured}
    assert found >= {("q4s64", "split", 16), ("q4s64", "split", 32), ("2q1s32", "split", 16), ("2q1s32", "split", 32)}
    assert {case.shape.head_dim for case in scripted.measured} == {64}


def test_ranks_decide_what_is_real_and_what_is_simulated(scripted: Scripted, results: Path) -> None:
    words = ("--model", "tiny", "--tp", "4", "--dcp", "2", "--batch", "q8", "--path", "fold", "--results")
    assert run("--ranks", "1", "sweep", *words, results) == Exit.DONE
    assert run("--ranks", "2", "sweep", *words, results) == Exit.DONE
    assert run("sweep", *words, results) == Exit.DONE
    assert scripted.ranks == [1, 2]
    assert [case.settings.exchange for case in scripted.measured] == ["loopback", "ag_rs"]


def test_tune_ends_with_a_table_a_profile_and_pictures(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tune", *TYPED, "--results", results) == Exit.DONE
    out, err = capsys.readouterr()
    assert "Chosen for q4,kv1,d64,dtype=float32 on A CPU" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith(("profile", "plot", "no plot"))) <= 80
    printed = re.findall(r"(\S+\.(?:json|png|svg))", out)
    assert len(printed) >= 5
    for path in printed:
        assert (Path(path)).stat().st_size > 0, path
    assert "[8/8]" in err
    assert "\x1b" not in out + err


def test_tune_prints_what_it_chose_before_it_saves_anything(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.mkdir()
    (results / "profiles").write_text("in the way", encoding="utf-8")
    assert run("tune", *TYPED, "--results", results) == Exit.STORAGE
    assert "Chosen for q4,kv1,d64,dtype=float32 on A CPU" in capsys.readouterr().out


def test_the_pictures_of_a_sweep_stay_below_its_folder(scripted: Scripted, results: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "...toml"
    sweep.write_text('model = "tiny"\ntp = 4\nbatch = "q8"\n', encoding="utf-8")
    assert run("tune", sweep, "--results", results) == Exit.DONE
    assert [path.name for path in (results / "plots").iterdir()] == ["unnamed"]


def test_tuning_one_thing_does_not_forget_another(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", "tiny", "--tp", "4", "--dcp", "2", "--results", results)
    assert run("tune", *model, "--batch", "8q1s1k") == Exit.DONE
    capsys.readouterr()
    assert run("tune", *model, "--batch", "q512") == Exit.DONE
    assert "8q1s1k" not in capsys.readouterr().out
    assert run("profile", "show", "--results", results) == Exit.DONE
    out = capsys.readouterr().out
    assert "8q1s1k" in out
    assert "q512" in out


def test_tune_for_machines_prints_json_and_nothing_else(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tune", *TYPED, "--results", results, "--json") == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert {entry["dcp"] for profile in found["profiles"] for entry in profile["entries"]} == {1, 2}
    assert Path(found["plots"]["latency"][0]).is_file()
    assert found["cases"] == {"measured": len(set(scripted.measured)), "skipped": 0, "failed": 0}


def test_what_is_in_the_store_is_not_measured_again(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    first = len(scripted.measured)
    assert run("sweep", *TYPED, "--concurrency", "1,2", "--results", results) == Exit.DONE
    assert len(scripted.measured) == 2 * first
    assert f"{first} are in {results} already" in capsys.readouterr().err
    assert run("tune", *TYPED, "--search", "exhaustive", "--results", results) == Exit.DONE
    assert len(scripted.measured) == 2 * first
    assert "nothing to measure" in capsys.readouterr().err


def test_more_precision_than_the_store_has_is_measured(scripted: Scripted, results: Path) -> None:
    assert run("sweep", *TYPED, "--results", results, "--precision", "quick") == Exit.DONE
    first = len(scripted.measured)
    assert run("sweep", *TYPED, "--results", results, "--precision", "strict") == Exit.DONE
    assert len(scripted.measured) == 2 * first
    assert run("sweep", *TYPED, "--results", results, "--precision", "quick") == Exit.DONE
    assert len(scripted.measured) == 2 * first
    assert [policy.precision for policy in scripted.policies] == [0.03, 0.005]


def test_exchanges_and_predictions_are_shown_as_tables_and_json(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("1q1s16", "8q1s16", "64q1s16", "512q1s16")
    found = trials(*sizes, dcps=(2,), kernels=("fa2",), exchanges=("loopback", "a2a"))
    with Store.open(results) as store:
        for one in found:
            store.append(one)
    assert run("show", "--results", results, "--exchanges") == Exit.DONE
    assert "a2a at every size" in capsys.readouterr().out
    assert run("show", "--results", results, "--predicted", "--markdown") == Exit.DONE
    assert "| case | modelled µs | measured µs | error |" in capsys.readouterr().out
    assert run("show", "--results", results, "--exchanges", "--json") == Exit.DONE
    messages = json.loads(capsys.readouterr().out)["exchanges"]
    assert {one["tokens"] for one in messages} == {1, 8, 64, 512}
    assert run("show", "--results", results, "--predicted", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["predicted"]


@pytest.mark.parametrize(
    ("option", "lacking"),
    [("--exchanges", "decode steps measured between real ranks"), ("--predicted", "both measured between real ranks")],
)
def test_what_no_trial_tells_of_exchanges_is_said(
    option: str, lacking: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(results) as store:
        store.append(trials("q8s40", dcps=(1,), kernels=("fa2",))[0])
    assert run("show", "--results", results, option) == Exit.USAGE
    assert lacking in capsys.readouterr().err


def test_eager_is_measured_beside_graphs_and_each_once(scripted: Scripted, results: Path) -> None:
    for more in ((), ("--eager",), (), ("--eager",)):
        assert run("sweep", *TYPED, "--results", results, *more) == Exit.DONE
    assert [policy.graphs for policy in scripted.policies] == [True, False]
    trials, _ = Store.read(results)
    assert len({trial.key for trial in trials}) == len(trials) == len(scripted.measured)


def test_what_overlaps_is_measured_again_to_be_traced_and_nothing_else(scripted: Scripted, results: Path) -> None:
    both = (*TYPED, "--path", "split", "--exchange", "ag_rs", "--set", "overlap=false,true", "--results", results)
    for more in ((), ("--trace",), ("--trace",), ()):
        assert run("--ranks", "2", "sweep", *both, *more) == Exit.DONE
    assert [policy.trace for policy in scripted.policies] == [False, True]
    assert {case.settings.overlap for case in scripted.measured} == {False, True}
    again = [case for case in set(scripted.measured) if scripted.measured.count(case) > 1]
    assert again
    assert set(again) == {case for case in scripted.measured if case.settings.overlap}


def test_ctrl_c_keeps_what_was_measured_and_says_how_to_go_on(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(number: int, case: Case) -> Outcome | None:
        if number == 3:
            raise KeyboardInterrupt
        return None

    scripted.script = stopped
    words = ("--ranks", "2", "tune", *TYPED, "--search", "exhaustive", "--results", results)
    assert run(*words) == Exit.INTERRUPTED
    err = capsys.readouterr().err
    assert "3 trials kept" in err
    resume = err.strip().splitlines()[-1].split()
    assert resume == ["dcpbench", *map(str, words)]
    assert len(Store.read(results)[0]) == 3
    assert scripted.closed == 1
    scripted.script = lambda number, case: None
    assert main(resume[1:]) == Exit.DONE
    assert len({case.key for case in scripted.measured}) == len(scripted.measured)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_with_nothing_lost(number: int, scripted: Scripted, results: Path) -> None:
    def terminated(count: int, case: Case) -> Outcome | None:
        if count == 2:
            os.kill(os.getpid(), number)
        return None

    scripted.script = terminated
    assert run("sweep", *TYPED, "--results", results) == Exit.TERMINATED
    assert len(Store.read(results)[0]) == 2
    assert scripted.closed == 1
    with Store.open(results):
        pass


@pytest.mark.parametrize(
    ("module", "code"), [("importlib._bootstrap", -signal.SIGINT), ("pydantic.types", -signal.SIGINT), ("rich", 130)]
)
def test_ctrl_c_inside_a_library_that_would_drop_it_ends_the_process(module: str, code: int) -> None:
    program = f"""
import os, signal, sys
import bench.cli.program
from bench.cli import main
within = {{"__name__": {module!r}, "os": os}}
bench.cli.program.run = lambda lead: exec("try: os.kill(os.getpid(), {signal.SIGINT:d})\\nfinally: print('unwound')", within)
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == ("unwound\n" if code == 130 else "")


def test_a_run_under_nohup_outlives_its_terminal(scripted: Scripted, results: Path) -> None:
    def hung_up(count: int, case: Case) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    scripted.script = hung_up
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("sweep", *TYPED, "--results", results) == Exit.DONE
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failed_case_is_exit_code_3_tried_once_more_and_then_left(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.script = lambda number, case: Failed("crashed", "a worker died") if case.layout.dcp == 2 else None
    assert run("sweep", *TYPED, "--results", results) == Exit.FAILED_CASES
    first = len(scripted.measured)
    failed = sum(case.layout.dcp == 2 for case in scripted.measured)
    assert f"{failed} cases failed: crashed: a worker died." in capsys.readouterr().out
    assert run("sweep", *TYPED, "--results", results) == Exit.FAILED_CASES
    assert len(scripted.measured) == first + failed
    capsys.readouterr()
    assert run("sweep", *TYPED, "--results", results) == Exit.FAILED_CASES
    assert len(scripted.measured) == first + failed
    said = f"{failed} cases failed twice and are left alone; --fresh measures them again."
    kept = f"{first - failed} are in {results} already; nothing to measure."
    assert capsys.readouterr().err.splitlines()[:2] == [kept, said]
    assert run("sweep", *TYPED, "--results", results, "--dry-run") == Exit.DONE
    out = capsys.readouterr().out
    assert f"already: {first - failed}." in out
    assert said in out
    assert "0 to measure" in out
    assert run("sweep", *TYPED, "--results", results, "--dry-run", "--json") == Exit.DONE
    assert sum(one["failed_twice"] for one in json.loads(capsys.readouterr().out)["cases"]) == failed


def test_a_case_that_was_left_alone_is_measured_afresh(scripted: Scripted, results: Path) -> None:
    scripted.script = lambda number, case: Failed("crashed", "a worker died") if case.layout.dcp == 2 else None
    for _ in range(2):
        assert run("sweep", *TYPED, "--results", results) == Exit.FAILED_CASES
    first, failed = len(scripted.measured), sum(case.layout.dcp == 2 for case in scripted.measured) // 2
    scripted.script = lambda number, case: None
    assert run("sweep", *TYPED, "--results", results, "--fresh") == Exit.DONE
    assert len(scripted.measured) == first + failed
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    assert len(scripted.measured) == first + failed


@pytest.mark.parametrize("change", ["precision", "commit"])
def test_failures_of_another_policy_or_dcpbench_do_not_count(
    change: str, scripted: Scripted, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = lambda number, case: Failed("crashed", "a worker died")
    for _ in range(2):
        assert run("sweep", *TYPED, "--results", results) == Exit.FAILED_CASES
    first = len(scripted.measured)
    newer = Environment(CPU.hard, {"dcpbench": "a newer commit"})
    if change == "commit":
        monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: newer)
    more = ("--precision", "strict") if change == "precision" else ()
    assert run("sweep", *TYPED, "--results", results, *more) == Exit.FAILED_CASES
    assert len(scripted.measured) == first + first // 2


def test_a_case_larger_than_the_machine_s_memory_will_not_run() -> None:
    (case,) = (one.case for one in trials("8q1s32k", dcps=(1,), kernels=("fa2",)))
    assert obstacle(case, on_gpu=True, memory_bytes=1 << 40) == ""
    assert obstacle(case, on_gpu=True, memory_bytes=1 << 20) == "needs more memory than the 1.0 MiB that there are"
    assert obstacle(case, on_gpu=False, memory_bytes=1 << 40) == "kernel fa2 needs a GPU"


def test_what_is_known_not_to_run_here_is_said_and_costs_no_time(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", "tiny", "--tp", "4", "--dcp", "1", "--results", results)
    wanted = ("--batch", "q8,q16", "--kernel", "reference,fa2")
    assert run("sweep", *model, *wanted, "--dry-run", "--json") == Exit.DONE
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert {one["obstacle"] for one in cases} >= {None, "kernel fa2 needs a GPU"}
    assert all((one["obstacle"] is None) == (one["seconds"] > 0) for one in cases)
    assert run("sweep", *model, *wanted, "--dry-run") == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r"^ +2×  kernel fa2 needs a GPU$", out, re.MULTILINE)
    assert run("sweep", *model, *wanted) == Exit.DONE
    assert "2 of them will not run here: kernel fa2 needs a GPU." in capsys.readouterr().err
    assert {case.settings.kernel for case, seconds in scripted.expected_s.items() if not seconds} >= {"fa2"}


def test_a_skipped_case_says_why_and_does_no_harm(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.script = lambda number, case: Skipped("needs 9.0 GiB, 1.0 GiB are free") if case.layout.dcp == 2 else None
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    assert "skipped: needs 9.0 GiB, 1.0 GiB are free." in capsys.readouterr().out


def test_a_skipped_case_is_asked_again_and_a_measured_one_is_not(scripted: Scripted, results: Path) -> None:
    scripted.script = lambda number, case: Skipped("needs 9.0 GiB, 1.0 GiB are free") if case.layout.dcp == 2 else None
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    first = len(scripted.measured)
    scripted.script = lambda number, case: None
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    again = scripted.measured[first:]
    assert again
    assert {case.key for case in again} == {case.key for case in scripted.measured[:first] if case.layout.dcp == 2}
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    assert len(scripted.measured) == first + len(again)


def test_where_nothing_can_run_the_machine_is_unfit(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.script = lambda number, case: Skipped("no kernel")
    assert run("sweep", *TYPED, "--results", results) == Exit.UNFIT
    assert "doctor" in capsys.readouterr().err


def test_another_driver_is_named_and_refused_unless_asked_to_measure_afresh(
    scripted: Scripted, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    first = len(scripted.measured)
    newer = Environment({**CPU.hard, "torch": "9.9.9"})
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: newer)
    capsys.readouterr()
    assert run("sweep", *TYPED, "--results", results) == Exit.USAGE
    err = capsys.readouterr().err
    assert "torch: 9.9.9 here, 2.13.0 there" in err
    assert "--fresh" in err
    scripted.environment = newer
    assert run("sweep", *TYPED, "--results", results, "--fresh") == Exit.DONE
    assert len(scripted.measured) == 2 * first
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE, "all of it was measured here now"
    assert len(scripted.measured) == 2 * first


def test_other_links_between_ranks_are_named_and_refused_where_cases_have_several(
    scripted: Scripted, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def linked(link: str, **variables: str) -> Environment:
        environment = Environment(CPU.hard, {"topology": f"0-1: {link}", **variables})
        monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: environment)
        return environment

    alone = [word if word != "1,2" else "1" for word in TYPED]
    scripted.environment = linked("NVLink")
    assert run("--ranks", "2", "sweep", *TYPED, "--results", results) == Exit.DONE
    measured = len(scripted.measured)
    linked("PCIe", **{"env:NCCL_ALGO": "Ring"})
    capsys.readouterr()
    for words in (["sweep", *TYPED], ["tune", *TYPED]):
        assert run("--ranks", "2", *words, "--results", results) == Exit.USAGE
        err = " ".join(capsys.readouterr().err.split())
        assert "(env:NCCL_ALGO: Ring here, not set there; link 0-1: PCIe here, NVLink there)" in err
    assert run("--ranks", "2", "sweep", *alone, "--results", results) == Exit.DONE, "a rank by itself has no links"
    assert len(scripted.measured) == measured


@pytest.mark.parametrize("field", ["device_name", "driver", "cuda", "nccl", "torch", "triton", "flashinfer"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_sweep_that_stopped_is_not_continued_where_anything_changed(
    field: str,
    how: str,
    scripted: Scripted,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hard = {"device_name": "a GPU", "driver": "580", "cuda": "13.0", "nccl": "2.28"}
    hard |= {"torch": "2.11", "triton": "3.6", "flashinfer": "0.7.2"}
    later = {name: value + ".1" if name == field else value for name, value in hard.items()}
    if how == "gone":
        del later[field]

    def stopped(number: int, case: Case) -> Outcome | None:
        if number == 3:
            raise KeyboardInterrupt
        return None

    scripted.script = stopped
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: Environment(hard))
    scripted.environment = Environment(hard)
    assert run("sweep", *TYPED, "--results", results) == Exit.INTERRUPTED
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: Environment(later))
    capsys.readouterr()
    for words in (["sweep", *TYPED], ["sweep", *TYPED, "--dry-run"], ["tune", *TYPED]):
        assert run(*words, "--results", results) == Exit.USAGE
        named = f"({field}: {later.get(field, 'unknown')} here, {hard[field]} there)"
        assert named in capsys.readouterr().err
    assert len(scripted.measured) == 3
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: Environment(hard))
    scripted.script = lambda number, case: None
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    assert len(scripted.measured) == len({case.key for case in scripted.measured}), (
        "what was kept is not measured again"
    )


def test_the_whole_way_with_real_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--model",
        "q4,kv1,d16",
        "--tp",
        "2",
        "--dcp",
        "1,2",
        "--batch",
        "q3s9",
        "--path",
        "split,fold",
        "--exchange",
        "ag_rs",
    )
    assert run("--ranks", "2", "tune", *words, "--results", tmp_path, "--precision", "0.9") == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r"^q3s9 +2 +(split|fold)\S* +reference +ag_rs .* measured$", out, re.MULTILINE)
    trials, _ = Store.read(tmp_path)
    assert len({trial.case for trial in trials}) == 3
    heats = {trial.outcome.race.heat for trial in trials if isinstance(trial.outcome, Measured) and trial.outcome.race}
    assert heats == {Heat.SCREENED, Heat.CONFIRMED}


# --- Reading ------------------------------------------------------------------------------------------------------------


def test_show_prints_tables_markdown_or_json(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    swept = capsys.readouterr().out
    assert run("show", "--results", results) == Exit.DONE
    assert capsys.readouterr().out == swept
    assert run("show", "last", "--results", results, "--markdown") == Exit.DONE
    assert "| batch | dcp | path |" in capsys.readouterr().out
    assert run("show", "--results", results, "--json") == Exit.DONE
    assert len(json.loads(capsys.readouterr().out)["trials"]) == len(scripted.measured)


def test_a_run_may_be_given_as_a_file(scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    swept = capsys.readouterr().out
    (path,) = results.glob("*.jsonl")
    assert run("show", path) == Exit.DONE
    assert capsys.readouterr().out == swept


def test_a_file_without_trials_is_named(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    assert run("show", path, "--results", results) == Exit.USAGE
    assert f"{path} holds no trials" in capsys.readouterr().err


def test_a_damaged_line_is_named_and_the_rest_is_shown(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results) == Exit.DONE
    (path,) = results.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    assert run("show", "--results", results, "--json") == Exit.DONE
    out, err = capsys.readouterr()
    assert "set aside" in err
    assert len(json.loads(out)["trials"]) == len(scripted.measured) - 1


def test_plot_writes_where_it_is_told_and_says_what_it_left_out(
    scripted: Scripted, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "tiny", "--tp", "4", "--dcp", "1", "--batch", "q8s64")
    assert run("sweep", *words, "--results", results) == Exit.DONE
    capsys.readouterr()
    folder = tmp_path / "pictures"
    assert run("plot", "--results", results, "--to", folder, "--figure", "kv-memory,mask-cost") == Exit.DONE
    out = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["kv-memory.png", "kv-memory.svg"]
    assert "no plot  mask-cost: needs one batch measured with path mask" in out


def test_plot_tells_what_fits_in_the_room_that_is_said(
    scripted: Scripted,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[dict[str, int]] = []

    def figures(**room: int) -> dict[str, object]:
        asked.append(room)
        return {"kv-memory": lambda _: "not drawn here"}

    words = ("--model", "tiny", "--tp", "4", "--dcp", "1", "--batch", "q8s64")
    assert run("sweep", *words, "--results", results) == Exit.DONE
    monkeypatch.setattr("bench.report.plot.figures", figures)
    plot = ("plot", "--results", results, "--figure", "kv-memory", "--to", tmp_path)
    assert run(*plot) == run(*plot, "--budget", "60GiB", "--length", "128k") == Exit.DONE
    usual = {"budget": kv_memory.BUDGET_BYTES, "length": kv_memory.LENGTH}
    assert asked == [usual, {"budget": 60 << 30, "length": 128 * 1024}]
    capsys.readouterr()
    assert run(*plot, "--budget", "lots") == run(*plot, "--length", "0") == Exit.USAGE
    assert "'lots' is no size; write it as 80GiB" in capsys.readouterr().err


def test_why_there_is_no_plot_fits_a_terminal(
    scripted: Scripted, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model", "tiny", "--tp", "4", "--dcp", "1", "--batch", "q8s64")
    assert run("sweep", *words, "--results", results) == Exit.DONE
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    assert run("plot", "--results", results, "--to", tmp_path, "--figure", "mask-cost,latency") == Exit.DONE
    lines = [line for line in out.getvalue().splitlines() if not line.startswith("plot")]
    assert lines[0].startswith("no plot  mask-cost: needs one batch")
    assert max(map(len, lines)) <= 40 < len(" ".join(lines))


def test_a_profile_answers_for_a_batch(scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tune", *TYPED, "--results", results) == Exit.DONE
    capsys.readouterr()
    assert run("profile", "show", "--results", results) == Exit.DONE
    assert "Chosen for q4,kv1,d64" in capsys.readouterr().out
    asked = ("profile", "lookup", "--model", "tiny", "--tp", "4", "--dcp", "2", "--results", results)
    assert run(*asked, "q8s520") == Exit.DONE
    assert "exact" in capsys.readouterr().out
    assert run(*asked, "q1s513", "--json") == Exit.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["source"] == "exact"
    assert Path(answer["file"]).parent == results / "profiles"
    assert run("profile", "lookup", "q8", "--model", "q63,kv7,d96", "--tp", "7", "--results", results) == Exit.USAGE
    assert "no profile here is for q9,kv1,d96" in capsys.readouterr().err


def shipped(geometry: str) -> Path:
    """Return the file of the profile that ships for a geometry on the H200."""
    (path,) = shipped_profiles(f"{geometry},dtype=bfloat16", "h200")
    return path


def test_every_shipped_profile_is_in_order_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    files = [path for name in shipped_geometries("h200") for path in shipped_profiles(name, "h200")]
    assert len(files) >= 3
    for path in files:
        assert run("profile", "validate", path) == Exit.DONE
        assert "all in order" in capsys.readouterr().out
        assert run("profile", "show", path) == Exit.DONE
        out = capsys.readouterr().out
        assert "Between what was measured" in out
        assert max(len(line) for line in out.splitlines() if not line.startswith(str(path))) <= 80


def test_a_profile_that_contradicts_itself_is_not_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edited.json"
    text = shipped("q2,kv1,d128").read_text(encoding="utf-8")
    path.write_text(re.sub(r'"ratio_to_default": 0\.\d+', '"ratio_to_default": 0.0001', text), encoding="utf-8")
    assert run("profile", "validate", path) == Exit.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"entry \d+: ratio_to_default should be 0\.\d+, as its candidates tell$", said.err.strip())


def test_a_lookup_says_how_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("profile", "lookup", "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2")
    assert run(*asked, "8q4s32k") == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r": exact, expected 0\.0% over the best$", out, re.MULTILINE)
    assert re.search(r"^8q4s32k measured: .* µs .* with fold fa2 direct, case [0-9a-f]{16}, 2026-", out, re.MULTILINE)
    assert re.search(r"^Over the engine's default: 0\.\d\d±", out, re.MULTILINE)
    assert re.search(r"^Runner-up: ", out, re.MULTILINE)
    assert run(*asked, "64q1s32k") == Exit.DONE
    assert "\nThe engine's default is what was chosen.\n" in capsys.readouterr().out
    assert run(*asked, "9q4s32k") == Exit.DONE
    assert re.search(r": (tree|neighbour), 0\.\d doublings from 8q4s32k at dcp 2, expected", capsys.readouterr().out)
    assert run(*asked, "9q4s900k") == Exit.DONE
    assert "default, since it lies outside what was measured (the nearest is" in capsys.readouterr().out


def here(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Let this machine have the GPU of the shipped profiles, but for some fields."""
    there = Profile.load(shipped("q16,kv1,d128")).environment
    mine = Environment({**there.hard, **changes}, there.soft)
    monkeypatch.setattr(bench.environment, "devices", lambda: (Device("a GPU", "uuid", 1 << 37, 1 << 37),))
    monkeypatch.setattr(bench.environment, "fingerprint", lambda _: mine)


def test_a_profile_of_another_machine_is_refused_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["lookup", "8q1s32k"], ["export"]):
        asked = ("profile", *words, "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2")
        here(monkeypatch)
        assert run(*asked) == Exit.DONE
        assert capsys.readouterr().err == ""
        here(monkeypatch, driver="1.2.3")
        assert run(*asked) == Exit.DONE
        assert re.search(r"^Measured elsewhere, .*driver \S+ there, 1\.2\.3 here", capsys.readouterr().err)
        here(monkeypatch, device_name="NVIDIA B200")
        assert run(*asked) == Exit.USAGE
        refused = capsys.readouterr().err
        assert "another machine (device_name NVIDIA H200 there, NVIDIA B200 here)" in refused
        assert "--anyway" in refused
        assert run(*asked, "--anyway") == Exit.DONE
        assert "NVIDIA B200 here" in capsys.readouterr().err
        assert run(*asked, "--gpu", "h200") == Exit.DONE
        assert capsys.readouterr().err == "Asked for NVIDIA H200, on which it was measured.\n"


def test_a_profile_becomes_flags_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("profile", "export", "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2", "--gpu", "h200")
    assert run(*asked) == Exit.DONE
    out = capsys.readouterr().out
    assert "--attention-backend FLASHINFER" in out
    assert "--decode-context-parallel-size 2" in out
    assert run(*asked, "--batch", "8q4s32k", "--json") == Exit.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["flags"]["--tensor-parallel-size"] == "8"
    assert any("(fold fa2 direct)" in note for note in answer["notes"])
    assert run(*asked, "--gpu", "b300") == Exit.USAGE
    assert "no reference ships for GPU 'b300'" in capsys.readouterr().err


def test_profiles_are_compared_and_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shipped("q8,kv1,d128")
    whole = Profile.load(path)
    parts = [replace(whole, entries=whole.entries[:40]), replace(whole, entries=whole.entries[40:])]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for part, file in zip(parts, files, strict=True):
        part.write(file)
    assert run("profile", "diff", path, path) == Exit.DONE
    assert "0 differ in their settings" in capsys.readouterr().out
    assert run("profile", "diff", path, files[0]) == Exit.DIFFERENT
    assert f"Only in A, {len(whole.entries) - 40}: " in capsys.readouterr().out
    joined = tmp_path / "joined.json"
    assert run("profile", "merge", *files, "-o", joined) == Exit.DONE
    assert Profile.load(joined) == whole
    capsys.readouterr()
    assert run("profile", "merge", *files, "-o", joined) == Exit.USAGE
    assert "is there already, and is not replaced" in capsys.readouterr().err
    assert run("profile", "diff", path, shipped("q16,kv1,d128")) == Exit.USAGE
    assert "only like can be compared" in capsys.readouterr().err


def test_where_nothing_was_tuned_the_shipped_profiles_answer(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("profile", "lookup", "8q1s32k", "--model", "qwen3-235b-a22b", "--tp", "8", "--results", results)
    assert run(*asked) == Exit.DONE
    shown = capsys.readouterr().out.splitlines()[-1]
    assert run(*asked, "--json") == Exit.DONE
    file = json.loads(capsys.readouterr().out)["file"]
    assert Path(file).is_relative_to(reference_folder())
    assert shown == f"From {file}"


def test_a_name_out_of_a_file_cannot_reach_the_terminal(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = replace(QWEN, name="evil\x1b[2J\x07")
    with Store.open(results) as store:
        for one in trials("8q1s32k", shape=shape, kernels=("fa2",)):
            environment = Environment({**one.environment.hard, "device_name": "card\x1b]0;title\x07"})
            store.append(replace(one, environment=environment))
    for profile in pick(Store.read(results)[0]):
        profile.save(results / "profiles")
    for words in (["show"], ["show", "--markdown"], ["show", "--json"], ["profile", "show"]):
        assert run(*words, "--results", results) == Exit.DONE
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
        assert "evil" in out or "card" in out


@pytest.mark.parametrize(
    "words", ["sweep FILE.toml", "profile show FILE.json", "show FILE.jsonl", "memory --tp 8 --model FILE.json"]
)
def test_a_pipe_is_refused_and_not_waited_for(
    words: str, tmp_path: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.replace("FILE", str(tmp_path / "pipe")).split()
    os.mkfifo(next(word for word in given if "pipe" in word))
    assert run(*given) == Exit.USAGE
    assert "regular file" in capsys.readouterr().err


# --- This machine -------------------------------------------------------------------------------------------------------


def test_memory_is_computed_per_legal_dcp(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("memory", "--model", "qwen3-235b-a22b", "--tp", "16", "--budget", "40GiB", "--length", "32k") == Exit.DONE
    )
    out = capsys.readouterr().out
    assert re.search(r"^ +1 +48,128 +4 +892,400 +27 +0% ", out, re.MULTILINE)
    assert re.search(r"^ +4 +12,032 +1 +3,569,600 +108 +75% ", out, re.MULTILINE)
    assert run("memory", "--model", "qwen3-235b-a22b", "--tp", "16", "--dcp", "2", "--json") == Exit.DONE
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["dcp"], row["bytes_per_token"], row["saved"]) == (2, 24064, 0.5)
    assert run("memory", "--model", "q64,kv4,d128", "--tp", "8") == Exit.DONE
    assert "one rank, one layer\n" in capsys.readouterr().out


def test_memory_takes_off_what_stands_beside_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("memory", "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2", "--json")
    assert run(*asked, "--gpu-memory", "40GiB", "--exchange-buffers", "24MiB") == Exit.DONE
    (net,) = json.loads(capsys.readouterr().out)
    assert run(*asked, "--budget", "40GiB") == Exit.DONE
    (whole,) = json.loads(capsys.readouterr().out)
    assert net["wrapper_bytes"] == (3 + 51) * 8 << 20
    assert net["beside_bytes"] == net["allocated_bytes"] + net["wrapper_bytes"] + (24 << 20)
    assert (net["memory_bytes"], net["budget_bytes"]) == (40 << 30, (40 << 30) - net["beside_bytes"])
    assert whole["budget_bytes"] == 40 << 30
    assert 0 < whole["tokens"] - net["tokens"] <= (net["beside_bytes"] // (94 * 512) + 16) * 2


def test_memory_takes_off_what_the_exchange_of_an_engine_keeps_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (
        "memory",
        "--model",
        "qwen3-235b-a22b",
        "--tp",
        "8",
        "--dcp",
        "1,2",
        "--max-batched-tokens",
        "8k",
        "--json",
    )
    assert run(*asked) == Exit.DONE
    alone, pair = json.loads(capsys.readouterr().out)
    assert alone["exchange_bytes"] == 0
    gathered = 8192 * 16 * 128 * 2  # bytes of a batch's gathered queries: held by rank, in order, and as results
    assert 4 * gathered < pair["exchange_bytes"] < 5 * gathered


def test_memory_says_what_to_set_and_what_that_gives_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("memory", "--model", "qwen3-235b-a22b", "--tp", "8", "--dcp", "2") == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r"^ +2 +16 +17436672 +q5s67334 +394\.0 MiB +266\.0 MiB +11,584$", out, re.MULTILINE)
    assert (
        "dcp 2: nothing fails at vLLM's default; VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE=17436672 gives 266.0 MiB back, "
        "since vLLM then allocates 128.0 MiB." in out
    )
    assert run("memory", "--model", "qwen3-235b-a22b", "--tp", "8", "--max-batched-tokens", "32k") == Exit.DONE
    assert "less gives nothing back: vLLM allocates 512.0 MiB whatever is set." in capsys.readouterr().out


def test_memory_names_the_batch_that_fails_at_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("memory", "--model", "q32,kv2,d256", "--tp", "1", "--max-batched-tokens", "2k", "--flashinfer", "0.6.14")
    assert run(*asked) == Exit.DONE
    out = capsys.readouterr().out
    setting = "set VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE=538441728."
    assert f"dcp 1: 512q1 in a graph fails at vLLM's default, 394.0 MiB here; {setting}" in out
    assert run(*asked, "--captured", "none", "--json") == Exit.DONE
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["fails_at_default"], row["wrapper_bytes"]) == (False, 3 * 8 << 20)
    assert run("memory", "--model", "q96,kv8,d128", "--tp", "1", "--max-batched-tokens", "512k") == Exit.DONE
    assert "of int workspace, and a wrapper has 8.0 MiB: such a batch fails." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gpu h201", "unknown GPU 'h201'; did you mean 'h20'?"),
        ("--flashinfer 9", "known for FlashInfer 0.2.9 to 0.7, not '9'"),
        ("--captured 0", "--captured takes whole numbers"),
        ("--captured 4096", "a captured batch has 1 to 1024 decodes"),
        ("--budget 1GiB --gpu-memory 1GiB", "give one of them"),
        ("--max-model-len 0", "is no number of tokens"),
        ("--exchange-buffers some", "is no size"),
    ],
)
def test_what_memory_cannot_be_asked_is_said_in_a_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("memory", "--model", "qwen3-235b-a22b", "--tp", "8", *words.split()) == Exit.USAGE
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_doctor_says_what_runs_and_why_the_rest_does_not(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor") == Exit.DONE
    out = capsys.readouterr().out
    for words in (
        "reference  yes",
        "fa2 needs a CUDA device",
        "needs two ranks",
        "needs fabric memory",
        "xqa",
        "returns no LSE",
        "Fit to measure? To try things out: there is no GPU",
    ):
        assert words in " ".join(out.split()) or words in out
    assert run("doctor", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["refused"]["xqa"]


def test_doctor_calls_a_machine_unfit_where_nothing_runs(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.kernels = {}
    assert run("doctor") == Exit.UNFIT
    assert "no worker comes up here" in capsys.readouterr().err
    scripted.kernels = {"reference": "", "fa2": "flashinfer is not installed"}
    card = bench.environment.Device("NVIDIA H200", "GPU-1", 141 << 30, 140 << 30)
    monkeypatch.setattr(bench.environment, "devices", lambda: (card,))
    assert run("doctor") == Exit.UNFIT
    out, err = capsys.readouterr()
    assert "none of FlashInfer's kernels can use it" in err
    assert "140.0 GiB" in out
    assert "Fit to measure? No: there is a GPU, and none of FlashInfer's kernels can use it.\n" in out


def test_doctor_says_what_spoils_a_measurement_and_what_to_do(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Finding("GPU 0: slowed by", "hardware thermal slowdown", "let it rest")
    busy = Finding("GPU 0: other work", "1 process", "end what runs there", is_unfit=True)
    monkeypatch.setattr(bench.fitness, "fitness", lambda _: [slow])
    assert run("doctor") == Exit.DONE
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "GPU 0: slowed by hardware thermal slowdown let it rest" in lines
    assert "timer's floor 4.8 µs –" in lines
    monkeypatch.setattr(bench.fitness, "fitness", lambda _: [slow, busy])
    assert run("doctor", "--json") == Exit.UNFIT
    out, err = capsys.readouterr()
    assert err == "dcpbench: unfit: GPU 0: other work: 1 process; end what runs there\n"
    told = [(one["about"], one["is_unfit"]) for one in json.loads(out)["fitness"]]
    assert told == [("GPU 0: slowed by", False), ("GPU 0: other work", True), ("timer's floor", False)]


@pytest.mark.parametrize("words", [("doctor",), ("verify",), ("sweep", *TYPED)])
def test_more_ranks_than_gpus_are_refused_before_anything_starts(
    words: tuple[str, ...],
    scripted: Scripted,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(results.parent)
    card = bench.environment.Device("NVIDIA H200", "GPU-1", 141 << 30, 140 << 30)
    monkeypatch.setattr(bench.environment, "devices", lambda: (card, card))
    assert run("--ranks", "4", *words) == Exit.USAGE
    assert "--ranks 4, but this machine shows 2 GPUs: " in capsys.readouterr().err
    assert scripted.ranks == []


@pytest.mark.parametrize(
    ("asked", "gpus", "ranks"), [(None, 0, 2), (None, 3, 3), (1, 2, 1), (2, 2, 2), (4, 0, 4), (None, 1, 1)]
)
def test_ranks_are_those_asked_for_or_one_per_gpu_or_two(asked: int | None, gpus: int, ranks: int) -> None:
    assert ranks_here(asked, gpus) == ranks


def test_verify_tells_right_from_wrong(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("verify", "--path", "fold", "--dcp", "2", "--exchange", "ag_rs")
    assert run(*words) == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(r"^fold +reference +ag_rs +\d+ +0 +0 +10% +50%$", out, re.MULTILINE)
    assert "0 wrong" in out
    scripted.verdict = lambda number: Verified(
        replace(RIGHT, out_error=0.5 if number == 1 else float("nan") if number == 2 else 0.0)
    )
    assert run(*words) == Exit.FAILED_CASES
    out, err = capsys.readouterr()
    assert out.count("FAILED") == 2
    assert "WRONG, out errs by 5.00e-01 (budget 1.00e-02)" in err
    assert run(*words, "--json") == Exit.FAILED_CASES
    assert [one["out_error"] for one in json.loads(capsys.readouterr().out)][:3] == [0.0, 0.5, None]
    scripted.verdict = lambda number: Skipped("no LSE")
    assert run(*words, "--json") == Exit.DONE
    assert {one["verdict"] for one in json.loads(capsys.readouterr().out)} == {"skipped, no LSE"}


# --- Small things -------------------------------------------------------------------------------------------------------


def test_commas_inside_a_value_are_its_own() -> None:
    assert values_of("dcp", ["1,2", "4"]) == ["1", "2", "4"]
    assert values_of("model", ["tiny,q64,kv4,d128,qwen3-32b,q8,kv2,d64,l3"]) == [
        "tiny",
        "q64,kv4,d128",
        "qwen3-32b",
        "q8,kv2,d64,l3",
    ]
    assert values_of("batch", ["8q1s32k,q2k", "mix=8192,32*1@8192"]) == ["8q1s32k", "q2k", "mix=8192,32*1@8192"]


def test_tab_completes_the_last_value_of_a_list() -> None:
    assert completion.models("qwen3-2") == completion.models("Qwen3-2") == ["qwen3-235b-a22b"]
    assert completion.models("./A.json,TI") == ["./A.json,tiny"]
    assert completion.paths("tp,f") == ["tp,fold"]
    assert completion.kernels("fa") == ["fa2", "fa3"]
    assert completion.exchanges("a") == ["alone", "ag_rs", "a2a"]
    assert "quick" in completion.sweeps("")
    assert completion.settings("page") == ["page_size="]
    assert completion.settings("mask_form=bool,") == [f"mask_form=bool,{one}" for one in ("bool", "packed", "computed")]
    assert completion.settings("overlap=t") == ["overlap=true"]
    assert completion.settings("page_size=") == completion.settings("nothing=") == []
    assert completion.searches("") == list(Search)
    assert completion.spaces("") == list(Space)
    assert completion.precisions("st") == ["standard", "strict"]
    assert completion.figures("k") == ["kv-memory"]


def test_help_joins_lines_and_keeps_examples() -> None:
    assert (
        paragraphs("One\n    line.\n\n    Examples:\n      a\n      b\n    ") == "One line.\n\n\b\nExamples:\n  a\n  b"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (42.4, "42 s"), (200, "3 min"), (7800, "2 h 10 min"), (364000, "4 days 5 h")]
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_cases_are_measured_in_an_order_that_a_seed_gives(
    scripted: Scripted, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", *TYPED, "--results", results, "--dry-run", "--json") == Exit.DONE
    listed = [case["key"] for case in json.loads(capsys.readouterr().out)["cases"]]
    for folder in ("one", "another"):
        before = len(scripted.measured)
        assert run("sweep", *TYPED, "--results", results / folder) == Exit.DONE
        assert [case.key for case in scripted.measured[before:]] == shuffled(listed, seed=0) != listed
    assert shuffled(listed, seed=1) != shuffled(listed, seed=0)


def test_plain_progress_has_no_colours_and_counts_down(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Headway(2, 20.0), sys.stderr)
    lines.advance("first\x1b[31m", 10.0)
    lines.advance("second", 10.0)
    assert capsys.readouterr().err == "[1/2, 10 s left] first\\x1b[31m\n[2/2] second\n"


def test_plain_progress_tells_how_far_a_case_came_and_no_more_than_its_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(Headway(1, 200.0, limit_s=40.0), sys.stderr)
    lines.spend("half", 100.0)
    lines.advance("whole", 100.0)
    assert capsys.readouterr().err == "[0/1, 40 s left] half\n[1/1] whole\n"


def test_plain_progress_says_when_a_kernel_is_compiled_and_how_long_that_took(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(Headway(3, 30.0), sys.stderr)
    lines.compiling(Compiling("batch_decode\x1b[31m", 1.0, ended=False))
    lines.compiling(Compiling("batch_decode\x1b[31m", 34.2, ended=True))
    assert capsys.readouterr().err == "compiling batch_decode\\x1b[31m …\ncompiled batch_decode\\x1b[31m in 34 s\n"


class Hand:
    """A clock whose hand is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """Return the clock that progress is told by."""
    hand = Hand()
    monkeypatch.setattr(bench.cli.screen, "time", hand)
    return hand


def test_what_is_left_follows_the_headway_of_the_cases_behind_the_first(hand: Hand) -> None:
    headway = Headway(4, 40.0)
    for seconds in (30, 20):
        hand.now += seconds
        headway.done += 1
        headway.spend(10.0)
    assert headway.left_s == 40.0
    hand.now += 5
    assert headway.left_s == 35.0
    assert headway.told == "2 of 4 done, 35 s left"
    hand.now += 100
    assert headway.told == "2 of 4 done, longer than expected"
    headway.done = 4
    assert headway.told == "4 of 4 done in 3 min"


def test_where_nothing_foretells_a_run_its_second_case_does(hand: Hand, capsys: pytest.CaptureFixture[str]) -> None:
    headway = Headway(4, 16.0, forecast=False)
    lines = Lines(headway, sys.stderr)
    assert headway.told == "0 of 4 done"
    for seconds, weight in ((30, 2.0), (6, 2.0), (12, 4.0)):
        hand.now += seconds
        lines.advance("", weight)
    assert capsys.readouterr().err.splitlines() == ["[1/4]", "[2/4, 36 s left]", "[3/4, 24 s left]"]
    assert headway.told == "3 of 4 done, 24 s left"


def test_compiling_a_kernel_changes_no_headway(hand: Hand) -> None:
    headway = Headway(3, 30.0)
    hand.now += 10
    headway.spend(10.0)
    headway.compiling(Compiling("decode", 1.0, ended=False))
    hand.now += 33
    assert headway.left_s == 21.0, "the second before it was told counts as compiling too"
    headway.compiling(Compiling("decode", 34.0, ended=True))
    hand.now += 11
    headway.spend(10.0)
    assert headway.left_s == 10.0


def test_a_kernel_whose_worker_is_lost_is_compiled_no_longer(hand: Hand) -> None:
    headway = Headway(3, 30.0)
    headway.compiling(Compiling("decode", 1.0, ended=False))
    hand.now += 300
    headway.spend(10.0)
    hand.now += 5
    assert headway.left_s == 15.0


def test_a_run_ends_with_its_time_budget(hand: Hand) -> None:
    headway = Headway(2, 100.0, limit_s=30.0)
    hand.now += 20
    assert headway.left_s == 10.0


def test_the_bar_reads_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(Headway(1, 1.0))
    bar.now("[bold]case[/bold]")
    bar.advance("[red]result[/red]", 1.0)
    bar.close()
    assert "[red]result[/red]" in capsys.readouterr().err


def bar_drawn(bar: Bar, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines of a bar on a terminal of some width."""
    monkeypatch.setenv("COLUMNS", str(width))
    return str(bar._drawn()).splitlines()


def test_the_bar_says_what_is_done_since_when_and_what_is_compiled(
    hand: Hand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar(Headway(2, 20.0))
    bar.now("a case " + "of a long name " * 10)
    hand.now += 12
    above, below = bar_drawn(bar, 80, monkeypatch)
    assert above == f"{'━' * 40} 0 of 2 done, 8 s left"
    assert below.startswith("a case of a long name")
    assert below.endswith("…, 12 s")
    bar.compiling(Compiling("batch_decode", 1.0, ended=False))
    hand.now += 33
    assert bar_drawn(bar, 80, monkeypatch)[1] == "compiling batch_decode, 34 s"
    bar.compiling(Compiling("batch_decode", 34.0, ended=True))
    assert bar_drawn(bar, 80, monkeypatch)[1].startswith("a case")
    bar.close()
    assert "compiled batch_decode in 34 s\n" in capsys.readouterr().err


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_bar_fits_its_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    bar = Bar(Headway(1000, 7200.0))
    bar.now("qwen3-235b-a22b tp 8 dcp 2 16q1s32k_q2ks32k split fa2+fa3 ag_rs page_size=64 overlap=True")
    bar.close()
    assert max(map(len, bar_drawn(bar, width, monkeypatch))) <= width
