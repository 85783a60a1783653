from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bench.shipped
from bench.cli import main
from bench.cli.exits import Exit
from bench.errors import UsageError

CHECKOUT = Path(bench.shipped.__file__).parent.parent


LARGEST_WHEEL = 2_500_000
"""Bytes: samples stay in the repository, but for those of the exchanges that ``recommend`` reads."""
MODELLED = "--model qwen3-235b-a22b --tp 16 --gpu h200 --context 32k --concurrency 64 --json"
"""A question whose answer rests on exchanges that were measured beside the profiles, not in them."""


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def ships(name: str) -> bool:
    """Tell whether a wheel carries a file of the reference."""
    match Path(name).parts:
        case (*_, "README.md") | (_, "maps.md") | (_, "profiles" | "exchanges", _):
            return True
    return False


def test_a_checkout_serves_its_own_sweeps_and_reference() -> None:
    assert bench.shipped.sweeps_folder() == CHECKOUT / "sweeps"
    assert bench.shipped.reference_folder() == CHECKOUT / "results" / "reference"


def test_a_shipped_profile_is_found_by_geometry_and_gpu() -> None:
    for gpu in (None, "h200", "H200", "NVIDIA H200"):
        (path,) = bench.shipped.shipped_profiles("q16,kv1,d128,dtype=bfloat16", gpu)
        assert path.name == "q16,kv1,d128,dtype=bfloat16,device_name=NVIDIA_H200.json"
        assert path.parent.parent.name == "h200"
    assert bench.shipped.shipped_profiles("q1,kv1,d128,dtype=bfloat16") == []
    assert "q8,kv1,d128,dtype=bfloat16" in bench.shipped.shipped_geometries("h200")
    with pytest.raises(UsageError, match=r"no reference ships for GPU 'h20'; did you mean 'h200'\?; known: h200"):
        bench.shipped.shipped_profiles("q16,kv1,d128,dtype=bfloat16", "h20")


def test_an_incomplete_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.shipped, "_PACKAGE", tmp_path / "bench")
    with pytest.raises(FileNotFoundError, match="install it again"):
        bench.shipped.sweeps_folder()


def test_a_wheel_carries_both_packages_the_sweeps_and_what_ships_of_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("dcpbench-*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    def by_itself(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    ask = "import bench.shipped as s; print(s.sweeps_folder()); print(s.reference_folder())"
    sweeps, reference = (Path(line) for line in by_itself("-c", ask).splitlines())
    assert sweeps.is_relative_to(installed)
    assert files_below(sweeps) == files_below(CHECKOUT / "sweeps")
    everything = files_below(CHECKOUT / "results" / "reference")
    assert files_below(reference) == {name for name in everything if ships(name)}
    for package in ("dcp_core", "bench"):
        assert (installed / package / "py.typed").is_file()
        sources = {name for name in files_below(CHECKOUT / package) if name.endswith(".py")}
        assert sources <= files_below(installed / package)
    assert wheel.stat().st_size < LARGEST_WHEEL

    assert main(["recommend", *MODELLED.split()]) == Exit.DONE
    here, there = (
        json.loads(capsys.readouterr().out),
        json.loads(by_itself("-m", "bench", "recommend", *MODELLED.split())),
    )
    assert all(Path(file).is_relative_to(reference) for file in there.pop("profiles").values())
    del here["profiles"]
    assert here == there
    assert "modelled" in str(here)
