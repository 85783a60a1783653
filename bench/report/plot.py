"""Pictures of a store: pure functions from trials to figures, and the files they are saved to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import storage_error
from bench.record import Trial
from bench.report import breakdown, exchange_cost, kv_memory, latency, mask_cost, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Mapping[str, Callable[[Sequence[Trial]], Figure | str]] = {
    "latency": latency.draw,
    "mask-cost": mask_cost.draw,
    "breakdown": breakdown.draw,
    "exchange-cost": exchange_cost.draw,
    "kv-memory": kv_memory.draw,
}
"""Every picture by the name of its files."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A picture on disk: PNG and SVG."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """A picture that the trials do not allow, and why."""

    name: str
    reason: str


def save_all(
    trials: Sequence[Trial], folder: Path, *, command: str, names: Sequence[str] = ()
) -> Iterator[Saved | NotDrawn]:
    """Draw pictures and save them, each as it is done. The last trial of a case counts.

    Args:
        command: what makes them again, for the caption.
        names: of ``FIGURES``; all of them if empty.

    Raises:
        StorageError: if the folder does not take them.
    """
    latest = list({trial.key: trial for trial in trials}.values())
    for name in names or FIGURES:
        figure = FIGURES[name](latest)
        yield NotDrawn(name, figure) if isinstance(figure, str) else Saved(name, save(figure, folder, name, command))


def save(figure: Figure, folder: Path, name: str, command: str) -> tuple[Path, ...]:
    """Write a figure as PNG and SVG, the same bytes for the same trials.

    Raises:
        StorageError: if the folder does not take them.
    """
    files = (folder / f"{name}.png", folder / f"{name}.svg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style.styled():
            style.sign(figure, command)
            for file, metadata in zip(files, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
                figure.savefig(file, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    except OSError as error:
        raise storage_error("write pictures to", folder, error) from None
    return files
