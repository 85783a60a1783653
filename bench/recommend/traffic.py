"""A trace of requests, and the batches that a continuously batching scheduler makes of it. Standard library only.

The scheduler is the core of vLLM's v1: each step spends a budget of tokens, first on requests that run, in the order in which
they came, a long prompt by chunks, then on waiting ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


class Step(NamedTuple):
    """One step of a replay: when it starts, and what runs in it.

    Args:
        decodes: requests that run one new token, the last of a prompt by itself among them.
        decode_context: tokens that all of them have cached before.
        longer: requests that run more.
        new: tokens that all of these run.
        context: tokens that all of these have cached before.
    """

    start_s: float
    decodes: int
    decode_context: int
    longer: int
    new: int
    context: int


@dataclass(slots=True)
class _Prompt:
    """A request that waits or runs its prompt, of which ``done`` tokens have run."""

    at_s: float
    prompt: int
    computed: int
    done: int = 0

    def run(self, room: int) -> int:
        """Run the rest of the prompt, as far as there is room for it; return how many tokens that is."""
        new = min(self.prompt - self.done, room)
        self.done += new
        return new


@dataclass(slots=True)
class _Decodes:
    """Requests past their prompts, counted and not told apart: each runs a token a step, so that its last one is known.

    A step's tokens suffice for all: whoever ends its prompt in a step has found room for one beside them.
    """

    running: int = 0
    context: int = 0
    steps: int = 0
    ending: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By step, how many end and their tokens."""

    def add(self, prompt: int, computed: int) -> None:
        """Take a request whose prompt has run, of the tokens that it computes in all."""
        self.running += 1
        self.context += prompt
        last = self.steps + computed - prompt
        requests, tokens = self.ending.get(last, (0, 0))
        self.ending[last] = requests + 1, tokens + computed

    def run(self) -> int:
        """Run a token of each; return the tokens that those that end have held."""
        self.steps += 1
        self.context += self.running
        if self.steps not in self.ending:
            return 0
        requests, tokens = self.ending.pop(self.steps)
        self.running -= requests
        self.context -= tokens
        return tokens


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
    waiting = deque(
        _Prompt(one.at_s, one.prompt, one.computed) for one in sorted(arrivals, key=lambda arrival: arrival.at_s)
    )
    prompts: list[_Prompt] = []
    decodes = _Decodes()
    now_s, held = 0.0, 0
    for _ in range(MAX_STEPS):
        if not (prompts or decodes.running or waiting):
            return
        if not (prompts or decodes.running):
            now_s = max(now_s, waiting[0].at_s)
        room = scheduler.max_batched_tokens - decodes.running
        ran = []
        for one in prompts:
            if not room:
                break
            ran.append((one.done, new := one.run(room)))
            room -= new
        while (
            room
            and waiting
            and _may_start(waiting, now_s, scheduler, running=len(prompts) + decodes.running, held=held)
        ):
            one = waiting.popleft()
            held += one.computed
            prompts.append(one)
            ran.append((one.done, new := one.run(room)))
            room -= new
        step = _step(now_s, decodes, ran)
        yield step
        now_s += step_s(step)
        held -= decodes.run()
        if ran:
            held -= _past_prompts(prompts, decodes)
            prompts = [one for one in prompts if one.done < one.prompt]
    raise UsageError(f"the trace takes more than {MAX_STEPS:,} steps to serve: give a shorter stretch of it")


def _step(start_s: float, decodes: _Decodes, ran: Sequence[tuple[int, int]]) -> Step:
    """Put together what decodes and what runs of prompts, each with the tokens done before it and its new ones."""
    if not ran:
        return Step(start_s, decodes.running, decodes.context, 0, 0, 0)
    longer = [one for one in ran if one[1] > 1]
    lasts = [done for done, new in ran if new == 1]
    return Step(
        start_s,
        decodes.running + len(lasts),
        decodes.context + sum(lasts),
        len(longer),
        sum([new for _, new in longer]),
        sum([done for done, _ in longer]),
    )


def _past_prompts(prompts: Sequence[_Prompt], decodes: _Decodes) -> int:
    """Let prompts that have run go on to decode; return the tokens of those that are answered with one, and end."""
    ended = 0
    for one in prompts:
        if one.done == one.computed:
            ended += one.computed
        elif one.done == one.prompt:
            decodes.add(one.prompt, one.computed)
    return ended


def _may_start(waiting: Sequence[_Prompt], now_s: float, scheduler: Scheduler, *, running: int, held: int) -> bool:
    """Tell whether the first of those that wait has come, and may run beside so many that will hold so many tokens."""
    if waiting[0].at_s > now_s or running >= scheduler.max_sequences:
        return False
    return scheduler.kv_tokens is None or held + waiting[0].computed <= scheduler.kv_tokens


def _check_fits(arrivals: Sequence[Arrival], kv_tokens: int) -> None:
    longest = max((one.computed for one in arrivals), default=0)
    if longest > kv_tokens:
        raise UsageError(
            f"the trace has a request of {longest:,} tokens, and the KV cache holds {kv_tokens:,}: leave it out, or take a "
            f"larger tp or a GPU with more memory"
        )
