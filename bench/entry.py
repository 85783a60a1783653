"""What a profile says about one batch on one layout, and the settings it is compared with. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from bench.record import Label
from dcp_core.layout import DcpLayout
from dcp_core.settings import Case, ExchangeName, KernelName, PathName, Settings, canonical, is_legal
from dcp_core.shapes import DType, Workload

MAX_ENTRIES = 2048
"""Of one profile. It is asked while an engine starts: a sweep that needs more batches than this needs another method."""


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
        if min(self.q_heads, self.kv_heads, self.head_dim) < 1 or self.q_heads % self.kv_heads:
            raise ValueError(f"{self}: head counts and head_dim are positive, and KV heads divide the query heads")

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
    """Settings that were measured: the median of a step with its 95 % interval, and the key of the case that proves it."""

    settings: Settings
    median_us: float
    low_us: float
    high_us: float
    case: str

    def __post_init__(self) -> None:
        if not 0 < self.low_us <= self.median_us <= self.high_us < float("inf"):
            raise ValueError(
                f"an interval of {self.low_us} to {self.high_us} µs does not hold a median of {self.median_us}"
            )


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one batch on one layout, under one label and timer.

    Args:
        layout: dcp and interleave matter; tp is that of the trials, another with the same geometry runs the same step.
        cold: the L2 cache was flushed between repetitions.
        candidates: fastest first.
        settings: those chosen among the candidates.
        default: those the engine would run, if they were measured.
        left_out_regret: by how much more a step would take, relative to the best, had this batch been left out and its
            nearest neighbour's settings been used; None where that neighbour's settings were not measured here.
    """

    layout: DcpLayout
    workload: Workload
    label: Label
    timer: str
    cold: bool
    candidates: tuple[Candidate, ...]
    settings: Settings
    default: Settings | None = None
    left_out_regret: float | None = None

    def __post_init__(self) -> None:
        medians = [candidate.median_us for candidate in self.candidates]
        if not medians or medians != sorted(medians):
            raise ValueError(f"the entry of {self.workload} needs candidates, the fastest first")
        for wanted in (self.settings, self.default):
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
        """The fastest candidate that was not chosen."""
        return next((candidate for candidate in self.candidates if candidate.settings != self.settings), None)

    @property
    def ratio_to_default(self) -> float | None:
        """The chosen settings' time over the default's: below 1 is a gain. None if the default was not measured."""
        default = self.find(self.default) if self.default else None
        return self.chosen.median_us / default.median_us if default else None

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
    interleave = layout.canonical.interleave
    path = PathName.TP if layout.dcp == 1 else PathName.DECODE if workload.is_decode else PathName.SPLIT
    settings = Settings(
        path=path,
        kernel=decode_kernel if workload.is_decode else kernel,
        decode_kernel=decode_kernel,
        exchange=ExchangeName.ALONE if layout.dcp == 1 else ExchangeName.AG_RS,
        page_size=-(-Settings().page_size // interleave) * interleave,
        skip_empty_context=False,
    )
    return canonical(settings, layout, workload)


def carried(entry: Entry, workload: Workload) -> Settings | None:
    """Return an entry's settings as they run another batch; None if they cannot: what decodes takes one new token each."""
    if entry.settings.kernel is KernelName.CUDA_CORE and not workload.is_decode:
        return None
    settings = canonical(entry.settings, entry.layout, workload)
    return settings if is_legal(settings, entry.layout, workload) else None
