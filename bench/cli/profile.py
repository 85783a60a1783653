"""``dcpbench profile``: read profiles, ask them, compare them, and turn them into a server's flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.known import Placed, Sources, find
from bench.cli.options import Json, Results, add, paragraphs
from bench.cli.screen import draw, emit, put, put_shell, say, warn
from bench.report.table import counted

if TYPE_CHECKING:
    from bench.profile.profile import Profile

ABOUT = """Read profiles, and ask them what to run.

Examples:
  dcpbench profile show
  dcpbench profile lookup 8q1s32k --model qwen3-235b-a22b --tp 8 --dcp 2"""
app = typer.Typer(name="profile", help=paragraphs(ABOUT), short_help="Read profiles, and ask them what to run.")
Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...",
        help="Profiles; all of the results folder if none.",
        autocompletion=completion.profiles,
    ),
]


def show_profile(file: Files = None, results: Results = Path("results"), json: Json = False) -> int:
    """Print what profiles chose for each batch, how they answer for others, and what that gains over the engine's default.

    Examples:
      dcpbench profile show
      dcpbench profile show results/profiles/*H200.json --json
    """
    from bench.profile.text import regions_json
    from bench.report.choices import entries_grid, entries_json, regions_grid
    from bench.report.gains import gains_grid

    profiles = _profiles(file or [], results)
    if json:
        emit(
            [
                {"file": str(path), "entries": entries_json(profile), "regions": regions_json(profile.regions)}
                for path, profile in profiles
            ]
        )
        return Exit.DONE
    for path, profile in profiles:
        draw(entries_grid(profile))
        say()
        draw(regions_grid(profile))
        say()
        draw(gains_grid(profile))
        put(str(path))
        say()
    return Exit.DONE


def lookup(
    batch: Annotated[str, typer.Argument(help="The batch to run, as 8q1s32k.")],
    placed: Placed,
    sources: Sources,
    json: Json = False,
) -> int:
    """Ask which settings to run for a batch: those measured with it, or what measured ones nearby tell, or the default.

    Where the results folder has no profile for this model and layout, the reference profiles that ship with dcpbench
    answer; the answer says which file it is from. A profile of another GPU, FlashInfer or torch is refused unless
    [bold]--anyway[/bold] is given; without a GPU here, any will do.

    Examples:
      dcpbench profile lookup 8q1s32k --model qwen3-235b-a22b --tp 8 --dcp 2
      dcpbench profile lookup q4ks36k --model qwen3-30b-a3b --tp 8 --dcp 2 --json
    """
    from bench.report.answer import answer_json, evidence_lines, source_line
    from dcp_core.shapes import Workload

    shape, layout, geometry = placed.read()
    workload = Workload.parse(batch)
    known = find(geometry, sources, f"{shape.name} with {layout}", fix=placed.fix)
    choice = known.profile.lookup(workload, layout)
    if json:
        emit({**answer_json(choice), "file": str(known.path), "notes": list(known.notes)})
        return Exit.DONE
    for note in known.notes:
        warn(note)
    say(f"{workload} with {layout} of {shape.name}: {source_line(choice)}")
    for name, value in choice.settings.to_json().items():
        if value is not None:
            put(f"  {name:<20} {value}")
    for line in evidence_lines(choice):
        say(line)
    put(f"From {known.path}")
    return Exit.DONE


def export(
    placed: Placed,
    sources: Sources,
    batch: Annotated[
        list[str] | None,
        typer.Option(help="A batch that matters, as 8q1s32k; repeatable. All of the profile if none.", metavar="BATCH"),
    ] = None,
    workspace_bytes: Annotated[
        int | None, typer.Option(min=1, help="FlashInfer's buffer to ask vLLM for; left to vLLM if not given.")
    ] = None,
    json: Json = False,
) -> int:
    r"""Write the flags and environment of the vLLM server that comes nearest to what a profile tells.

    vLLM's FlashInfer backend chooses path and kernels by itself; flags decide the exchange and the page size. The comments
    above the command say how far that is from what was measured to be best.

    Examples:
      dcpbench profile export --model qwen3-235b-a22b --tp 8 --dcp 2
      dcpbench profile export --model qwen3-235b-a22b --tp 8 --dcp 2 \
          --batch 64q1s32k --batch q2ks34k
    """
    from bench.report.vllm import serving
    from dcp_core.shapes import Workload

    shape, layout, geometry = placed.read()
    workloads = [Workload.parse(text) for text in batch or []]
    known = find(geometry, sources, f"{shape.name} with {layout}", fix=placed.fix)
    choices = [known.profile.lookup(workload, layout) for workload in workloads]
    found_near = (choice.entry for choice in choices if choice.entry and choice.entry.layout.dcp == layout.dcp)
    entries = list(found_near) if batch else known.profile.answering(layout)
    environment = known.profile.environment
    found = serving(entries, environment, layout, workspace_bytes=workspace_bytes)
    if json:
        emit(
            {"flags": dict(found.flags), "environment": dict(found.environment), "notes": [*found.notes, *known.notes]}
        )
        return Exit.DONE
    for note in known.notes:
        warn(note)
    say(f"# {shape.name} with {layout}, from {known.path}")
    put_shell(found.to_text())
    return Exit.DONE


First = Annotated[Path, typer.Argument(metavar="A", help="A profile.", autocompletion=completion.profiles)]
Second = Annotated[
    Path, typer.Argument(metavar="B", help="Another one of the same geometry.", autocompletion=completion.profiles)
]


def diff(a: First, b: Second, json: Json = False) -> int:
    """Compare two profiles: where they choose differently, and by how much a step is longer with the other's settings.

    Ends with 0 if both choose alike for the same batches, with 1 if not. Times may differ all the same: they are summed up.

    Examples:
      dcpbench profile diff before.json after.json
      dcpbench profile diff before.json after.json --json
    """
    from bench.errors import UsageError
    from bench.profile.profile import Profile
    from bench.report.apart import apart_grid, compare, summary

    first, second = Profile.load(a), Profile.load(b)
    if first.geometry != second.geometry:
        raise UsageError(
            f"{a} is for {first.geometry}, {b} for {second.geometry}: only like can be compared, so give two of one geometry"
        )
    found = compare(first, second)
    machines = first.differences(second)
    if json:
        emit({"same": found.same, "machines": machines, "summary": list(summary(found))})
    else:
        if machines:
            warn(f"Two machines, A here and B there: {'; '.join(machines)}.")
        if found.differing:
            draw(apart_grid(found))
        else:
            for line in summary(found):
                say(line)
    return Exit.DONE if found.same else Exit.DIFFERENT


def merge(
    a: First,
    b: Second,
    to: Annotated[Path, typer.Option("--to", "-o", help="File to write; none may be there yet.", dir_okay=False)],
) -> int:
    """Join two profiles of one geometry and machine: of a batch that both have, what was measured last counts.

    Examples:
      dcpbench profile merge decode.json prefill.json -o both.json
      dcpbench profile merge monday.json tuesday.json --to week.json
    """
    from bench.errors import UsageError
    from bench.profile.profile import Profile, merged

    if to.exists():
        raise UsageError(f"{to} is there already, and is not replaced: name a new file, or remove it first")
    joined = merged(Profile.load(a), Profile.load(b))
    joined.write(to)
    say(f"{counted(len(joined.entries), 'entry', 'entries')} of {joined.geometry} in {to}")
    return Exit.DONE


def validate(file: Annotated[Path, typer.Argument(help="A profile.", autocompletion=completion.profiles)]) -> int:
    """Check a profile to the last number: its form, the legality of its settings, and whether what it says agrees.

    Examples:
      dcpbench profile validate mine.json
      dcpbench profile validate other.json && cp other.json results/profiles/
    """
    from bench.files import read_capped
    from bench.profile.file import check_derived
    from bench.profile.profile import MAX_PROFILE_BYTES, Profile

    text = read_capped(file, MAX_PROFILE_BYTES, "a profile")
    profile = Profile.parse(text, str(file))
    check_derived(text, str(file), profile.entries, profile.regions)
    say(f"{file}: a profile of {profile.geometry}, {counted(len(profile.entries), 'entry', 'entries')}, all in order")
    return Exit.DONE


def _profiles(files: list[Path], results: Path) -> list[tuple[Path, Profile]]:
    """Load profiles by path, or all of a results folder.

    Raises:
        UsageError: if there is none.
        FileError: for one that cannot be read.
    """
    from bench.errors import UsageError
    from bench.profile.profile import Profile

    paths = files or sorted((results / "profiles").glob("*.json"))
    if not paths:
        raise UsageError(
            f"{results / 'profiles'} holds no profile; make one, as with 'dcpbench tune quick', or give its file"
        )
    return [(path, Profile.load(path)) for path in paths]


add(app, show_profile, name="show")
for _command in (lookup, export, diff, merge, validate):
    add(app, _command)
