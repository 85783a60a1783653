"""Whether what was measured on one machine holds on the one at hand: a stated rule. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from bench.record import Environment

REFUSED = ("device_name", "sm_count", "flashinfer", "torch")
"""What decides how long a kernel takes, and which one runs: where both know it and differ, a profile is another machine's."""
WARNED = ("driver", "cuda", "triton", "nccl", "nvlinks", "topology")
"""What may shift times by some per cent."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """How a profile's machine differs from the one at hand, a clause a field: those that forbid its use, and the others.

    ``elsewhere``: the machine at hand has no GPU, so that the profile is read for another one and nothing is compared.
    """

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    elsewhere: bool = False


def fitness(measured: Environment, here: Environment, *, gpu_here: bool) -> Fitness:
    """Compare where a profile was measured with the machine at hand.

    Args:
        gpu_here: whether the machine at hand has a GPU; without one, a profile of a GPU is simply read for another machine.
    """
    if "driver" in measured.hard and not gpu_here:
        return Fitness(elsewhere=True)
    there, now = ({**one.soft, **one.hard} for one in (measured, here))
    refusals: list[str] = []
    warnings: list[str] = []
    for name in (*REFUSED, *WARNED):
        one, other = there.get(name), now.get(name)
        if one == other:
            continue
        differ = f"{name} {one or 'unknown'} there, {other or 'unknown'} here"
        both_known = one is not None and other is not None
        (refusals if gpu_here and both_known and name in REFUSED else warnings).append(differ)
    return Fitness(tuple(refusals), tuple(warnings))
