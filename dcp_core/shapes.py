"""What is asked of attention: the model's shape and the batch of requests. Floor 0: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby, repeat
from pathlib import Path
from typing import NamedTuple

from dcp_core.grammar import WorkloadError, point_at, segments
from dcp_core.hf_config import ShapeError, read_config, shape_fields
from dcp_core.spelling import nearest

MAX_REQUESTS = 1 << 16
"""More requests than any engine puts into one batch: a larger count is a typing error, refused before it costs memory."""
MAX_SIZE = 1 << 16
"""More heads, layers or elements of a head than any model has: a typing error, refused before anything counts up to it."""
MAX_TOKENS = (1 << 31) - 1
"""Lengths travel as int32 in every kernel."""


class DType(StrEnum):
    """The element types a cache or a query may have, named as torch names them."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT8_E4M3FN = "float8_e4m3fn"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        match self:
            case DType.BFLOAT16 | DType.FLOAT16:
                return 2
            case DType.FLOAT32:
                return 4
            case DType.FLOAT8_E4M3FN:
                return 1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The part of a model that attention sees.

    Args:
        q_heads, kv_heads: heads of the whole model, before any parallelism.
        head_dim: elements per head.
        layers: attention layers, each with a KV cache of its own.
        dtype: of queries, new keys and values, and outputs.
        kv_dtype: of the KV cache; the same as ``dtype`` unless given.
        name: for people; it plays no part in equality.

    Raises:
        ShapeError: for sizes outside 1 to MAX_SIZE, query heads that KV heads do not divide, or a name that is no text.

    Examples:
        >>> shape = ModelShape.preset("qwen3-235b-a22b")
        >>> shape.q_heads, shape.kv_heads, shape.head_dim, shape.layers
        (64, 4, 128, 94)
        >>> ModelShape.parse("q64,kv4,d128") == ModelShape(64, 4, 128)
        True
        >>> ModelShape.preset("qwen3-235b")
        Traceback (most recent call last):
        dcp_core.hf_config.ShapeError: unknown model 'qwen3-235b'; did you mean 'qwen3-235b-a22b'?; known: ...
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int = 1
    dtype: DType = DType.BFLOAT16
    kv_dtype: DType | None = None
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for size in ("q_heads", "kv_heads", "head_dim", "layers"):
            value = getattr(self, size)
            if not _is_whole(value) or not 1 <= value <= MAX_SIZE:
                raise ShapeError(f"{size} of a model should be a whole number from 1 to {MAX_SIZE}, not {value!r}")
        if self.q_heads % self.kv_heads:
            raise ShapeError(
                f"a model of {self.q_heads} query heads cannot share {self.kv_heads} KV heads: "
                f"kv_heads must divide q_heads"
            )
        if not isinstance(self.name, str):
            raise ShapeError(f"name of a model should be a text, not {self.name!r}")
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        object.__setattr__(self, "kv_dtype", _dtype(self.kv_dtype or self.dtype))
        object.__setattr__(self, "name", self.name or f"q{self.q_heads},kv{self.kv_heads},d{self.head_dim}")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def cache_dtype(self) -> DType:
        """The KV cache's element type."""
        return self.kv_dtype or self.dtype

    @classmethod
    def preset(cls, name: str) -> ModelShape:
        """Return a known model's shape, whatever the case of its name.

        Raises:
            ShapeError: naming the nearest known model.
        """
        word = _text(name).strip().lower()
        if word not in PRESETS:
            known = f"{', '.join(PRESETS)}; any other by the path of its config.json, or as q64,kv4,d128"
            raise ShapeError(f"unknown model {name!r}{nearest(word, PRESETS)}; known: {known}")
        return PRESETS[word]

    @classmethod
    def parse(cls, text: str) -> ModelShape:
        """Read what a user types for a model: a preset, a path to a ``config.json`` (or its folder), or ``q64,kv4,d128``.

        Raises:
            ShapeError: saying which of the three it looked like and what is wrong with it.
        """
        text = _text(text)
        if match := re.fullmatch(r"q(\d{1,6}),kv(\d{1,6}),d(\d{1,6})(?:,l(\d{1,6}))?", text.strip(), re.ASCII):
            q_heads, kv_heads, head_dim, layers = (int(number or 1) for number in match.groups())
            return cls(q_heads, kv_heads, head_dim, layers)
        if re.match(r"q\d+,", text.strip(), re.ASCII):
            raise ShapeError(
                f"a model by its heads is written as q64,kv4,d128 (or q64,kv4,d128,l94), not {text[:40]!r}"
            )
        if text.endswith(".json") or "/" in text:
            return cls.from_hf_config(text)
        return cls.preset(text)

    @classmethod
    def from_hf_config(cls, source: str | Path | Mapping[str, object]) -> ModelShape:
        """Read a Hugging Face ``config.json``: its path, the folder that holds it, or the parsed mapping.

        A ``text_config`` inside is used where the model is multimodal. ``head_dim`` defaults to
        ``hidden_size / num_attention_heads`` and ``num_key_value_heads`` to ``num_attention_heads``, as in transformers.
        Of a hybrid model, the layers that ``layer_types`` calls attention count, full or sliding, linear ones do not.

        Raises:
            ShapeError: naming the file and the field that is missing or wrong; for multi-head latent attention.
        """
        if not isinstance(source, str | Path | Mapping):
            raise ShapeError(f"a config is a path or a mapping, not {source!r}")
        where, config = ("config", source) if isinstance(source, Mapping) else read_config(Path(source))
        try:
            return cls(**shape_fields(config))
        except ShapeError as error:
            raise ShapeError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence of a batch: ``new`` tokens whose queries run now, ``total`` tokens including them.

    Raises:
        WorkloadError: if they are not whole numbers, new < 1 or total < new.
    """

    new: int
    total: int

    def __post_init__(self) -> None:
        if type(self.new) is type(self.total) is int and 1 <= self.new <= self.total <= MAX_TOKENS:  # as almost always
            return
        if not (_is_whole(self.new) and _is_whole(self.total)):
            raise WorkloadError(
                f"a request has whole numbers of tokens, not {self.new!r} new of {self.total!r} in total"
            )
        if self.new < 1:
            raise WorkloadError(f"a request needs at least one new token, not {self.new}")
        if self.total < self.new:
            raise WorkloadError(f"a request of {self.total} tokens in total cannot have {self.new} new ones")
        if self.total > MAX_TOKENS:
            raise WorkloadError(f"a request of {self.total} tokens exceeds what kernels can index ({MAX_TOKENS})")

    @property
    def context(self) -> int:
        """Tokens that are cached before the new ones."""
        return self.total - self.new


class Sums(NamedTuple):
    """How many requests of one kind there are, and the new and the total tokens of all of them."""

    requests: int
    new: int
    total: int


class Kind(NamedTuple):
    """Which requests a batch has: ``decodes`` of one new token, ``longer`` ones; and of which of them tokens are cached."""

    decodes: bool
    longer: bool
    decodes_cached: bool
    longer_cached: bool


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of requests, in the order in which an engine lays out their new tokens.

    All but ``requests`` is derived from them, once: it is asked often while an engine runs.

    Args:
        new_lens, total_lens: of each request; batches with the same are equal.
        decodes: of one new token each.
        longer: of more than one.

    Raises:
        WorkloadError: for an empty batch, one larger than any engine's, or what is no request.

    Examples:
        >>> batch = Workload.parse("8q1s32k_q2ks32k")  # eight decodes, and 2048 new tokens of 32768
        >>> batch.new_tokens, batch.is_mixed, len(batch)
        (2056, True, 9)
        >>> batch.requests[-1]
        Request(new=2048, total=32768)
        >>> str(Workload.of(new_lens=[1, 1, 4], total_lens=[100, 100, 4]))  # as an engine knows it
        '2q1s100_q4'
    """

    requests: tuple[Request, ...] = field(compare=False)
    new_lens: tuple[int, ...] = field(init=False, repr=False)
    total_lens: tuple[int, ...] = field(init=False, repr=False)
    decodes: Sums = field(init=False, repr=False, compare=False)
    longer: Sums = field(init=False, repr=False, compare=False)
    kind: Kind = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self.requests
        if not isinstance(given, tuple | list) or not all(map(isinstance, given, repeat(Request))):
            raise WorkloadError(f"a batch is a tuple of Request(new, total), not {repr(given)[:60]}")
        if not given:
            raise WorkloadError("a batch needs at least one request")
        if len(given) > MAX_REQUESTS:
            raise WorkloadError(f"a batch of {len(given)} requests is larger than any engine's ({MAX_REQUESTS})")
        new_lens, total_lens = tuple([one.new for one in given]), tuple([one.total for one in given])
        decodes, longer = _sums_by_kind(given, new_lens, sum(total_lens))
        kind = Kind(decodes.requests > 0, longer.requests > 0, decodes.total > decodes.new, longer.total > longer.new)
        object.__setattr__(self, "requests", tuple(given))
        object.__setattr__(self, "new_lens", new_lens)
        object.__setattr__(self, "total_lens", total_lens)
        object.__setattr__(self, "decodes", decodes)
        object.__setattr__(self, "longer", longer)
        object.__setattr__(self, "kind", kind)

    @classmethod
    def of(cls, new_lens: Iterable[int], total_lens: Iterable[int]) -> Workload:
        """Build a batch from two equally long lists of lengths."""
        return cls(tuple(Request(new, total) for new, total in zip(new_lens, total_lens, strict=True)))

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Parse a batch in either grammar.

        ``8q1s32k_q2k``, of vLLM's attention benchmark: segments joined by ``_``, each ``COUNT q NEW k s TOTAL k`` with
        COUNT 1 and TOTAL = NEW unless given. ``mix=8192,32*1@8192``, of ``vllm bench forward``: segments joined by
        ``,``, each ``COUNT * NEW @ CONTEXT`` with COUNT 1 and CONTEXT 0 unless given, and before them an optional name (letters,
        digits, ``_``, ``.``, ``-``) with an ``=``.
        A ``k`` behind a length multiplies it by 1024.

        Raises:
            WorkloadError: pointing at the first character that does not fit.
        """
        if not isinstance(text, str):
            raise WorkloadError(f"a batch is a text, as '8q1s32k', not {text!r}")
        requests: list[Request] = []
        for segment in segments(text):
            room = MAX_REQUESTS - len(requests)
            if not 1 <= segment.count <= room:
                problem = f"{segment.count} more requests, where a batch has 1 to {MAX_REQUESTS} in all"
                raise WorkloadError(point_at(text, segment.offset, problem))
            try:
                requests += [Request(segment.new, segment.total)] * segment.count
            except WorkloadError as error:
                raise WorkloadError(point_at(text, segment.offset, str(error))) from None
        return cls(tuple(requests))

    def __str__(self) -> str:
        parts = []
        for request, run in groupby(self.requests):
            count = sum(1 for _ in run)
            total = "" if request.total == request.new else f"s{_size(request.total)}"
            parts.append(f"{count if count > 1 else ''}q{_size(request.new)}{total}")
        return "_".join(parts)

    def __len__(self) -> int:
        return len(self.requests)

    def __hash__(self) -> int:
        return hash((self.decodes, self.longer))  # those of equal batches are equal, and all lengths take longer

    @property
    def context_lens(self) -> tuple[int, ...]:
        return tuple(request.context for request in self.requests)

    @property
    def new_tokens(self) -> int:
        """Rows of the query tensor: the new tokens of all requests."""
        return self.decodes.new + self.longer.new

    @property
    def main(self) -> Sums:
        """Of the requests that decide how long a step takes: decodes take next to nothing beside longer ones."""
        return self.longer if self.longer.requests else self.decodes

    @property
    def is_decode(self) -> bool:
        """True if every request has one new token."""
        return not self.kind.longer

    @property
    def is_mixed(self) -> bool:
        """True if some requests decode one token while others run more."""
        return self.kind.decodes and self.kind.longer


def _sums_by_kind(requests: Sequence[Request], new_lens: Sequence[int], total: int) -> tuple[Sums, Sums]:
    """Return the sums of the requests with one new token and of those with more, of ``total`` tokens altogether."""
    decodes, count = new_lens.count(1), len(new_lens)
    if decodes == count:
        return Sums(count, count, total), _NOBODY
    if not decodes:
        return _NOBODY, Sums(count, sum(new_lens), total)
    longer = sum([one.total for one in requests if one.new > 1])
    return Sums(decodes, decodes, total - longer), Sums(count - decodes, sum(new_lens) - decodes, longer)


_NOBODY = Sums(0, 0, 0)


def _size(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise ShapeError(f"a model's name is a text, as 'qwen3-32b', not {name!r}")
    return name


def _dtype(name: object) -> DType:
    plain = str(name).removeprefix("torch.")
    try:
        return DType(plain)
    except ValueError:
        known = ", ".join(DType)
        raise ShapeError(f"unknown dtype {plain[:40]!r}{nearest(plain, DType)}; known: {known}") from None


def _presets() -> dict[str, ModelShape]:
    def shape(layers: int, q_heads: int, kv_heads: int, head_dim: int) -> ModelShape:
        return ModelShape(q_heads, kv_heads, head_dim, layers)

    # Layers, query heads, KV heads, head_dim: from each model's published config.json.
    known = {
        "qwen3-235b-a22b": shape(94, 64, 4, 128),
        "qwen3-30b-a3b": shape(48, 32, 4, 128),
        "qwen3-32b": shape(64, 64, 8, 128),
        "llama-3.1-70b": shape(80, 64, 8, 128),
        "llama-3.1-405b": shape(126, 128, 8, 128),
        "gpt-oss-120b": shape(36, 64, 8, 64),
        "gqa-32q-2kv-256": shape(1, 32, 2, 256),
        "tiny": replace(shape(2, 8, 2, 64), dtype=DType.FLOAT32, kv_dtype=DType.FLOAT32),
    }
    return {name: replace(model, name=name) for name, model in known.items()}


PRESETS: Mapping[str, ModelShape] = _presets()
