"""The house's floors: a module imports from its own floor and below, and low floors start without torch.

A new module is placed by adding its name to ``FLOORS``. A package inside a package is placed as a whole.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dcp_core

ROOT = Path(__file__).parent.parent

FLOORS = {
    "dcp_core": (
        ("grammar", "spelling", "refused", "hf_config", "shapes", "layout", "check", "launcher"),
        ("settings", "memory", "workspace", "serving", "worst_case", "cost", "exchange_bytes"),
        ("lse", "shard", "mask", "fold", "cache", "oracle", "mesh"),
        ("triton_ops", "arithmetic", "kernels"),
        ("exchange",),
        ("paths",),
        ("build",),
    ),
    "bench": (
        (
            "shipped",
            "errors",
            "policy",
            "times",
            "record",
            "stats",
            "verdict",
            "noise",
            "files",
            "orders",
            "nvml",
            "grid",
        ),
        (
            "axes",
            "sweep",
            "line",
            "shard",
            "store",
            "profile",
            "environment",
            "fitness",
            "audit",
            "machine",
            "need",
            "estimate",
            "collective",
            "lone",
            "compare",
            "predict",
            "sentinel",
            "verify",
            "recommend",
        ),
        ("clock", "samples", "stand", "measure", "race", "referee", "timeline", "compiling", "worker"),
        ("group", "launched", "supervisor", "cluster"),
        ("tune", "report"),
        ("cli", "__main__"),
    ),
}
TORCH_FREE_FLOORS = (0, 1)
HEAVY = ("torch", "triton", "flashinfer", "matplotlib")
SLOW_TO_START = (*HEAVY, "scipy", "pydantic", "transformers")

# What a floor of dcp_core may import from outside, besides the standard library and what lower floors may.
OUTSIDE = {2: {"torch", "numpy"}, 3: {"triton", "flashinfer"}}


def modules_on_disk() -> dict[str, Path]:
    found = {}
    for package in FLOORS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules_on_disk()
PLACED = {
    f"{package}.{name}": number
    for package, floors in FLOORS.items()
    for number, names in enumerate(floors)
    for name in names
}


def floor_of(module: str) -> int:
    """Return the floor of a module: its own, or that of the inner package that holds it."""
    room = ".".join(module.split(".")[:2])
    assert room in PLACED, f"{room} has no floor yet: place it in FLOORS of tests/test_floors.py"
    return PLACED[room]


def imports_of(module: str) -> set[str]:
    """Return every module that a file imports anywhere, in functions and for type checking too; relative ones as '.'."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                imported |= {alias.name for alias in names}
            case ast.ImportFrom(module=None) | ast.ImportFrom(level=1 | 2 | 3):
                imported.add(".")
            case ast.ImportFrom(module=str(origin), names=names):
                inner = {f"{origin}.{alias.name}" for alias in names} & MODULES.keys()
                imported |= inner or {origin}
    return imported


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".", 1)[0] in FLOORS}


INHABITANTS = sorted(MODULES.keys() - FLOORS.keys())


@pytest.mark.parametrize("module", INHABITANTS)
def test_a_module_is_placed_on_a_floor(module: str) -> None:
    assert floor_of(module) in range(len(FLOORS[module.split(".", 1)[0]]))


@pytest.mark.parametrize("module", INHABITANTS)
def test_a_module_imports_from_its_own_floor_and_below(module: str) -> None:
    floor = floor_of(module)
    upwards = []
    for imported in ours(imports_of(module)) - {"dcp_core", "bench"}:
        from_core = module.startswith("bench.") and imported.startswith("dcp_core.")
        if not from_core and floor_of(imported) > floor:
            upwards.append(imported)
    assert not upwards, f"{module} on floor {floor} imports from above: {', '.join(sorted(upwards))}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: ours(imports_of(module)) for module in INHABITANTS}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}", pytrace=False)


@pytest.mark.parametrize("module", [name for name in INHABITANTS if name.startswith("dcp_core.")])
def test_dcp_core_knows_only_itself_and_what_its_floor_allows(module: str) -> None:
    floor = floor_of(module)
    allowed = sys.stdlib_module_names | {"dcp_core"}
    for number, libraries in OUTSIDE.items():
        if number <= floor:
            allowed = allowed | libraries
    imported = imports_of(module)
    assert {name.split(".", 1)[0] for name in imported} <= allowed
    assert "dcp_core" not in imported, "inside the package a name is imported from its home, not from the package"


def test_imports_are_absolute() -> None:
    assert [module for module in MODULES if "." in imports_of(module)] == []


def loaded_by(statement: str, watched: tuple[str, ...]) -> list[str]:
    """Return which of the watched libraries a fresh interpreter has loaded after the statement."""
    program = f"import sys\n{statement}\nprint(*(name for name in {watched!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{statement} fails:\n{done.stderr}"
    return done.stdout.split()


LOW = [name for name in INHABITANTS if PLACED.get(".".join(name.split(".")[:2])) in TORCH_FREE_FLOORS]


@pytest.mark.parametrize("module", ["dcp_core", *LOW, "bench.supervisor"])
def test_a_low_floor_starts_without_torch(module: str) -> None:
    assert loaded_by(f"import {module}", HEAVY) == []


def test_the_command_line_starts_without_anything_slow() -> None:
    assert loaded_by("from bench.cli import main", SLOW_TO_START) == []


def test_the_library_loads_torch_when_a_name_needs_it_and_not_before() -> None:
    assert loaded_by("from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload", HEAVY) == []
    assert "torch" in loaded_by("from dcp_core import Partial", HEAVY)


def test_every_name_that_dcp_core_promises_resolves() -> None:
    assert sorted(dcp_core.__all__) == list(dcp_core.__all__)
    for name in dcp_core.__all__:
        assert getattr(dcp_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = dcp_core.Nothing
