"""``dcpbench profile``: read a profile, and ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.exits import Exit
from bench.cli.options import Json, Results, add
from bench.cli.screen import draw, emit, say

if TYPE_CHECKING:
    from bench.profile import Profile

app = typer.Typer(name="profile", help="Read a profile, and ask it what to run.")
Files = Annotated[
    list[Path] | None, typer.Argument(metavar="[FILE]...", help="Profiles; all of the results folder if none.")
]


def show_profile(file: Files = None, results: Results = Path("results"), json: Json = False) -> int:
    """Print what profiles chose for each batch.

    Examples:
      dcpbench profile show
      dcpbench profile show results/profiles/*H200.json --json
    """
    from bench.report.choices import entries_grid, entries_json

    profiles = _profiles(file or [], results)
    if json:
        emit([{"file": str(path), "entries": entries_json(profile)} for path, profile in profiles])
        return Exit.DONE
    for path, profile in profiles:
        draw(entries_grid(profile))
        say(str(path))
        say()
    return Exit.DONE


def lookup(
    batch: Annotated[str, typer.Argument(help="The batch to run, as 8q1s32k.")],
    model: Annotated[str, typer.Option(help="Preset, config.json, or q64,kv4,d128.")],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel size.")],
    dcp: Annotated[int, typer.Option(min=1, help="Decode-context-parallel size.")] = 1,
    interleave: Annotated[int, typer.Option(min=1, help="Tokens kept on a rank in a row.")] = 1,
    file: Annotated[
        list[Path] | None, typer.Option(help="Profiles to ask; else the results folder's, then the shipped ones.")
    ] = None,
    results: Results = Path("results"),
    json: Json = False,
) -> int:
    """Ask which settings to run for a batch: those of the same batch, of the nearest measured one, or the default.

    Where the results folder has no profile for this model and layout, the reference profiles that ship with dcpbench
    answer; the answer says which file it is from.

    Examples:
      dcpbench profile lookup 8q1s32k --model qwen3-235b-a22b --tp 8 --dcp 2
      dcpbench profile lookup q4ks36k --model qwen3-30b-a3b --tp 8 --dcp 2 --json
    """
    from bench.entry import Geometry
    from bench.errors import UsageError
    from dcp_core.layout import DcpLayout
    from dcp_core.settings import Case, ExchangeName, PathName, Settings
    from dcp_core.shapes import ModelShape, Workload

    shape, layout, workload = ModelShape.parse(model), DcpLayout(tp, dcp, interleave), Workload.parse(batch)
    layout.check(shape)
    plain = Settings(path=PathName.SPLIT, exchange=ExchangeName.AG_RS if dcp > 1 else ExchangeName.ALONE)
    geometry = Geometry.of(Case(shape, layout, workload, plain))
    profiles = _profiles(file, results) if file else _known_profiles(results)
    found = [(path, profile) for path, profile in profiles if profile.geometry == geometry]
    if not found:
        known = ", ".join(sorted({str(profile.geometry) for _, profile in profiles}))
        raise UsageError(
            f"no profile here is for {geometry}, which {shape.name} with {layout} computes; there are: {known}"
        )
    source, profile = found[-1]
    choice = profile.lookup(workload, layout)
    regret = choice.expected_regret
    if json:
        finite = choice.distance if choice.distance != float("inf") else None
        answer = {"source": str(choice.source), "distance": finite, "expected_regret": regret, "file": str(source)}
        emit({"settings": choice.settings.to_json(), **answer})
        return Exit.DONE
    expected = "" if regret is None else f", expected {regret:.1%} over the best"
    say(f"{workload} with {layout} of {shape.name}: {choice.source}{expected}")
    for name, value in choice.settings.to_json().items():
        if value is not None:
            say(f"  {name:<20} {value}")
    say(f"From {source}")
    return Exit.DONE


def _known_profiles(results: Path) -> list[tuple[Path, Profile]]:
    """Load the profiles that ship with dcpbench and all of a results folder, which come last: the last one answers."""
    from bench.profile import Profile
    from bench.shipped import reference_folder

    paths = [*sorted(reference_folder().glob("*/profiles/*.json")), *sorted((results / "profiles").glob("*.json"))]
    return [(path, Profile.load(path)) for path in paths]


def _profiles(files: list[Path], results: Path) -> list[tuple[Path, Profile]]:
    """Load profiles by path, or all of a results folder.

    Raises:
        UsageError: if there is none.
        FileError: for one that cannot be read.
    """
    from bench.errors import UsageError
    from bench.profile import Profile

    paths = files or sorted((results / "profiles").glob("*.json"))
    if not paths:
        raise UsageError(
            f"{results / 'profiles'} holds no profile; make one, as with 'dcpbench tune quick', or give its file"
        )
    return [(path, Profile.load(path)) for path in paths]


add(app, show_profile, name="show")
add(app, lookup)
