"""Where the data that comes with dcpbench lies: declared sweeps and the reference. Standard library only.

A checkout keeps them at its root, where people read and edit them; a wheel carries them inside the package, where they
travel (pyproject.toml says what goes where).
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.errors import UsageError
from dcp_core.spelling import nearest

EXCHANGES = "exchanges"
"""Beside the profiles of a GPU that ship: what ships of their runs, see ``bench.recommend.exchanges``."""

_PACKAGE = Path(__file__).resolve().parent


def sweeps_folder() -> Path:
    """Return the folder of the sweeps that ship with dcpbench, one TOML file each.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    return _shipped("sweeps", "sweeps")


def reference_folder() -> Path:
    """Return the folder of the reference, one folder per GPU: its profiles and what ships of their runs, in a checkout all runs.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    return _shipped("reference", "results/reference")


def shipped_gpus() -> list[str]:
    """Return the GPUs that profiles ship for, as ``h200``.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    return sorted(path.name for path in reference_folder().iterdir() if (path / "profiles").is_dir())


def shipped_profiles(geometry: str, gpu: str | None = None) -> list[Path]:
    """Return the files of the profiles that ship for a geometry, as ``q16,kv1,d128,dtype=bfloat16``.

    Args:
        gpu: of this one only: its folder, or the name that its driver gives it (``h200``, ``NVIDIA H200``).

    Raises:
        UsageError: for a GPU that nothing ships for.
        FileNotFoundError: if the installation is incomplete.
    """
    return [path for path in _profiles(gpu) if _geometry(path) == geometry]


def shipped_geometries(gpu: str | None = None) -> list[str]:
    """Return the geometries that profiles ship for; see ``shipped_profiles``."""
    return sorted({_geometry(path) for path in _profiles(gpu)})


def runs_beside(profile: Path) -> Path:
    """Return the folder of the runs that tell of exchanges beside a profile in ``profiles/``: the results folder that holds both.

    For a profile that ships it is what ships of its runs, in a checkout as in a wheel, which has no others.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    folder = profile.parent.parent
    return folder / EXCHANGES if folder.resolve().parent == reference_folder().resolve() else folder


def _profiles(gpu: str | None) -> list[Path]:
    gpus = shipped_gpus()
    if gpu is not None:
        folder = re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")
        if folder not in gpus:
            raise UsageError(
                f"no reference ships for GPU {gpu[:40]!r}{nearest(folder, gpus)}; known: {', '.join(gpus)}"
            )
        gpus = [folder]
    return sorted(path for name in gpus for path in (reference_folder() / name / "profiles").glob("*.json"))


def _geometry(profile: Path) -> str:
    return profile.name.partition(",device_name=")[0]


def _shipped(in_wheel: str, in_checkout: str) -> Path:
    candidates = (_PACKAGE / "_data" / in_wheel, _PACKAGE.parent / in_checkout)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the {in_wheel} that ship with dcpbench are neither in {candidates[0]} nor in {candidates[1]}: install it again"
    )
