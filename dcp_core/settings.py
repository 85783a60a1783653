"""What a tuner may choose, and the case: one thing to measure. Floor 1: standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any

from dcp_core.layout import DcpLayout, IllegalLayout
from dcp_core.refused import why_refused
from dcp_core.shapes import Kind, ModelShape, Workload
from dcp_core.spelling import nearest


class IllegalSettings(ValueError):
    """Settings that cannot go together, or with the layout and workload they are asked for."""


class Unsupported(Exception):
    """A kernel or exchange cannot run this here. The message says why; the case is recorded as skipped, never run otherwise."""


class PathName(StrEnum):
    """How one attention step is computed."""

    TP = "tp"
    DECODE = "decode"
    SPLIT = "split"
    MASK = "mask"
    FOLD = "fold"


class KernelName(StrEnum):
    """Who computes attention."""

    REFERENCE = "reference"
    FA2 = "fa2"
    FA3 = "fa3"
    AUTO = "auto"
    CUDA_CORE = "cuda_core"
    PERSISTENT = "persistent"


class ExchangeName(StrEnum):
    """Who moves queries and partial results between ranks."""

    ALONE = "alone"
    LOOPBACK = "loopback"
    AG_RS = "ag_rs"
    A2A = "a2a"
    DIRECT = "direct"


class MaskForm(StrEnum):
    """How the ``mask`` path tells a kernel what a query may see: the same meaning in every form."""

    BOOL = "bool"
    PACKED = "packed"
    COMPUTED = "computed"


class Batching(StrEnum):
    """How the decodes of a mixed batch run beside its longer requests.

    ``separate``: through the ``decode`` path, with a gather and a combine of their own; ``shared``: in a pass of their own,
    between one gather and one combine for all; ``joined``: in one pass with the rest.
    """

    SEPARATE = "separate"
    SHARED = "shared"
    JOINED = "joined"


class DecodeWrapper(StrEnum):
    """Which of FlashInfer's wrappers runs decodes: its own for them, or that of prefills, one query each."""

    DECODE = "decode"
    PREFILL = "prefill"


class KvLayout(StrEnum):
    """Order of a page's axes: N tokens, H heads, D elements."""

    NHD = "NHD"
    HND = "HND"


class IndexDevice(StrEnum):
    """Where the index tensors live that a kernel's plan reads."""

    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may change without changing the answer.

    Args:
        path: how the step is computed.
        kernel: of the path's paged pass, the only or the main one.
        new_kernel: of ``split``'s ragged pass over the new tokens; empty: the same as ``kernel``.
        decode_kernel: of the ``decode`` path, also for the decodes of a mixed batch run apart; empty: the same as ``kernel``.
        decode_wrapper: of that pass.
        fixed_split_size: pages of the cache that one block of fa2 reads, in every pass over pages; empty: fa2 chooses.
        disable_split_kv: one block of fa2 reads all pages of a request.
        exchange: between the ranks of a DCP group.
        mask_form: of the ``mask`` path.
        batching: of a mixed batch.
        page_size: tokens per page of the KV cache.
        kv_layout: of a page.
        index_device: of the tensors that planning reads.
        replayable: wrappers planned so that a captured CUDA graph stays valid for the next batch of the same size.
        skip_empty_context: ``split`` leaves out gather and combine where no request has context, unless it is replayable.
        fold_limit: ``fold`` folds requests of up to so many new tokens; longer ones go through ``split``.
        overlap: ``split`` gathers on another stream of the GPU while it attends to the new tokens; what is large and goes by
            ``direct`` is gathered beside the context, and combined beside the new tokens.

    Raises:
        IllegalSettings: for an unknown word or value, naming the nearest known one, or settings that cannot go together.

    Examples:
        >>> settings = Settings(path="fold", kernel="fa2", exchange="direct")
        >>> settings.page_size, settings.batching
        (16, <Batching.SEPARATE: 'separate'>)
        >>> list(settings.differences(Settings(path="fold", kernel="fa3", exchange="direct")))
        [('kernel', <KernelName.FA2: 'fa2'>, <KernelName.FA3: 'fa3'>)]
        >>> Settings(path="mask", kernel="fa3")
        Traceback (most recent call last):
        dcp_core.settings.IllegalSettings: fa3 takes no custom mask; run path mask with kernel fa2
    """

    path: PathName = PathName.SPLIT
    kernel: KernelName = KernelName.AUTO
    new_kernel: KernelName | None = None
    decode_kernel: KernelName | None = None
    decode_wrapper: DecodeWrapper = DecodeWrapper.DECODE
    fixed_split_size: int | None = None
    disable_split_kv: bool = False
    exchange: ExchangeName = ExchangeName.AG_RS
    mask_form: MaskForm = MaskForm.PACKED
    batching: Batching = Batching.SEPARATE
    page_size: int = 16
    kv_layout: KvLayout = KvLayout.NHD
    index_device: IndexDevice = IndexDevice.HOST
    replayable: bool = False
    skip_empty_context: bool = True
    fold_limit: int = 1 << 16
    overlap: bool = False

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if type(value) is not type(default) or type(value) is int:  # words as users type them; numbers have bounds
                object.__setattr__(self, name, coerce(name, value))
        if self.path is PathName.MASK and self.kernel in (KernelName.FA3, KernelName.PERSISTENT):
            raise IllegalSettings(f"{self.kernel} takes no custom mask; run path mask with kernel fa2")
        if self.new_kernel is KernelName.PERSISTENT:
            raise IllegalSettings(
                "persistent reads pages, and split's new tokens stand in none; new_kernel is fa2 or fa3"
            )
        if self.path is PathName.TP and self.exchange is not ExchangeName.ALONE:
            raise IllegalSettings(
                f"path tp is the dcp 1 baseline and exchanges nothing; its exchange is alone, not {self.exchange}"
            )

        if self.fixed_split_size and self.disable_split_kv:
            raise IllegalSettings(
                "fixed_split_size says how KV is split and disable_split_kv that it is not; choose one"
            )
        if self.fixed_split_size and self.replayable:
            raise IllegalSettings("fixed_split_size launches blocks by the batch's lengths, so it cannot be replayable")

    @property
    def kernel_for_new(self) -> KernelName:
        """The kernel of ``split``'s pass over the new tokens."""
        return self.new_kernel or self.kernel

    @property
    def kernel_for_decode(self) -> KernelName:
        """The kernel of decodes."""
        return self.decode_kernel or self.kernel

    def to_json(self) -> dict[str, str | int | bool | None]:
        """Return a plain mapping, one entry a setting."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Read what ``to_json`` wrote.

        Raises:
            IllegalSettings: for an unknown setting or value, naming the nearest known one.
        """
        if not isinstance(data, Mapping):
            raise IllegalSettings(f"settings are a mapping of names to values, not {data!r}")
        for name in data:
            check_name(name)
        return cls(**data)

    def differences(self, other: Settings) -> Iterator[tuple[str, object, object]]:
        """Yield (name, this value, other value) for every setting in which the two differ."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                yield field.name, mine, theirs


def check_name(name: str) -> None:
    """Refuse a word that is no setting, naming the nearest that is."""
    if name not in _DEFAULTS:
        word = str(name)[:40]
        raise IllegalSettings(f"unknown setting {word!r}{nearest(word, _DEFAULTS)}; known: {', '.join(_DEFAULTS)}")


def coerce(name: str, value: object) -> Any:
    """Return ``value`` as the type of the setting ``name``; text is read as a user types it.

    Raises:
        IllegalSettings: naming the setting, the value and what would be right.
    """
    check_name(name)
    default = _DEFAULTS[name]
    if value is None or (value == "" and name in _OPTIONAL):
        if name in _OPTIONAL:
            return None
        raise IllegalSettings(f"{name} needs a value")
    if isinstance(default, bool):
        truth = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
        if truth is None:
            raise IllegalSettings(f"{name} is true or false, not {repr(value)[:40]}")
        return truth
    if isinstance(default, int):
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 1 << 16):
            raise IllegalSettings(f"{name} is a whole number from 1 to 65536, not {repr(value)[:40]}")
        return int(text)
    try:
        return type(default)(str(value))
    except ValueError:
        raise IllegalSettings(_unknown(name, str(value), default)) from None


def _unknown(name: str, text: str, default: StrEnum) -> str:
    """Say what would be right in place of a word that names no choice."""
    word, known = text[:40], [str(choice) for choice in type(default)]
    if isinstance(default, KernelName) and (why := why_refused(word)):
        return f"{name} {word!r} is refused: {why}; known: {', '.join(known)}"
    return f"unknown {name} {word!r}{nearest(text, known)}; known: {', '.join(known)}"


def words_for(name: str) -> tuple[str, ...]:
    """Return the words that a setting may have; none for one that is a number, or for what is no setting."""
    match _DEFAULTS.get(name):
        case bool():
            return ("false", "true")
        case StrEnum() as default:
            return tuple(map(str, type(default)))
        case _:
            return ()


_OPTIONAL: dict[str, Any] = {"new_kernel": KernelName.AUTO, "decode_kernel": KernelName.AUTO, "fixed_split_size": 1}
_DEFAULTS: dict[str, Any] = {field.name: _OPTIONAL.get(field.name, field.default) for field in fields(Settings)}
_PLAIN = Settings()


def _plain(value: Any) -> str | int | bool | None:
    plain: str | int | bool | None = str(value) if isinstance(value, StrEnum) else value
    return plain


_PARTS = {"shape": ModelShape, "layout": DcpLayout, "workload": Workload, "settings": Settings}


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: a model shape on a layout, a workload, and the settings to run it with.

    The layout need not be one that a server would start with (``synthetic``): the core computes any.

    Raises:
        IllegalSettings: if the settings cannot serve this layout or workload.
        IllegalLayout: if the heads do not divide.

    Examples:
        >>> shape, layout = ModelShape.preset("qwen3-235b-a22b"), DcpLayout(tp=8, dcp=2)
        >>> case = Case(shape, layout, Workload.parse("16q1s32k"), Settings(path="decode", kernel="fa2"))
        >>> case.geometry, case.synthetic  # what a rank computes; would no server start with this layout?
        ('16x1x128', False)
        >>> case == Case.from_json(case.to_json())
        True
    """

    shape: ModelShape
    layout: DcpLayout
    workload: Workload
    settings: Settings

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise IllegalSettings(f"{name} of a case is a {kind.__name__}, not {repr(value)[:60]}")
        self.layout.heads(self.shape)
        for problem in _problems(self.layout, self.workload, self.settings):
            raise IllegalSettings(problem)

    @property
    def synthetic(self) -> bool:
        """True if no server would start with this layout: it serves to verify and to extrapolate."""
        try:
            self.layout.check(self.shape)
        except IllegalLayout:
            return True
        return False

    @property
    def geometry(self) -> str:
        """What one rank computes: gathered query heads × KV heads × head_dim, as in ``16x1x128``."""
        heads = self.layout.heads(self.shape)
        return f"{heads.gathered}x{heads.kv}x{self.shape.head_dim}"

    @property
    def key(self) -> str:
        """16 hex digits of sha256 over the canonical JSON, without a model's name, and without settings at their defaults.

        So a setting that a later version adds does not change the keys of what was measured before it.
        """
        data = self.to_json()
        del data["shape"]["name"]
        default = _PLAIN.to_json()
        data["settings"] = {name: value for name, value in data["settings"].items() if value != default[name]}
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data that ``from_json`` reads back to an equal case."""
        shape, layout = self.shape, self.layout
        return {
            "shape": {
                "q_heads": shape.q_heads,
                "kv_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "layers": shape.layers,
                "dtype": str(shape.dtype),
                "kv_dtype": str(shape.cache_dtype),
                "name": shape.name,
            },
            "layout": {"tp": layout.tp, "dcp": layout.dcp, "interleave": layout.interleave},
            "workload": str(self.workload),
            "settings": self.settings.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: (a subclass) if a part is missing or wrong.
        """
        try:
            shape, layout, workload = data["shape"], data["layout"], data["workload"]
            return cls(
                ModelShape(**shape), DcpLayout(**layout), Workload.parse(workload), Settings.from_json(data["settings"])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise IllegalSettings(f"a case needs shape, layout, workload and settings, each whole: {error}") from None


def canonical(settings: Settings, layout: DcpLayout, workload: Workload) -> Settings:
    """Return ``settings`` with all that plays no part in this layout and workload at its default.

    Two settings that run the very same step become equal, so that a sweep measures it once. A batch of decodes only
    has nothing to batch apart; a mask's form matters to ``mask`` alone; and so on.
    """
    limit = settings.fold_limit
    if settings.path is PathName.FOLD and workload.longer.new > limit and max(workload.new_lens) > limit:
        cached = any(total > new > limit for new, total in zip(workload.new_lens, workload.total_lens, strict=True))
        return _canonical(settings, layout.dcp == 1, workload.kind, splits=True, cached=cached)
    return _canonical(settings, layout.dcp == 1, workload.kind)


@lru_cache(maxsize=4096)
def _canonical(settings: Settings, alone: bool, kind: Kind, splits: bool = False, cached: bool = False) -> Settings:
    """Make settings canonical for a kind of batch, once: a profile is asked while an engine runs.

    Args:
        alone: dcp is 1.
        splits: ``fold`` leaves requests to ``split``, ``cached`` ones among them.
    """
    path, default = settings.path, _PLAIN
    decode, mixed = not kind.longer, kind.decodes and kind.longer and path is not PathName.DECODE
    apart = mixed and settings.batching is not Batching.JOINED
    shared = mixed and settings.batching is Batching.SHARED
    ragged = path is PathName.SPLIT or splits
    decoding = path is PathName.DECODE or (path is PathName.TP and decode)
    decodes = decoding or apart  # a mixed batch has decodes
    paged = (
        {settings.kernel_for_decode}
        if decoding
        else {settings.kernel, *([settings.kernel_for_decode] if decodes else [])}
    )
    fa2 = KernelName.FA2 in paged
    simulated = settings.exchange is ExchangeName.LOOPBACK
    # Simulated, gather and combine are not timed, so that nothing tells whether leaving them out pays.
    cached = cached if splits else kind.longer_cached or (kind.decodes_cached and not apart)
    empty = ragged and not (shared or settings.replayable or simulated or cached)
    # Nor whether exchanging once for all requests does.
    told = not (alone or simulated)
    return replace(
        settings,
        kernel=settings.kernel_for_decode if decoding else settings.kernel,
        new_kernel=settings.new_kernel if ragged and settings.new_kernel is not settings.kernel else None,
        decode_kernel=settings.decode_kernel if apart and settings.decode_kernel is not settings.kernel else None,
        decode_wrapper=settings.decode_wrapper if decodes else default.decode_wrapper,
        fixed_split_size=settings.fixed_split_size if fa2 else None,
        disable_split_kv=settings.disable_split_kv and fa2,
        exchange=ExchangeName.ALONE if alone else settings.exchange,
        mask_form=settings.mask_form if path is PathName.MASK else default.mask_form,
        batching=default.batching if not mixed or (shared and not told) else settings.batching,
        skip_empty_context=settings.skip_empty_context if empty else default.skip_empty_context,
        fold_limit=settings.fold_limit if splits else default.fold_limit,
        overlap=settings.overlap and ragged and told and not (empty and settings.skip_empty_context),
    )


def is_legal(settings: Settings, layout: DcpLayout, workload: Workload) -> bool:
    """Tell whether settings can serve a layout and workload: whether there is a case of them."""
    return next(_problems(layout, workload, settings), None) is None


def legal_by_kind(settings: Settings) -> bool:
    """Tell whether a batch's kind alone decides if it can run these settings: decodes, longer requests or both.

    Other batchings and replayable wrappers ask for its lengths and its order too.
    """
    return settings.batching is Batching.SEPARATE and not settings.replayable


def _problems(layout: DcpLayout, workload: Workload, settings: Settings) -> Iterator[str]:
    path, interleave, page = settings.path, layout.canonical.interleave, settings.page_size
    if path is PathName.TP and layout.dcp > 1:
        yield f"path tp is the dcp 1 baseline, asked for with dcp {layout.dcp}; choose decode, split, mask or fold"
    if path is PathName.DECODE and not workload.is_decode:
        longest = max(workload.new_lens)
        yield f"path decode takes one new token per request, the batch has {longest}; choose split, mask or fold"
    if path is PathName.FOLD and settings.replayable and min(workload.context_lens) < layout.dcp:
        yield f"path fold is replayable where every context reaches all {layout.dcp} ranks, not in {workload}; choose split"
    if path is PathName.FOLD and interleave > 1:
        yield f"path fold needs interleave 1, not {interleave}; choose split or mask"
    if settings.batching is Batching.JOINED and path is PathName.FOLD and max(workload.new_lens) > settings.fold_limit:
        yield "batching joined runs one pass for all, so it folds all: leave fold_limit, or choose separate or shared"
    if settings.batching is Batching.SHARED and not _in_order(workload, settings.fold_limit):
        yield f"batching shared takes a batch whose decodes stand together, and so its longer requests, not {workload}"
    if settings.batching is Batching.SHARED and settings.overlap and workload.is_mixed:
        yield "batching shared waits for every request's attention, so overlap has nothing to hide; choose separate or joined"
    apart = settings.batching is Batching.SEPARATE and path is not PathName.DECODE
    if settings.replayable and apart and not _in_order(workload, settings.fold_limit):
        yield f"a replayable batch has its decodes together, and so its longer requests, not {workload}: others get new rows"
    if layout.dcp > 1 and settings.exchange is ExchangeName.ALONE:
        yield f"dcp {layout.dcp} needs an exchange between its ranks: loopback, ag_rs or a2a"
    if layout.dcp == 1 and settings.exchange is not ExchangeName.ALONE:
        yield f"dcp 1 has nobody to exchange with; its exchange is alone, not {settings.exchange}"
    if page % interleave:
        divisors = [size for size in range(1, page + 1) if page % size == 0]
        best = min(divisors, key=lambda size: abs(size - interleave))
        yield f"interleave {interleave} must divide the page size {page}; the nearest that does is {best}"


def _in_order(workload: Workload, fold_limit: int) -> bool:
    """Tell whether the requests of each kind stand together: decodes, those that fold may take, longer ones."""
    kinds = [(request.new > 1) + (request.new > fold_limit) for request in workload.requests]
    return sum(one != other for one, other in pairwise(kinds)) == len(set(kinds)) - 1
