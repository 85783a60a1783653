"""How long a run will take: the cost model's step, repeated as measuring does, corrected by what trials really took.

Assumptions, for want of anything measured: on a GPU sampling ends after one or two blocks of the fewest samples; on a CPU, and
where the host launches each stage, times scatter, and it ends at the cap; the step as a whole and each of its stages are sampled
alike; a warm-up is three blocks; planning is repeated for half a second at most; the ranks of a simulated group share the device
in the checked step; opening and checking a case takes a time for each rank and each request, and as long as its memory takes to
write. Compiling kernels on first use is not included, nor is starting workers in the time of a case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from bench.need import case_bytes
from bench.policy import Policy
from bench.record import Measured, Trial
from dcp_core.cost import CPU, Ceiling, ceiling_of, plan_bytes, step_work
from dcp_core.settings import Case, ExchangeName

BLOCKS = 1.5
"""Blocks of the fewest samples until a GPU's interval is narrow enough."""
WARM_UP_BLOCKS = 3
LAUNCHES = 20
PLAN_SECONDS, MOST_PLANS, FEWEST_PLANS = 0.5, 30, 3
FLUSH_S = 1e-4
"""Cooling the L2 cache before a repetition, and waiting for it."""
OPENING_S = 0.06
"""For each rank in one process: opening a path, its inputs and its check. This and what follows: 970 cases on an H200."""
EXCHANGE_S = 0.1
"""Opening an exchange between real ranks: 300 cases between two H200s."""
MANY_REQUESTS, REQUEST_S, FURTHER_S = 256, 5e-3, 3e-4
"""Laying out and checking a request, and each beyond so many, of which fewer rows are checked."""
EAGER_S = 1e-4
"""At least, for a stage that the host launches: the exchanges of a decode, 42 cases between two H200s."""
STARTING_S, MEETING_S, STARTING_ON_CPU_S = 8.0, 4.0, 3.0
"""Until a process is ready to time a GPU's first case, and more where several processes meet."""
BESIDE = 1 / 4
"""Of opening a case, where it shares its inputs and what is right with others of its batch."""
PLAN_S = 3e-4
"""Planning a batch without a mask."""
CALIBRATION = 3
"""Measured trials that it takes to correct the model."""
_CALIBRATION_RANGE = (0.1, 10.0)


def local_ranks(case: Case) -> int:
    """Return how many ranks of a case's group share one device: all of a simulated one."""
    return case.layout.dcp if case.settings.exchange is ExchangeName.LOOPBACK else 1


def case_seconds(case: Case, policy: Policy, ceiling: Ceiling) -> float:
    """Return the time that measuring one case should take, by the module's assumptions."""
    least_s = EAGER_S if _is_eager(policy, ceiling) else 0.0
    stages_s = [max(work.seconds(ceiling), least_s) for work in step_work(case)]
    step_s = sum(stages_s)
    timed_s = sum(_timed_seconds(call_s, policy, ceiling) for call_s in (step_s, *stages_s))
    if case.workload.is_decode and policy.cold and ceiling is not CPU:
        timed_s += _timed_seconds(step_s, policy, ceiling)  # once more, warm
    plan_s = PLAN_S + plan_bytes(case) / (ceiling.bytes_per_s / 8)
    planning_s = min(MOST_PLANS * plan_s, max(PLAN_SECONDS, FEWEST_PLANS * plan_s))
    return opening_seconds(case, ceiling) + planning_s + timed_s + LAUNCHES * step_s


def opening_seconds(case: Case, ceiling: Ceiling) -> float:
    """Return the time that laying a case out and checking it should take, with nothing there that it could share."""
    together, requests = local_ranks(case), len(case.workload)
    step_s = sum(work.seconds(ceiling) for work in step_work(case))
    requests_s = REQUEST_S * min(requests, MANY_REQUESTS) + FURTHER_S * max(requests - MANY_REQUESTS, 0)
    written_s = 2 * case_bytes(case, together) / ceiling.bytes_per_s
    meeting_s = EXCHANGE_S if together < case.layout.dcp and ceiling is not CPU else 0.0
    return OPENING_S * together + meeting_s + requests_s + together * step_s + written_s


def racing_seconds(case: Case, policy: Policy, ceiling: Ceiling, samples: Sequence[int]) -> list[float]:
    """Return the time that a case should take in each of some races of its batch, of so many samples, if it is opened for it."""
    opening_s = BESIDE * opening_seconds(case, ceiling)
    call_s = sum(work.seconds(ceiling) for work in step_work(case)) + (0.0 if ceiling is CPU else FLUSH_S)
    return [opening_s + (policy.calls * count + WARM_UP_BLOCKS * policy.min_warmup) * call_s for count in samples]


def starting_seconds(ranks: int, ceiling: Ceiling) -> float:
    """Return the time until ``ranks`` processes are ready for their first case."""
    if ceiling is CPU:
        return STARTING_ON_CPU_S
    return STARTING_S + (MEETING_S if ranks > 1 else 0.0)


def _is_eager(policy: Policy, ceiling: Ceiling) -> bool:
    return not policy.graphs and ceiling is not CPU


def _timed_seconds(call_s: float, policy: Policy, ceiling: Ceiling) -> float:
    """Return the time of warming up and sampling one call, the step or a stage of it."""
    each_s = policy.calls * call_s + (0.0 if ceiling is CPU else FLUSH_S)
    scatters = ceiling is CPU or _is_eager(policy, ceiling)
    samples = policy.max_samples if scatters else min(policy.max_samples, BLOCKS * policy.min_samples)
    return min(samples * each_s, policy.max_seconds) + WARM_UP_BLOCKS * policy.min_warmup * each_s


def seconds_each(cases: Sequence[Case], policy: Policy, device_name: str, known: Iterable[Trial] = ()) -> list[float]:
    """Return the seconds that each case should take.

    Args:
        device_name: as the driver tells it; empty for a CPU.
        known: trials of the same machine. From three on, the model is scaled by the median of what they took over what
            it says of them.
    """
    ceiling = ceiling_of(device_name)
    ratios = [
        trial.seconds / case_seconds(trial.case, trial.policy, ceiling)
        for trial in known
        if isinstance(trial.outcome, Measured) and trial.seconds > 0 and trial.outcome.race is None
    ]
    low, high = _CALIBRATION_RANGE
    scale = min(max(median(ratios), low), high) if len(ratios) >= CALIBRATION else 1.0
    return [scale * case_seconds(case, policy, ceiling) for case in cases]
