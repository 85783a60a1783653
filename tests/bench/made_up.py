"""Trials that nobody measured: plausible times for tests of what is drawn and printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.policy import Policy
from bench.record import Environment, Label, Measured, Outcome, Trial
from bench.stats import summarize
from bench.times import PlanTime, StageTime, StopReason, Summary
from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.check import Check
from dcp_core.cost import Ceiling, ceiling_of, step_work
from dcp_core.memory import cache_bytes, mask_elements
from dcp_core.settings import ExchangeName, IllegalSettings, KernelName, PathName, canonical

H200 = Environment({"device_name": "NVIDIA H200", "driver": "580.95", "torch": "2.11.0", "flashinfer": "0.7.2.post1"})
CPU = Environment({"device_name": "A CPU", "torch": "2.13.0"})
QWEN = ModelShape.preset("qwen3-235b-a22b")
KERNEL_FACTOR = dict.fromkeys(KernelName, 1.0) | {KernelName.FA3: 0.8, KernelName.AUTO: 1.1}


def summary(median_us: float, spread: float = 0.02) -> Summary:
    """Return a summary around a median."""
    return summarize([median_us * (1 + spread * step / 20) for step in range(-20, 21)])


def trial(
    case: Case, outcome: Outcome | None = None, *, environment: Environment = H200, seconds: float = 0.5
) -> Trial:
    """Return a trial of a case: measured, unless an outcome is given."""
    ranks = 1 if case.settings.exchange is ExchangeName.LOOPBACK else case.layout.dcp
    outcome = outcome or measured(case, ceiling_of("H200" if environment is H200 else ""))
    return Trial(case, outcome, ranks, Policy(), environment, seconds, "2026-02-03T04:05:06+00:00")


def measured(case: Case, ceiling: Ceiling, factor: float = 1.0) -> Measured:
    """Return an outcome with the times that the cost model allows, made a little worse for realism."""
    simulated = case.settings.exchange is ExchangeName.LOOPBACK
    factor *= KERNEL_FACTOR[case.settings.kernel]
    stages = [(work.stage, 1e6 * factor * work.seconds(ceiling)) for work in step_work(case)]
    if simulated:
        stages = [("gather", 1.0), *stages, ("combine", 1.0)]
    plan = [("plan", 70.0)]
    if case.settings.path is PathName.MASK:
        form = {"bool": 2e-4, "packed": 1e-6, "computed": 0.0}[case.settings.mask_form]
        plan = [("mask", 20 + mask_elements(case) * form / 20), ("plan", 70 + mask_elements(case) * form)]
    step = sum(time for name, time in stages if not (simulated and name in ("gather", "combine")))
    return Measured(
        label=Label.SIMULATED if simulated else Label.MEASURED,
        check=Check(rows=64, out_error=0.002, out_budget=0.01, lse_error=1e-6, lse_budget=1e-4),
        timer="cuda graph",
        step_us=summary(step),
        launch_us=summary(40.0),
        plan=tuple(PlanTime(name, summary(time)) for name, time in plan),
        stages=tuple(StageTime(name, summary(time), name in ("gather", "combine")) for name, time in stages),
        rank_samples_us=((step,),),
        exchange_timed=not simulated,
        stop=StopReason.PRECISE,
        timer_floor_us=1.0,
        flushed_bytes=120 << 20,
        kv_bytes=cache_bytes(case),
        layers=case.shape.layers,
    )


def cases(
    batches: Iterable[str],
    *,
    shape: ModelShape = QWEN,
    tp: int = 8,
    dcps: Iterable[int] = (1, 2),
    exchanges: Iterable[str] = ("loopback", "ag_rs"),
    kernels: Iterable[str] = ("fa2", "fa3"),
    forms: Iterable[str] = ("packed", "bool"),
) -> Iterator[Case]:
    """Yield every legal case of a small cross, each once."""
    seen = {}
    for batch in batches:
        for dcp in dcps:
            for path in ["tp"] if dcp == 1 else ["decode", "split", "mask", "fold"]:
                for exchange in ["alone"] if dcp == 1 else exchanges:
                    for kernel in kernels:
                        for form in forms:
                            layout, workload = DcpLayout(tp, dcp), Workload.parse(batch)
                            try:
                                chosen = {"path": path, "kernel": kernel, "exchange": exchange, "mask_form": form}
                                settings = Settings.from_json(chosen)
                                case = Case(shape, layout, workload, canonical(settings, layout, workload))
                            except IllegalSettings:
                                continue
                            seen[case.key] = case
    yield from seen.values()


def trials(*batches: str, **choices: object) -> list[Trial]:
    """Return a measured trial of every legal case of a small cross."""
    return [trial(case) for case in cases(batches, **choices)]  # type: ignore[arg-type]
