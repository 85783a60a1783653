"""Measure one case: check it against the oracle, then time its planning, its step, and each stage of the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TypeVar

import torch

from bench.clock import REPETITIONS, Clock, CudaClock, HostClock, Sampler, empty_us, floor_us
from bench.need import case_bytes
from bench.policy import Policy
from bench.record import CORRELATED_FLAG, Failed, Label, Measured, Outcome, Race, Skipped
from bench.samples import Samples, Timed
from bench.stand import Sequences, Stand
from bench.stats import is_precise, lag1_correlation, summarize, thin
from bench.timeline import timeline_of
from bench.times import CORRELATED, Pace, Piece, PlanTime, StageTime, StopReason
from bench.verdict import FLOORS
from dcp_core.check import Check
from dcp_core.memory import format_size
from dcp_core.mesh import Mesh
from dcp_core.settings import Case, KernelName, Unsupported

T = TypeVar("T")
PLAN_SECONDS = 0.5
"""Spent on timing one case's planning, beyond the first PLAN_SAMPLES."""
PLAN_SAMPLES = 3
MOST_PLAN_SAMPLES = 30
LAUNCH_SAMPLES = 20
WARM_UP_BLOCKS = 20
CALM_BLOCKS, FLAT = 2, 0.01
"""Blocks in turn that each are no faster than the one before, by more than this share of its time: the trend is flat."""


def verify(
    case: Case, mesh: Mesh, *, seed: int, sequences: Sequences | None = None, beside: Sequence[Stand] = ()
) -> tuple[Stand, Check] | Skipped:
    """Lay a case out, plan it, run it once and compare it with the oracle; every rank of the group must call this.

    Args:
        sequences, beside: as of ``Stand``.

    Returns:
        The stand with the check over all ranks, or why some rank cannot run the case.
    """
    needed, free = case_bytes(case, len(mesh.members())), _free_bytes(mesh.device)
    problem = f"needs {format_size(needed)} of memory, {format_size(free)} are free" if needed > free else ""
    stand = None
    if not problem:
        try:
            stand = Stand(case, mesh, seed, sequences, beside)
        except Unsupported as error:
            problem = str(error)
    problem = mesh.first_problem(problem)
    if problem or stand is None:
        return Skipped(problem)
    stand.plan()
    return stand, Check.worst(mesh.share(stand.check()))


@dataclass(frozen=True, slots=True)
class Ready:
    """A case that was right, ready to be timed: where it stands, what planning took, and what the clock reads for nothing.

    Args:
        floor_us, empty_us: for the smallest kernel there is, and for none.
    """

    stand: Stand
    check: Check
    plan: tuple[PlanTime, ...]
    clock: Clock
    floor_us: float
    empty_us: float


def measure(case: Case, mesh: Mesh, policy: Policy) -> Outcome:
    """Check and time a case; every rank of the group must call this, and all return the same.

    Args:
        mesh: of ``dcp`` real ranks, or a whole simulated group. In a simulation every rank is checked, the fullest is
            timed by itself, and the exchange is not timed.
    """
    if mesh.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(mesh.device)
    ready = prepare(case, mesh, policy)
    if not isinstance(ready, Ready):
        return ready
    with timing(ready.stand):
        step = _time(ready.stand.fullest.launch, mesh, ready.clock, policy)
        warm = _time_warm(ready, policy)
        outcome = outcome_of(ready, step, policy, warm=warm, launches=LAUNCH_SAMPLES, stages=True)
    problem = mesh.first_problem(spoilt(ready.stand))
    return Failed("incorrect", problem) if problem else replace(outcome, peak_bytes=_peak_bytes(mesh))


def prepare(
    case: Case,
    mesh: Mesh,
    policy: Policy,
    *,
    beside: Sequence[Ready] = (),
    plans: int = MOST_PLAN_SAMPLES,
    repetitions: int = REPETITIONS,
) -> Ready | Skipped | Failed:
    """Lay a case out and check it, time its planning and open its clock; every rank of the group must call this.

    Args:
        beside: cases of the same batch, to share what can be shared, the clock too.
        plans: times that planning is timed, at most.
        repetitions: that the clock makes at once.
    """
    stands = [ready.stand for ready in beside]
    sequences = stands[0].sequences if stands else None
    verified = verify(case, mesh, seed=policy.seed, sequences=sequences, beside=stands)
    if isinstance(verified, Skipped):
        return verified
    stand, check = verified
    if not check.passed:
        return Failed(
            "incorrect",
            f"out errs by {check.out_error:.2e} (budget {check.out_budget:.2e}), "
            f"lse by {check.lse_error:.2e} (budget {check.lse_budget:.2e})",
        )
    plan = _time_planning(stand, plans)
    clock = _open_clock(case, mesh, policy, repetitions, [ready.clock for ready in beside])
    return Ready(stand, check, plan, clock, *_floors(clock, mesh))


@contextmanager
def timing(stand: Stand) -> Iterator[None]:
    """Let the fullest rank run by itself where a group is simulated; real ranks run together."""
    if not stand.mesh.is_simulated:
        yield
        return
    stand.launch()
    with stand.mesh.solo():
        yield


def spoilt(stand: Stand) -> str:
    """Run once more, and say whether results stopped being numbers: those of an exchange are NaN once a rank was lost."""
    stand.launch()
    finite = all(bool(seat.step.out.isfinite().all()) for seat in stand.seats)
    return "" if finite else f"rank {stand.mesh.rank}: results were right before timing, and are no longer finite after"


def outcome_of(
    ready: Ready,
    step: Timed,
    policy: Policy,
    *,
    launches: int,
    stages: bool,
    warm: Timed | None = None,
    race: Race | None = None,
) -> Measured:
    """Return what was measured of a case, after timing its launch and, if asked to, each of its stages and the floor again.

    Args:
        warm: samples of the step with a warm L2 cache, if they were taken.
        launches: times that launching is timed.
        race: that the step was timed in.
    """
    stand, mesh, seat = ready.stand, ready.stand.mesh, ready.stand.fullest
    launch, span = _time_launch(seat.launch, mesh, launches)
    stages_timed = [
        (stage, _time(partial(stage.run, seat.step), mesh, ready.clock, policy))
        for stage in (seat.path.stages() if stages else ())
        if not (stage.communicates and mesh.is_simulated)
    ]
    floor_end, empty_end = _floors(ready.clock, mesh) if stages else (None, None)
    floor = max(ready.floor_us, floor_end or 0.0)
    exchanges = any(stage.communicates for stage, _ in stages_timed)
    return Measured(
        label=Label.SIMULATED if mesh.is_simulated else Label.MEASURED,
        check=ready.check,
        timer=ready.clock.name,
        step_us=summarize(step.slowest_us),
        launch_us=summarize(launch),
        plan=ready.plan,
        stages=tuple(
            _stage_time(stage.name, timed, stage.communicates, stage.variant) for stage, timed in stages_timed
        ),
        rank_samples_us=tuple(thin(times) for times in step.ranks_us),
        exchange_timed=not mesh.is_simulated,
        stop=step.stop,
        timer_floor_us=ready.floor_us,
        flushed_bytes=ready.clock.flushed_bytes,
        kv_bytes=max(mesh.share(stand.kv_bytes)),
        layers=stand.case.shape.layers,
        flags=tuple(_flags(stand, step, warm, floor / policy.calls)),
        race=race,
        warmup=step.warmup,
        correlation=lag1_correlation(step.slowest_us),
        span_us=summarize(span),
        timer_floor_end_us=floor_end,
        timer_empty_us=ready.empty_us,
        timer_empty_end_us=empty_end,
        dropped=step.dropped,
        clocks_during=_clocks_during([step, *([warm] if warm else []), *(timed for _, timed in stages_timed)]),
        warm=_stage_time("step", warm, exchanges) if warm else None,
        # Last: nothing of this case is timed once CUPTI has been at work.
        timeline=_timeline(ready) if stages and policy.trace else (),
    )


def _timeline(ready: Ready) -> tuple[Piece, ...]:
    """Return what runs when in a step that overlaps between real ranks and is timed in a graph; nothing of any other."""
    mesh, clock, settings = ready.stand.mesh, ready.clock, ready.stand.case.settings
    if not (settings.overlap and mesh.size > 1 and not mesh.is_simulated):
        return ()
    if not (isinstance(clock, CudaClock) and clock.graphs):
        return ()
    replays = -(-REPETITIONS // clock.repetitions)
    return timeline_of(clock.prepare(ready.stand.fullest.launch, mesh.align), replays * clock.repetitions, mesh)


def sampler_of(call: Callable[[], None], mesh: Mesh, clock: Clock, policy: Policy) -> tuple[Sampler, int]:
    """Return what samples a call, and the repetitions that it took to warm up.

    A sample is microseconds of one call, several being timed together if the policy says so.
    """

    def calls() -> None:
        for _ in range(policy.calls):
            call()

    calls()
    sampler = clock.prepare(calls, mesh.align if mesh.size > 1 and not mesh.is_simulated else None)

    def sample(count: int) -> list[float]:
        return [time_us / policy.calls for time_us in sampler(count)]

    return sample, _warm_up(sample, mesh, policy)


def _time(call: Callable[[], None], mesh: Mesh, clock: Clock, policy: Policy) -> Timed:
    """Warm up, then sample until the interval of the median is narrow enough. Ranks see the same samples and so agree."""
    sample, warmup = sampler_of(call, mesh, clock, policy)
    samples, started = Samples(), time.monotonic()
    while True:
        block = sample(policy.min_samples)
        # One clock decides for all: ranks that each looked at their own could stop at different times.
        times, states, seconds = zip(*mesh.share((block, clock.state(), time.monotonic() - started)), strict=True)
        samples.add(times, states)
        timed = samples.timed(StopReason.PRECISE, warmup)
        if samples.is_clean and is_precise(summarize(timed.slowest_us), policy.precision):
            return timed
        if samples.taken >= policy.max_samples or seconds[0] > policy.max_seconds:
            return replace(timed, stop=StopReason.CAP)


def _time_warm(ready: Ready, policy: Policy) -> Timed | None:
    """Return what a step takes where nothing cools the L2 cache: of decodes that are timed cold, and of nothing else."""
    stand, mesh = ready.stand, ready.stand.mesh
    if not (stand.case.workload.is_decode and ready.clock.flushed_bytes):
        return None
    warm = replace(policy, cold=False)
    return _time(stand.fullest.launch, mesh, _open_clock(stand.case, mesh, warm), warm)


def _warm_up(sample: Sampler, mesh: Mesh, policy: Policy) -> int:
    """Repeat, block by block, until the trend of their medians is flat, twenty blocks at most; return the repetitions."""
    last, calm, repetitions = math.inf, 0, 0
    while calm < CALM_BLOCKS and repetitions < WARM_UP_BLOCKS * policy.min_warmup:
        block = sorted(sample(policy.min_warmup))
        repetitions += policy.min_warmup
        now = max(mesh.share(block[len(block) // 2]))
        calm = calm + 1 if now > (1 - FLAT) * last else 0
        last = now
    return repetitions


def _floors(clock: Clock, mesh: Mesh) -> tuple[float, float]:
    """Return what the clock reads for the smallest kernel, below ten of which a time says little, and for none, slowest rank."""
    floor, empty = map(max, zip(*mesh.share((floor_us(clock, mesh.device), empty_us(clock))), strict=True))
    return floor, empty


def _stage_time(name: str, timed: Timed, communicates: bool, variant: str = "") -> StageTime:
    slowest = timed.slowest_us
    ranks = tuple(thin(times) for times in timed.ranks_us) if len(timed.ranks_us) > 1 else ()
    return StageTime(
        name,
        summarize(slowest),
        communicates,
        thin(slowest),
        ranks,
        variant,
        timed.dropped,
        lag1_correlation(slowest),
        timed.stop,
    )


def _clocks_during(everything: Sequence[Timed]) -> tuple[Pace, ...]:
    """Return what every rank's device told of its clocks in all that was timed; nothing if it tells nothing."""
    ranks = zip(*(timed.states for timed in everything), strict=True)
    paces = [Pace.of(list(chain(*states))) for states in ranks]
    return tuple(one for one in paces if one is not None)


def _time_planning(stand: Stand, most: int) -> tuple[PlanTime, ...]:
    """Time planning on the host, with the device work it causes: taking the batch, then each stage, slowest rank."""
    mesh, seat, started = stand.mesh, stand.fullest, time.monotonic()
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        synchronize(mesh.device)
        start = time.perf_counter_ns()
        result = call()
        synchronize(mesh.device)
        times.setdefault(name, []).append((time.perf_counter_ns() - start) / 1e3)
        return result

    for count in range(most):
        if count >= PLAN_SAMPLES and max(mesh.share(time.monotonic() - started)) > PLAN_SECONDS:
            break
        for stage in timed("batch", lambda: seat.path.prepare(stand.case.workload, seat.table)):
            timed(stage.name, stage.run)
    return tuple(PlanTime(name, summarize(_slowest(mesh, samples))) for name, samples in times.items())


def _time_launch(call: Callable[[], None], mesh: Mesh, samples: int) -> tuple[list[float], list[float]]:
    """Return host microseconds per eager launch of a step, and until its end, the device idle before each, slowest rank."""
    launches, spans = [], []
    synchronize(mesh.device)
    for _ in range(samples):
        start = time.perf_counter_ns()
        call()
        launches.append((time.perf_counter_ns() - start) / 1e3)
        synchronize(mesh.device)
        spans.append((time.perf_counter_ns() - start) / 1e3)
    return _slowest(mesh, launches), _slowest(mesh, spans)


def _slowest(mesh: Mesh, times: Sequence[float]) -> list[float]:
    return [max(each) for each in zip(*mesh.share(list(times)), strict=True)]


def _open_clock(
    case: Case, mesh: Mesh, policy: Policy, repetitions: int = REPETITIONS, known: Sequence[Clock] = ()
) -> Clock:
    """Open the clock that a case is timed with, or return the one of ``known`` that is alike: each takes memory to cool L2."""
    if mesh.device.type != "cuda":
        return HostClock()
    settings = case.settings
    eager_only = KernelName.REFERENCE in (settings.kernel, settings.kernel_for_new, settings.kernel_for_decode)
    graphs = policy.graphs and not eager_only
    for clock in known:
        if isinstance(clock, CudaClock) and clock.graphs == graphs:
            return clock
    return CudaClock(mesh.device, graphs=graphs, cold=policy.cold, repetitions=repetitions)


def _flags(stand: Stand, step: Timed, warm: Timed | None, floor: float) -> list[str]:
    flags = [f"{name} composed from all_gather: gloo lacks it here" for name in sorted(stand.mesh.composed)]
    if stand.case.synthetic:
        flags.append("synthetic layout: no server starts with it")
    flags += _doubts(step, floor)
    flags += [f"with a warm cache, {doubt}" for doubt in (_doubts(warm, floor) if warm else ())]
    return flags


def _doubts(timed: Timed, floor: float) -> Iterator[str]:
    """Say in words why the median of these samples, or its interval, is to be doubted; ``floor``: of a call, µs."""
    if summarize(timed.slowest_us).median < FLOORS * floor:
        yield f"under {FLOORS} timer floors"
    if lag1_correlation(timed.slowest_us) > CORRELATED:
        yield CORRELATED_FLAG
    if timed.stop is StopReason.CAP:
        yield "stopped at the cap, before the interval was narrow enough"


def _peak_bytes(mesh: Mesh) -> int | None:
    """Return the bytes that the allocator gave out at most, since they were reset, of the fullest rank; None on a CPU."""
    on_gpu = mesh.device.type == "cuda"
    return max(mesh.share(torch.cuda.max_memory_allocated(mesh.device))) if on_gpu else None


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # What torch's allocator holds without use counts as free: giving it back for every case costs milliseconds.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    """Wait for all work on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
