"""What a profile says about one batch on one layout, and the settings it is compared with. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

from bench.record import Environment, Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, KernelName, PathName, Settings, canonical, is_legal
from dcp_core.shapes import MAX_SIZE, DType, Workload

MAX_ENTRIES = 2048
"""Of one profile. It is asked while an engine starts: a sweep that needs more batches than this needs another method."""
UNKNOWN_REGRET = 1.0
"""Supposed of settings that were not measured with a batch: twice the best time."""
MAX_READINGS = 1 << 22
"""Requests of all batches, each times its candidates: reading a profile looks at every one of them."""
_LEAST_US, _MOST_US = 1e-3, 7 * 86_400 * 1e6
_PAGE_SIZE = Settings().page_size


class Source(StrEnum):
    """Where an answer comes from: this very batch, the nearest measured one, a tree over batches, or the engine's default."""

    EXACT = "exact"
    NEIGHBOUR = "neighbour"
    TREE = "tree"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Geometry:
    """What one rank computes: query heads after the gather, KV heads, head_dim, and the element types.

    Models and layouts that share it share a profile.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: DType
    kv_dtype: DType

    def __post_init__(self) -> None:
        sizes = self.q_heads, self.kv_heads, self.head_dim
        if not (min(sizes) >= 1 and max(sizes) <= MAX_SIZE) or self.q_heads % self.kv_heads:
            raise ValueError(
                f"{self}: head counts and head_dim are positive, at most {MAX_SIZE}, and KV heads divide the query heads"
            )

    @classmethod
    def of(cls, case: Case) -> Geometry:
        """Return a case's geometry."""
        heads, shape = case.layout.heads(case.shape), case.shape
        return cls(heads.gathered, heads.kv, shape.head_dim, shape.dtype, shape.cache_dtype)

    def __str__(self) -> str:
        cache = f",kv_dtype={self.kv_dtype}" if self.kv_dtype is not self.dtype else ""
        return f"q{self.q_heads},kv{self.kv_heads},d{self.head_dim},dtype={self.dtype}{cache}"

    def check(self, layout: DcpLayout) -> None:
        """Refuse a layout whose ranks cannot compute this.

        Raises:
            ValueError: if the gathered heads do not divide by dcp, or a rank's by its KV heads.
        """
        own, rest = divmod(self.q_heads, layout.dcp)
        if rest or own % self.kv_heads:
            raise ValueError(
                f"a DCP group of {layout.dcp} cannot have gathered {self.q_heads} query heads over {self.kv_heads} KV heads"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that were measured: the median of a step with its 95 % interval, and the trial that proves it.

    Args:
        case: the key of its case.
        time: when the trial ended (ISO 8601, UTC); empty if unknown. It and the case find the line of the run.
    """

    settings: Settings
    median_us: float
    low_us: float
    high_us: float
    case: str
    time: str = ""

    def __post_init__(self) -> None:
        if self.settings.exchange is ExchangeName.LOOPBACK:
            raise ValueError("loopback is no exchange that an engine could run; a simulation chooses none")
        if not (self.low_us >= _LEAST_US and self.high_us <= _MOST_US):
            raise ValueError(
                f"no step takes {self.low_us} to {self.high_us} µs, less than a nanosecond or beyond a week"
            )
        if not self.low_us <= self.median_us <= self.high_us:
            raise ValueError(
                f"an interval of {self.low_us} to {self.high_us} µs does not hold a median of {self.median_us}"
            )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """By how much more a step of a batch would take, relative to its best, had the batch not been measured.

    Answered by the nearest of the others, or by a tree grown on them; None where what those answer was not measured.
    """

    neighbour: float | None = None
    tree: float | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A time over another, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high < math.inf:
            raise ValueError(f"an interval of {self.low} to {self.high} does not hold a ratio of {self.value}")


@dataclass(frozen=True, slots=True)
class Paired:
    """How long the chosen settings take over others, as a race timed both in turns, whatever the device did meanwhile."""

    settings: Settings
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one batch on one layout, under one label and timer.

    Args:
        layout: dcp and interleave matter; tp is that of the trials, another with the same geometry runs the same step.
        cold: the L2 cache was flushed between repetitions.
        candidates: fastest first.
        settings: those chosen among the candidates.
        default: those the engine would run, if they were measured.
        left_out: what it would have paid for being left out.
        paired: the default and the runner-up, where they raced the chosen settings: medians of different moments say less.

    Raises:
        ValueError: for a modelled entry, candidates that are not the fastest first or come twice, and settings chosen or
            compared with that are none of them.
    """

    layout: DcpLayout
    workload: Workload
    label: Label
    timer: str
    cold: bool
    candidates: tuple[Candidate, ...]
    settings: Settings
    default: Settings | None = None
    left_out: LeftOut = LeftOut()
    paired: tuple[Paired, ...] = ()

    def __post_init__(self) -> None:
        if self.label is Label.MODELLED:
            raise ValueError(
                f"the entry of {self.workload} is modelled; a profile holds what was measured or simulated"
            )
        if len({candidate.settings for candidate in self.candidates}) < len(self.candidates):
            raise ValueError(f"the entry of {self.workload} has two candidates of the same settings")
        medians = [candidate.median_us for candidate in self.candidates]
        if not medians or medians != sorted(medians):
            raise ValueError(f"the entry of {self.workload} needs candidates, the fastest first")
        raced = [one.settings for one in self.paired]
        if self.settings in raced or len(set(raced)) < len(raced):
            raise ValueError(f"the entry of {self.workload} compares its choice with itself, or twice with the same")
        for wanted in (self.settings, self.default, *raced):
            if wanted is not None and self.find(wanted) is None:
                raise ValueError(
                    f"the entry of {self.workload} chooses or compares with settings that were not measured"
                )

    def find(self, settings: Settings) -> Candidate | None:
        """Return the candidate of some settings; None if they were not measured."""
        return next((candidate for candidate in self.candidates if candidate.settings == settings), None)

    @property
    def chosen(self) -> Candidate:
        """The candidate of the chosen settings."""
        return next(candidate for candidate in self.candidates if candidate.settings == self.settings)

    @property
    def runner_up(self) -> Candidate | None:
        """The fastest candidate that was not chosen: of those that raced, where others than the default did."""
        others = [candidate for candidate in self.candidates if candidate.settings != self.settings]
        raced = {one.settings for one in self.paired}
        if raced - {self.default}:
            others = [candidate for candidate in others if candidate.settings in raced]
        return max(others, key=lambda candidate: self.over(candidate).value, default=None)

    def over(self, other: Candidate) -> Ratio:
        """Return the chosen settings' time over another candidate's: as a race saw it, else of their medians."""
        raced = next((one.ratio for one in self.paired if one.settings == other.settings), None)
        return raced or _ratio(self.chosen, other)

    @property
    def to_default(self) -> Ratio | None:
        """The chosen settings' time over the default's: below 1 is a gain. None if the default was not measured."""
        default = self.find(self.default) if self.default else None
        return self.over(default) if default else None

    @property
    def ratio_to_default(self) -> float | None:
        """That ratio without its interval."""
        return self.to_default.value if self.to_default else None

    @property
    def ranks(self) -> int:
        """Real ranks that its trials took; a simulated group has 1."""
        return self.layout.dcp if self.label is Label.MEASURED else 1

    @property
    def order(self) -> tuple[object, ...]:
        """What sorts entries for people: the lone rank first, then batches by what is new, how many and how long."""
        workload = self.workload
        size = (workload.is_mixed, max(workload.new_lens), len(workload), max(workload.total_lens))
        return self.layout.dcp, self.layout.interleave, self.label, *size, str(workload)

    @property
    def measured_last(self) -> str:
        """When the last of its trials ended; empty if unknown."""
        return max(candidate.time for candidate in self.candidates)

    def left_out_regret(self, source: Source) -> float | None:
        """Return the regret of an answer from a source had this batch been left out; None where it is unknown."""
        match source:
            case Source.EXACT:
                return self.regret(self.settings)
            case Source.NEIGHBOUR:
                return self.left_out.neighbour
            case Source.TREE:
                return self.left_out.tree
            case Source.DEFAULT:
                return self.regret(self.default) if self.default else None

    @property
    def supposed_regret(self) -> float:
        """What is supposed of settings that were not measured: ``UNKNOWN_REGRET``, or that of the slowest that were."""
        return max(UNKNOWN_REGRET, self.candidates[-1].median_us / self.candidates[0].median_us - 1)

    def loses(self, settings: Settings) -> bool | None:
        """Tell whether settings, as the batch runs them, were slower than its default; None if that was not measured."""
        run = carried(settings, self.layout, self.workload)
        found, default = self.find(run) if run else None, self.find(self.default) if self.default else None
        return found.median_us > default.median_us if found and default else None

    def regret(self, settings: Settings) -> float | None:
        """Return how much longer a step takes than with the best, relative to it; None if that was not measured."""
        found = self.find(settings)
        return found.median_us / self.candidates[0].median_us - 1 if found else None


def default_settings(
    layout: DcpLayout,
    workload: Workload,
    *,
    kernel: KernelName = KernelName.AUTO,
    decode_kernel: KernelName = KernelName.FA2,
) -> Settings:
    """Return what vLLM's FlashInfer backend runs: the settings that every choice has to beat.

    Prefill wrappers ``auto``, decode with tensor cores, decodes of a mixed batch apart, ``split`` for everything longer
    than a token, gather and combine even without context, ``ag_rs``. As of vLLM 0.33. A page is as large as dcpbench's
    default, or the least above that which the interleave divides.

    Args:
        kernel, decode_kernel: stand-ins for a machine where these do not run, or to spell out what ``auto`` means.
    """
    told = _told(layout.dcp == 1, layout.canonical.interleave, workload.is_decode, kernel, decode_kernel)
    return canonical(told, layout, workload)


@cache
def _told(alone: bool, interleave: int, decodes: bool, kernel: KernelName, decode_kernel: KernelName) -> Settings:
    """Return what the engine is told to run; kept, since a lookup answers in less time than settings take to make."""
    return Settings(
        path=PathName.TP if alone else PathName.DECODE if decodes else PathName.SPLIT,
        kernel=decode_kernel if decodes else kernel,
        decode_kernel=decode_kernel,
        exchange=ExchangeName.ALONE if alone else ExchangeName.AG_RS,
        page_size=-(-_PAGE_SIZE // interleave) * interleave,
        skip_empty_context=False,
    )


def engine_defaults(
    layout: DcpLayout, workload: Workload, environment: Environment, *, reference: bool = False
) -> tuple[Settings, ...]:
    """Return what the engine runs by default, under each of the names that it has on a machine.

    Args:
        reference: where the reference kernel alone runs.
    """
    if reference:
        kernel = KernelName.REFERENCE
        return (default_settings(layout, workload, kernel=kernel, decode_kernel=kernel),)
    names = [KernelName.AUTO]
    if capability := environment.soft.get("compute_capability"):
        names.append(KernelName.FA3 if capability.startswith("9.") else KernelName.FA2)  # FlashInfer's rule for auto
    return tuple(default_settings(layout, workload, kernel=name) for name in names)


def lent(entry: Entry, layout: DcpLayout) -> Settings | None:
    """Return an entry's settings as another dcp of its geometry runs them; None if nothing there is like them.

    What a lone rank computes by ``tp`` a rank of a group computes by ``decode`` or ``fold``: one pass over its keys.
    """
    settings, alone = entry.settings, entry.layout.dcp == 1
    if alone is (layout.dcp == 1):
        return settings
    if alone:
        path = PathName.DECODE if entry.workload.is_decode else PathName.FOLD
        return replace(settings, path=path, exchange=ExchangeName.AG_RS)
    # Two kernels, of context and of new tokens, are none that one pass over both could have.
    return None if settings.new_kernel else replace(settings, path=PathName.TP, exchange=ExchangeName.ALONE)


def apart(settings: Settings) -> Settings:
    """Return settings of longer requests as they run a mixed batch: the decodes apart, by the engine's kernel for them."""
    kernel = settings.kernel if settings.kernel is KernelName.REFERENCE else KernelName.FA2
    return replace(settings, decode_kernel=kernel)


def carried(settings: Settings, layout: DcpLayout, workload: Workload) -> Settings | None:
    """Return settings as they run another batch; None if they cannot: what decodes takes one new token each."""
    for_decodes = settings.path is PathName.DECODE or settings.kernel is KernelName.CUDA_CORE
    if for_decodes and not workload.is_decode:
        return None
    settings = canonical(settings, layout, workload)
    return settings if is_legal(settings, layout, workload) else None


def _ratio(over: Candidate, under: Candidate) -> Ratio:
    """Divide two medians. The interval joins theirs in logarithms, by squares and sums: Newcombe 1998, Zou and Donner 2008."""
    value = over.median_us / under.median_us
    if over is under:
        return Ratio(value, value, value)
    shorter = math.hypot(math.log(over.median_us / over.low_us), math.log(under.high_us / under.median_us))
    longer = math.hypot(math.log(over.high_us / over.median_us), math.log(under.median_us / under.low_us))
    return Ratio(value, value * math.exp(-shorter), value * math.exp(longer))
