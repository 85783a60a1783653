"""Which profile answers: of the files given, the results folder or what ships, one that holds on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.options import Results

if TYPE_CHECKING:
    from bench.profile.entry import Geometry
    from bench.profile.fitness import Fitness
    from bench.profile.profile import Profile
    from bench.record import Environment
    from dcp_core.layout import DcpLayout
    from dcp_core.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Placed:
    """What a profile is asked about: a model on a layout."""

    model: Annotated[str, typer.Option(help="Preset, config.json, or q64,kv4,d128.", autocompletion=completion.models)]
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel size.")]
    dcp: Annotated[int, typer.Option(min=1, help="Decode-context-parallel size.")] = 1
    interleave: Annotated[int, typer.Option(min=1, help="Tokens kept on a rank in a row.")] = 1

    def read(self) -> tuple[ModelShape, DcpLayout, Geometry]:
        """Return the model, the layout and the geometry that its ranks compute.

        Raises:
            ShapeError, IllegalLayout: for a model that is unknown, or a layout that no server starts with.
        """
        from bench.profile.entry import Geometry
        from dcp_core.layout import DcpLayout
        from dcp_core.shapes import ModelShape

        shape, layout = ModelShape.parse(self.model), DcpLayout(self.tp, self.dcp, self.interleave)
        layout.check(shape)
        heads = layout.heads(shape)
        return shape, layout, Geometry(heads.gathered, heads.kv, shape.head_dim, shape.dtype, shape.cache_dtype)

    @property
    def fix(self) -> str:
        """What makes a profile of it, the end of a sentence."""
        return f"; make one with 'dcpbench tune --model {self.model} --tp {self.tp} --dcp {self.dcp} --batch …'"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the profile comes from."""

    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="Profiles to ask; else the results folder's, then the shipped ones.",
            autocompletion=completion.profiles,
        ),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Ask what ships for this GPU, as h200, wherever this is.",
            metavar="NAME",
            autocompletion=completion.shipped_gpus,
        ),
    ] = None
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Take a profile of another GPU, FlashInfer or torch all the same.")
    ] = False
    results: Results = Path("results")


@dataclass(frozen=True, slots=True)
class Known:
    """The profile that answers, its file, and what to know about it: a sentence each."""

    path: Path
    profile: Profile
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Here:
    """The machine at hand, as profiles are compared with it."""

    environment: Environment
    has_gpu: bool


def this_machine() -> Here:
    """Look at the machine at hand."""
    from bench.environment import devices, fingerprint

    has_gpu = bool(devices())
    return Here(fingerprint(has_gpu), has_gpu)


def find(
    geometry: Geometry,
    sources: Sources,
    asked_by: str,
    *,
    fix: str = "",
    here: Callable[[], Here] = this_machine,
) -> Known:
    """Return the first profile of a geometry that holds here: of the files given, else the results folder's, then shipped.

    Args:
        asked_by: what computes the geometry, for messages.
        fix: what to do where there is none, for messages too.
        here: tells the machine at hand, if it is compared; who asks for several profiles keeps what that says.

    Raises:
        UsageError: if none is of this geometry, or all are other machines' and that was not allowed.
        FileError: for one that cannot be read.
    """
    from bench.errors import UsageError
    from bench.profile.profile import Profile
    from bench.shipped import shipped_profiles

    if sources.file:
        read = [(path, Profile.load(path)) for path in reversed(sources.file)]
    else:
        mine = [] if sources.gpu else sorted((sources.results / "profiles").glob("*.json"), reverse=True)
        paths = [*mine, *shipped_profiles(str(geometry), sources.gpu)]
        read = [(path, Profile.load(path)) for path in paths]
    found = [(path, profile) for path, profile in read if profile.geometry == geometry]
    if not found:
        raise UsageError(f"no profile here is for {geometry}, which {asked_by} computes{_others(read, sources)}{fix}")
    if sources.gpu:
        path, profile = found[0]
        return Known(path, profile, (f"Asked for {_device(profile)}, on which it was measured.",))
    machine = here()
    judged = [(path, profile, _fitness(profile, machine)) for path, profile in found]
    for path, profile, fit in judged:
        if sources.anyway or not fit.refusals:
            return Known(path, profile, _notes(profile, fit))
    path, _, fit = judged[0]
    raise UsageError(
        f"{path} was measured on another machine ({'; '.join(fit.refusals)}): run 'dcpbench tune' here, or take it all "
        f"the same with --anyway"
    )


def _fitness(profile: Profile, here: Here) -> Fitness:
    from bench.profile.fitness import fitness

    return fitness(profile.environment, here.environment, gpu_here=here.has_gpu)


def _notes(profile: Profile, fit: Fitness) -> tuple[str, ...]:
    if fit.elsewhere:
        return (f"Measured on {_device(profile)}; this machine has no GPU to compare it with.",)
    differing = (*fit.refusals, *fit.warnings)
    return (f"Measured elsewhere, so times may differ: {'; '.join(differing)}.",) if differing else ()


def _device(profile: Profile) -> str:
    return profile.environment.hard.get("device_name", "an unknown device")


def _others(read: Sequence[tuple[Path, Profile]], sources: Sources) -> str:
    """Say what there is instead."""
    from bench.shipped import shipped_geometries

    names: Iterable[str] = {str(profile.geometry) for _, profile in read}
    if not sources.file:
        names = {*names, *shipped_geometries(sources.gpu)}
    return f"; there are: {', '.join(sorted(names))}" if names else ""
