"""How long a run will take: the cost model's step, repeated as measuring does, corrected by what trials really took.

Assumptions, for want of anything measured: a call is sampled until its median is known well enough, its times scattering by as
much however long it is; on a CPU, and where the host launches each stage, up to the cap; a warm-up is three blocks; planning is
repeated for half a second at most; the ranks of a simulated group share the device in the checked step; opening and checking a
case takes a time for each rank and each of its requests, and for each byte. ``auto`` takes as long as fa2. Compiling kernels on
first use is not included, nor is starting workers in the time of a case. What opening takes is told by least squares from 3778
cases of 34 sweeps on H200s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from bench.need import case_bytes
from bench.policy import Policy
from bench.record import Measured, Trial
from dcp_core.cost import CPU, TILE, Ceiling, Work, ceiling_of, plan_bytes, step_work
from dcp_core.settings import Case, ExchangeName, KernelName

SCATTER_S, SCATTER_BETWEEN_S = 4e-7, 3e-6
"""Standard deviation of one call's time on a GPU by itself, and between real ranks, which do not begin at the same time."""
WIDTH = 2.46
"""Half the width of a median's 95 % interval, in standard deviations over the root of the samples: 1.96 * sqrt(pi / 2)."""
WARM_UP_BLOCKS = 3
LAUNCHES = 20
CAPTURED = 10
"""Repetitions in a CUDA graph, each launched once to capture it."""
PLAN_SECONDS, MOST_PLANS, FEWEST_PLANS = 0.5, 30, 3
FLUSH_S = 1e-4
"""Cooling the L2 cache before a repetition, and waiting for it."""
FA2_SHARE, CUDA_CORE_SHARE = 0.8, 0.03
"""Of a device's flops: fa2's 380 of 450 TFLOP/s on an H200, with masks too; and what a decode reaches without tensor cores."""
MULTIPROCESSORS = 132
"""Of an H100 or H200, where alone fa3 runs: each computes a tile of rows with all their keys, which fa3 does not split."""
OPENING_S = 0.012
"""For each rank in one process: opening a path, its inputs and its check."""
EXCHANGE_S = 0.13
"""Opening an exchange between real ranks."""
MANY_REQUESTS, REQUEST_S, FURTHER_S = 256, 2.6e-3, 2e-4
"""Laying out and checking a request on a rank, and each beyond so many, of which fewer rows are checked."""
LAID_OUT_BYTES_PER_S = 4e10
"""Of all that a case takes: drawn, written to pages in random order, read by the oracle in float64."""
EAGER_S = 1e-4
"""At least, for a stage that the host launches: the exchanges of a decode, 42 cases between two H200s."""
STARTING_S, MEETING_S, STARTING_ON_CPU_S = 9.7, 1.2, 3.0
"""Until a process is ready to time a GPU's first case, and more where several processes meet: medians of 12 and 15 runs."""
DIRECT_S, TRACING_S = 3.0, 7.0
"""Loading ``direct`` for each number of heads: 2.8 to 3.2 s in 6 sweeps of 14, others compiled it. Starting CUPTI: 2 sweeps."""
BESIDE = 1 / 4
"""Of opening a case, where it shares its inputs and what is right with others of its batch."""
PLAN_S, PLAN_REQUEST_S = 5e-4, 1.5e-6
"""Planning a pass without a mask, and each of its requests."""
CALIBRATION = 3
"""Measured trials that it takes to correct the model."""
_CALIBRATION_RANGE = (0.1, 10.0)


def local_ranks(case: Case) -> int:
    """Return how many ranks of a case's group share one device: all of a simulated one."""
    return case.layout.dcp if case.settings.exchange is ExchangeName.LOOPBACK else 1


def case_seconds(case: Case, policy: Policy, ceiling: Ceiling) -> float:
    """Return the time that measuring one case should take, by the module's assumptions."""
    least_s = EAGER_S if _is_eager(policy, ceiling) else 0.0
    works = step_work(case)
    stages_s = [max(_stage_seconds(work, ceiling), least_s) for work in works]
    step_s = sum(stages_s)
    calls_s = [step_s, *stages_s]
    if case.workload.is_decode and policy.cold and ceiling is not CPU:
        calls_s.append(step_s)  # once more, warm
    scatter_s = SCATTER_BETWEEN_S if _meets(case) else SCATTER_S
    timed_s = sum(_timed_seconds(call_s, policy, ceiling, scatter_s) for call_s in calls_s)
    if policy.graphs and ceiling is not CPU:
        timed_s += CAPTURED * policy.calls * EAGER_S * 2 * len(works)  # the step, and each of its stages
    plan_s = sum(PLAN_S + PLAN_REQUEST_S * len(case.workload) for work in works if work.kernel)
    plan_s += plan_bytes(case) / (ceiling.bytes_per_s / 8)
    planning_s = min(MOST_PLANS * plan_s, max(PLAN_SECONDS, FEWEST_PLANS * plan_s))
    return opening_seconds(case, ceiling) + planning_s + timed_s + LAUNCHES * step_s


def opening_seconds(case: Case, ceiling: Ceiling) -> float:
    """Return the time that laying a case out and checking it should take, with nothing there that it could share."""
    together, requests = local_ranks(case), len(case.workload)
    requests_s = REQUEST_S * together * min(requests, MANY_REQUESTS) + FURTHER_S * max(requests - MANY_REQUESTS, 0)
    written_s = case_bytes(case, together) / min(ceiling.bytes_per_s / 2, LAID_OUT_BYTES_PER_S)
    meeting_s = EXCHANGE_S if _meets(case) and ceiling is not CPU else 0.0
    return OPENING_S * together + meeting_s + requests_s + together * step_seconds(case, ceiling) + written_s


def step_seconds(case: Case, ceiling: Ceiling) -> float:
    """Return the time that one step should take, each stage what its kernel needs and no less than the device."""
    return sum(_stage_seconds(work, ceiling) for work in step_work(case))


def wanted_samples(call_s: float, policy: Policy, scatter_s: float) -> int:
    """Return how many samples it takes, in whole blocks, until the interval of a call's median is as narrow as asked for.

    Args:
        scatter_s: standard deviation of one call's time; a sample is the mean of ``policy.calls``.
    """
    wanted = (WIDTH * scatter_s / (policy.precision * call_s)) ** 2 / policy.calls
    return min(policy.max_samples, policy.min_samples * max(1, math.ceil(wanted / policy.min_samples)))


def racing_seconds(case: Case, policy: Policy, ceiling: Ceiling, samples: Sequence[int]) -> list[float]:
    """Return the time that a case should take in each of some races of its batch, of so many samples, if it is opened for it."""
    opening_s = BESIDE * opening_seconds(case, ceiling)
    call_s = step_seconds(case, ceiling) + (0.0 if ceiling is CPU else FLUSH_S)
    return [opening_s + (policy.calls * count + WARM_UP_BLOCKS * policy.min_warmup) * call_s for count in samples]


def starting_seconds(ranks: int, ceiling: Ceiling) -> float:
    """Return the time until ``ranks`` processes are ready for their first case."""
    if ceiling is CPU:
        return STARTING_ON_CPU_S
    return STARTING_S + (MEETING_S if ranks > 1 else 0.0)


def loading_seconds(cases: Iterable[Case], policy: Policy, ceiling: Ceiling) -> float:
    """Return the time that what some cases use takes once in each process, beyond what every case needs."""
    if ceiling is CPU:
        return 0.0
    found = list(cases)
    heads = {case.layout.heads(case.shape) for case in found if case.settings.exchange is ExchangeName.DIRECT}
    traced = policy.trace and any(case.settings.overlap for case in found)
    return DIRECT_S * len(heads) + TRACING_S * traced


def _meets(case: Case) -> bool:
    """Tell whether ranks of a case's group run in processes of their own."""
    return local_ranks(case) < case.layout.dcp


def _is_eager(policy: Policy, ceiling: Ceiling) -> bool:
    return not policy.graphs and ceiling is not CPU


def _stage_seconds(work: Work, ceiling: Ceiling) -> float:
    """Return the time of a stage: what the device cannot beat, or its kernel."""
    device_s = work.seconds(ceiling)
    if ceiling is CPU or work.kernel is None:
        return device_s
    flops, flops_per_s = float(work.flops), ceiling.flops_per_s
    match work.kernel:
        case KernelName.FA3:
            flops *= work.tiles * TILE / work.rows
            flops_per_s *= min(1.0, work.tiles / MULTIPROCESSORS)
        case KernelName.CUDA_CORE:
            flops_per_s *= CUDA_CORE_SHARE
        case _:
            flops_per_s *= FA2_SHARE * (ceiling.masked_share if work.masked else 1.0)
    return max(device_s, ceiling.launch_s + flops / flops_per_s)


def _timed_seconds(call_s: float, policy: Policy, ceiling: Ceiling, scatter_s: float) -> float:
    """Return the time of warming up and sampling one call, the step or a stage of it."""
    each_s = policy.calls * call_s + (0.0 if ceiling is CPU else FLUSH_S)
    scatters = ceiling is CPU or _is_eager(policy, ceiling)
    samples = policy.max_samples if scatters else wanted_samples(call_s, policy, scatter_s)
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
