"""How a vLLM server runs what a profile tells: its flags and environment, as of vLLM 0.33, and what it cannot run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean, mean

from bench.errors import UsageError
from bench.profile.entry import Candidate, Entry, engine_defaults
from bench.record import Environment, Label
from bench.report.table import counted
from dcp_core.layout import DcpLayout
from dcp_core.settings import ExchangeName, Settings

VERSION = "0.33"
BACKEND = "FLASHINFER"
BLOCK_SIZES = (16, 32, 64)
"""Pages that its FlashInfer backend takes."""
WORKSPACE = "VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE"


@dataclass(frozen=True, slots=True)
class Serving:
    """What to give ``vllm serve``: flags and environment variables, by name, and what a reader should know, a line each."""

    flags: Mapping[str, str]
    environment: Mapping[str, str]
    notes: tuple[str, ...]

    def to_text(self) -> str:
        """Return the command as a shell reads it, what should be known as comments above it."""
        notes = [f"# {note}" for note in self.notes]
        variables = [f"{name}={value} \\" for name, value in self.environment.items()]
        flags = [f"{name} {value}" for name, value in self.flags.items()]
        return "\n".join([*notes, *variables, " \\\n  ".join(["vllm serve MODEL", *flags])])


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a server chooses once, for all its batches."""

    exchange: ExchangeName
    page_size: int


def serving(
    entries: Sequence[Entry],
    environment: Environment,
    layout: DcpLayout,
    *,
    workspace_bytes: int | None = None,
    exchange: ExchangeName | None = None,
) -> Serving:
    """Return the flags of the server that runs these batches best, of those that vLLM can be.

    Its FlashInfer backend chooses path and kernels by itself; flags decide the exchange and the page size, once for all
    batches. Those are taken that are fastest beside the default ones, in the mean over the entries, these among equals.

    Args:
        entries: of the layout's dcp and interleave; the batches that matter, all as much as each other.
        environment: where they were measured.
        workspace_bytes: of FlashInfer's buffer; left to vLLM if None.
        exchange: the one whose time somebody promises; if None, the fastest is taken.

    Raises:
        UsageError: for an interleave that no page of vLLM's takes.
    """
    able = [_able(entry, environment, exchange) for entry in entries]
    timed = [place for place, entry in enumerate(entries) if entry.label is Label.MEASURED] or range(len(entries))
    choice, measured = _best([able[place] for place in timed], layout, exchange)
    flags = {"--tensor-parallel-size": str(layout.tp)}
    if layout.dcp > 1:
        flags |= {
            "--decode-context-parallel-size": str(layout.dcp),
            "--dcp-comm-backend": str(choice.exchange),
            "--cp-kv-cache-interleave-size": str(layout.interleave),
        }
    flags |= {"--block-size": str(choice.page_size), "--attention-backend": BACKEND}
    variables = {} if workspace_bytes is None else {WORKSPACE: str(workspace_bytes)}
    notes = [
        f"Flags of vLLM {VERSION}. Measured was its FlashInfer backend; FLASH_ATTN, its default on Hopper, was not.",
        *_layout_notes(entries, layout, choice, exchange),
        _lost(entries, [found.get(choice) for found in able]) if measured else _unknown(len(entries)),
    ]
    return Serving(flags, variables, tuple(notes))


def _able(entry: Entry, environment: Environment, exchange: ExchangeName | None) -> dict[_Choice, Candidate]:
    """Return the candidates that vLLM runs: its own path and kernels, over any of its exchanges and page sizes.

    A simulated one has none in its time, so that it stands for ``exchange``.
    """
    plain = [_unflagged(one) for one in engine_defaults(entry.layout, entry.workload, environment)]
    exchanges = (ExchangeName.ALONE, ExchangeName.AG_RS, ExchangeName.A2A)
    told = exchange if entry.label is Label.SIMULATED else None
    return {
        _Choice(told or candidate.settings.exchange, candidate.settings.page_size): candidate
        for candidate in reversed(entry.candidates)
        if _unflagged(candidate.settings) in plain
        and candidate.settings.exchange in exchanges
        and candidate.settings.page_size in BLOCK_SIZES
    }


def _unflagged(settings: Settings) -> Settings:
    """Return settings without what flags decide."""
    exchange = settings.exchange if settings.exchange is ExchangeName.ALONE else ExchangeName.AG_RS
    return replace(settings, exchange=exchange, page_size=Settings().page_size)


def _best(
    able: Sequence[Mapping[_Choice, Candidate]], layout: DcpLayout, exchange: ExchangeName | None
) -> tuple[_Choice, bool]:
    """Return the choice that is fastest beside the default one, that itself among equals, and whether any was measured.

    Only those of ``exchange``, if that is given.
    """
    default = exchange or (ExchangeName.AG_RS if layout.dcp > 1 else ExchangeName.ALONE)
    interleave = layout.canonical.interleave
    least = next((size for size in BLOCK_SIZES if size % interleave == 0), None)
    if least is None:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(
            f"vLLM's FlashInfer backend has pages of {sizes} tokens, none of which interleave {interleave} divides; "
            f"choose one that does, as 1 or {BLOCK_SIZES[0]}"
        )
    usual = _Choice(default, least)
    measured = [found for found in able if found]
    beside = [found.get(usual) or max(found.values(), key=lambda one: one.median_us) for found in measured]
    choices = {choice for found in measured for choice in found if exchange in (None, choice.exchange)}

    def times_as_long(choice: _Choice) -> float:
        """In the mean over all batches; one that was not measured with it says nothing for it, and nothing against it."""
        pairs = zip(measured, beside, strict=True)
        return mean(found[choice].median_us / one.median_us if choice in found else 1.0 for found, one in pairs)

    def order(choice: _Choice) -> tuple[float, int, bool, str, int]:
        known = sum(choice in found for found in measured)
        return times_as_long(choice), -known, choice != usual, choice.exchange, choice.page_size

    return min(choices, key=order, default=usual), bool(choices)


def _layout_notes(
    entries: Sequence[Entry], layout: DcpLayout, choice: _Choice, exchange: ExchangeName | None
) -> list[str]:
    if layout.dcp == 1 or not entries:
        return []
    notes = [f"Interleave {layout.interleave} is what was timed: the profiles were asked about no other."]
    if all(entry.label is Label.SIMULATED for entry in entries):
        why = "vLLM's default" if exchange is None else "that of the times told, modelled, not timed"
        notes.append(f"No exchange was timed, all batches were simulated on one device: {choice.exchange} is {why}.")
    return notes


def _lost(entries: Sequence[Entry], ran: Sequence[Candidate | None]) -> str:
    """Say how far what vLLM runs is from what the profile chooses."""
    pairs = [(entry, one) for entry, one in zip(entries, ran, strict=True) if one is not None]
    ratios = [one.median_us / entry.chosen.median_us for entry, one in pairs]
    behind = Counter(_named(entry.settings) for entry, one in pairs if one.settings != entry.settings)
    unknown = len(entries) - len(pairs)
    tail = f"; with {unknown} more it is not known" if unknown else ""
    if not behind:
        # Of what was simulated no exchange is a choice.
        what = "what" if all(entry.label is Label.MEASURED for entry, _ in pairs) else "the path and kernels that"
        return f"vLLM runs {what} the profile chose with {_batches(len(pairs))}{tail}."
    lacks = ", ".join(name for name, _ in behind.most_common(4))
    return (
        f"With {sum(behind.values())} of {_batches(len(pairs))} the profile chose otherwise ({lacks}): over all, vLLM's step "
        f"takes {geometric_mean(ratios):.2f} times as long in the geometric mean, {max(ratios):.2f} times at most{tail}."
    )


def _unknown(count: int) -> str:
    if not count:
        return "Nothing was measured for this: these flags are vLLM's defaults."
    return f"What vLLM runs was not measured with any of {_batches(count)}: these flags are its defaults."


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")


def _named(settings: Settings) -> str:
    exchange = f" {settings.exchange}" if settings.exchange is ExchangeName.DIRECT else ""
    return f"{settings.path} {settings.kernel}{exchange}"
