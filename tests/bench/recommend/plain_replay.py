"""What a replay of a trace is, request by request and token by token: ``bench.recommend.traffic`` counts the same in bulk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.recommend.traffic import Arrival, Scheduler, Step


class Ran(NamedTuple):
    """What a request runs in a step: its number in the trace, new tokens, and tokens in total once they have run."""

    request: int
    new: int
    total: int


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


def counted(start_s: float, ran: Iterable[Ran]) -> Step:
    """Return a step's counts: requests that run one token, and the longer ones."""
    decodes = [one for one in ran if one.new == 1]
    longer = [one for one in ran if one.new > 1]
    return Step(
        start_s,
        len(decodes),
        sum(one.total - 1 for one in decodes),
        len(longer),
        sum(one.new for one in longer),
        sum(one.total - one.new for one in longer),
    )


def plain_replay(
    arrivals: Sequence[Arrival], scheduler: Scheduler, step_s: Callable[[Step], float]
) -> Iterator[tuple[float, tuple[Ran, ...]]]:
    """Yield when each step starts and what each request runs in it: decodes first."""
    order = sorted(enumerate(arrivals), key=lambda item: item[1].at_s)
    waiting = deque(_Running(index, one.at_s, one.prompt, one.computed) for index, one in order)
    prompts: list[_Running] = []
    decodes: list[_Running] = []
    now_s, held = 0.0, 0
    while prompts or decodes or waiting:
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
        yield now_s, tuple(ran)
        now_s += step_s(counted(now_s, ran))
        decodes += [one for one in prompts if one.done >= one.prompt]
        prompts = [one for one in prompts if one.done < one.prompt]
        held -= sum([one.computed for one in decodes if one.done >= one.computed])
        decodes = [one for one in decodes if one.done < one.computed]


def _may_start(waiting: Sequence[_Running], now_s: float, scheduler: Scheduler, *, running: int, held: int) -> bool:
    """Tell whether the first of those that wait has come, and may run beside so many that will hold so many tokens."""
    if not waiting or waiting[0].at_s > now_s or running >= scheduler.max_sequences:
        return False
    return scheduler.kv_tokens is None or held + waiting[0].computed <= scheduler.kv_tokens
