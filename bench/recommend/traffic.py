"""A trace of requests, and the batches that a continuously batching scheduler makes of it. Standard library only.

The scheduler is the core of vLLM's v1: each step spends a budget of tokens, first on requests that run, in the order in which
they came, a long prompt by chunks, then on waiting ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.errors import UsageError
from dcp_core.shapes import MAX_TOKENS

MAX_REQUESTS = 200_000
MAX_STEPS = 2_000_000
"""Of a replay: hours of a busy server; more would keep a user waiting."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it arrives: seconds since the trace began, prompt tokens, tokens that it is answered with.

    Raises:
        ValueError: for numbers that no request has.
    """

    at_s: float
    prompt: int
    output: int

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < float("inf"):
            raise ValueError(f"a request arrives at 0 s or later, not at {self.at_s:g}")
        if self.prompt < 1 or self.output < 1:
            raise ValueError(
                f"a request has one prompt token and one output token or more, not {self.prompt} and {self.output}"
            )
        if self.prompt + self.output > MAX_TOKENS:
            raise ValueError(f"a request of {self.prompt + self.output} tokens exceeds what kernels can index")

    @property
    def computed(self) -> int:
        """Tokens that run through the model: the last output token never does."""
        return self.prompt + self.output - 1


@dataclass(frozen=True, slots=True)
class Scheduler:
    """How steps are made: new tokens and requests of one step, at most.

    Args:
        kv_tokens: that the cache holds; a request starts when all of it will fit. None: as many as come.

    Raises:
        UsageError: for a limit below 1.
    """

    max_batched_tokens: int = 8192
    max_sequences: int = 1024
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_batched_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is a whole number from 1, not {getattr(self, name)}")


class Ran(NamedTuple):
    """What a request runs in a step: its number in the trace, new tokens, and tokens in total once they have run."""

    request: int
    new: int
    total: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a replay: when it starts, and what runs in it, decodes first."""

    start_s: float
    ran: tuple[Ran, ...]


@dataclass(slots=True)
class _Running:
    """A request that waits or runs: ``done`` of its ``computed`` tokens have run, of which the prompt is the first part."""

    index: int
    at_s: float
    prompt: int
    computed: int
    done: int = 0

    def run(self, room: int) -> Ran:
        """Run the rest of the prompt, as far as there is room for it."""
        new = min(self.prompt - self.done, room)
        self.done += new
        return Ran(self.index, new, self.done)

    def decode(self) -> Ran:
        """Run one more token."""
        self.done += 1
        return Ran(self.index, 1, self.done)


def replay(arrivals: Sequence[Arrival], scheduler: Scheduler, step_s: Callable[[Step], float]) -> Iterator[Step]:
    """Yield the steps in which a trace is served, each token of each request once.

    Args:
        arrivals: in any order.
        step_s: how long a step takes; it decides what has arrived when the next one starts.

    Raises:
        UsageError: for a request that the cache never holds, or more steps than anyone waits for.
    """
    if scheduler.kv_tokens is not None:
        _check_fits(arrivals, scheduler.kv_tokens)
    order = sorted(enumerate(arrivals), key=lambda item: item[1].at_s)
    waiting = deque(_Running(index, one.at_s, one.prompt, one.computed) for index, one in order)
    prompts: list[_Running] = []
    decodes: list[_Running] = []
    now_s, held = 0.0, 0
    for _ in range(MAX_STEPS):
        if not (prompts or decodes or waiting):
            return
        if not (prompts or decodes):
            now_s = max(now_s, waiting[0].at_s)
        room = scheduler.max_batched_tokens
        ran = [one.decode() for one in decodes[:room]]
        room -= len(ran)
        for one in prompts:
            if not room:
                break
            ran.append(one.run(room))
            room -= ran[-1].new
        while room and _may_start(waiting, now_s, scheduler, running=len(prompts) + len(decodes), held=held):
            one = waiting.popleft()
            held += one.computed
            prompts.append(one)
            ran.append(one.run(room))
            room -= ran[-1].new
        step = Step(now_s, tuple(ran))
        yield step
        now_s += step_s(step)
        decodes += [one for one in prompts if one.done >= one.prompt]
        prompts = [one for one in prompts if one.done < one.prompt]
        held -= sum([one.computed for one in decodes if one.done >= one.computed])
        decodes = [one for one in decodes if one.done < one.computed]
    raise UsageError(f"the trace takes more than {MAX_STEPS:,} steps to serve: give a shorter stretch of it")


def _may_start(waiting: Sequence[_Running], now_s: float, scheduler: Scheduler, *, running: int, held: int) -> bool:
    """Tell whether the first of those that wait has come, and may run beside so many that will hold so many tokens."""
    if not waiting or waiting[0].at_s > now_s or running >= scheduler.max_sequences:
        return False
    return scheduler.kv_tokens is None or held + waiting[0].computed <= scheduler.kv_tokens


def _check_fits(arrivals: Sequence[Arrival], kv_tokens: int) -> None:
    longest = max((one.computed for one in arrivals), default=0)
    if longest > kv_tokens:
        raise UsageError(
            f"the trace has a request of {longest:,} tokens, and the KV cache holds {kv_tokens:,}: leave it out, or take a "
            f"larger tp or a GPU with more memory"
        )
