"""The Tab key, through the machinery of each shell: models, sweeps, runs and profiles are offered wherever they are taken."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.cli import completion, main
from bench.shipped import shipped_gpus
from bench.store import Store
from bench.sweep import shipped_sweeps
from bench.tune.pick import pick
from dcp_core.shapes import PRESETS
from tests.bench.made_up import trials
from tests.bench.test_examples import COMMANDS

SHELLS = ("bash", "zsh", "fish")


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str = "bash") -> str:
    """Return what a shell is told at the end of a line; the word that is being typed begins behind its last space."""
    monkeypatch.setenv("_DCPBENCH_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(shlex.split(line)) - (not line.endswith(" "))))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a results folder of one run and its profiles, and another of one run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("results", "elsewhere"):
        with Store.open(folder) as store:
            for one in trials("8q1s32k", exchanges=("ag_rs",), kernels=("fa2",)):
                store.append(one)
    for profile in pick(Store.read("results")[0]):
        profile.save(Path("results/profiles"))
    return tmp_path


def run_name(folder: str) -> str:
    (path,) = Path(folder).glob("*.jsonl")
    return path.stem


@pytest.mark.parametrize("shell", SHELLS)
def test_models_and_sweeps_are_offered_in_every_shell(
    shell: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "mine.toml").touch()
    told = offered("dcpbench tune ", monkeypatch, capsys, shell)
    assert all(name in told for name in [*shipped_sweeps(), "mine.toml"])
    for command in ("tune", "sweep quick", "audit", "memory", "recommend", "profile lookup 8q1s32k", "profile export"):
        told = offered(f"dcpbench {command} --model qwen3-2", monkeypatch, capsys, shell)
        assert "qwen3-235b-a22b" in told
        assert "tiny" not in told


@pytest.mark.parametrize("shell", SHELLS)
def test_runs_are_offered_from_the_results_folder_that_is_meant(
    shell: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("show", "plot", "report", "compare", f"compare {run_name('results')}"):
        told = offered(f"dcpbench {command} ", monkeypatch, capsys, shell)
        assert "last" in told
        assert run_name("results") in told
        assert run_name("elsewhere") not in told
        assert run_name("elsewhere") in offered(
            f"dcpbench {command.split()[0]} --results elsewhere ", monkeypatch, capsys, shell
        )
    assert workplace == Path.cwd()


@pytest.mark.parametrize("shell", SHELLS)
def test_profiles_are_offered_wherever_one_is_taken(
    shell: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path.relative_to(workplace)) for path in (workplace / "results/profiles").iterdir()]
    assert files
    for command in (
        "profile show",
        "profile diff",
        f"profile diff {files[0]}",
        "profile merge",
        "profile validate",
        "profile lookup 8q1s32k --file",
        "profile export --file",
        "recommend --profile",
    ):
        told = offered(f"dcpbench {command} results/", monkeypatch, capsys, shell)
        assert all(file in told for file in files), command


def offered_by_bash(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what bash is told of the last of its words: it takes a line apart at each ``=`` too."""
    monkeypatch.setenv("_DCPBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    return capsys.readouterr().out.split()


def test_a_setting_and_a_profile_are_offered_behind_their_equals_signs_in_bash(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = ["dcpbench", "sweep", "--set", "kv_layout", "="]
    assert offered_by_bash(setting, monkeypatch, capsys) == ["NHD", "HND"]
    assert offered_by_bash([*setting, "N"], monkeypatch, capsys) == ["NHD"]
    file = min(str(path.relative_to(workplace)) for path in (workplace / "results/profiles").iterdir())
    before, dtype, device = file.split("=")
    taken_apart = [before, "=", dtype, "=", device]
    show = ["dcpbench", "profile", "show", *taken_apart[:-1], device[:3]]
    assert offered_by_bash(show, monkeypatch, capsys) == [device]
    diff = ["dcpbench", "profile", "diff", *taken_apart, before]
    assert file in offered_by_bash(diff, monkeypatch, capsys)


def test_gpus_are_offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("memory", "recommend"):
        assert offered(f"dcpbench {command} --gpu h2", monkeypatch, capsys).split() == ["h20", "h200"]
    assert offered("dcpbench profile lookup q1s9 --gpu ", monkeypatch, capsys).split() == shipped_gpus()


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_names_a_model_a_run_or_a_profile_is_left_to_memory(name: str) -> None:
    wanted = {"model", "sweep", "run", "before", "after", "file", "a", "b", "profile"}
    if name == "recommend":
        wanted -= {"sweep"}  # a file to write
    parameters: list[Any] = [one for one in COMMANDS[name].params if one.name in wanted]
    assert [one.name for one in parameters if one._custom_shell_complete is None] == []


def test_where_nothing_is_known_shells_offer_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("show", "profile show"):
        assert offered(f"dcpbench {command} ", monkeypatch, capsys).strip() == ""
    (tmp_path / "results").touch()
    assert offered("dcpbench show ", monkeypatch, capsys).strip() == ""


def test_no_name_of_a_file_reaches_the_terminal_as_it_is(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "results/a\x1b[31m.jsonl").touch()
    (workplace / "results/profiles/a\n.json").touch()
    for command in ("show", "profile show"):
        assert offered(f"dcpbench {command} ", monkeypatch, capsys).replace("\n", "").isprintable()


def test_tab_keeps_the_commas_of_a_model_or_a_list() -> None:
    assert completion.models("q64,kv4") == []
    assert completion.models(f"tiny,{next(iter(PRESETS))[:-1]}")
