"""Where the data that comes with dcpbench lies: declared sweeps and reference runs. Standard library only.

A checkout keeps them at its root, where people read and edit them; a wheel carries them inside the package, where they
travel (``force-include`` in pyproject.toml says what goes where).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def sweeps_folder() -> Path:
    """Return the folder of the sweeps that ship with dcpbench, one TOML file each.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    return _shipped("sweeps", "sweeps")


def reference_folder() -> Path:
    """Return the folder of the reference runs that ship with dcpbench, one folder per GPU.

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    return _shipped("reference", "results/reference")


def _shipped(in_wheel: str, in_checkout: str) -> Path:
    candidates = (_PACKAGE / "_data" / in_wheel, _PACKAGE.parent / in_checkout)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the {in_wheel} that ship with dcpbench are neither in {candidates[0]} nor in {candidates[1]}: install it again"
    )
