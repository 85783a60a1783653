"""One rank, as a process: takes orders from its standard input, one JSON object a line, and answers on another pipe.

A worker stays warm from case to case. Whatever goes wrong inside a case becomes an outcome here, the one place that catches
everything; a fault that poisons the CUDA context ends the process after it was reported.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any, TextIO

import torch

from bench.clock import Clock, CudaClock, HostClock, floor_us
from bench.compiling import Compiles, watch
from bench.measure import measure, synchronize, verify
from bench.orders import REPLY_VARIABLE, SUPERVISOR_VARIABLE, Order
from bench.policy import Policy
from bench.race import Course
from bench.record import Failed, Outcome, Race, Skipped, Verified
from bench.stand import Sequences, apart
from dcp_core.build import open_kernel
from dcp_core.exchange import direct, flashinfer_fused
from dcp_core.kernels.base import Masking, PassKind, PassSpec
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh
from dcp_core.settings import Case, ExchangeName, IndexDevice, KernelName, KvLayout

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""


def main() -> None:
    """Serve orders until the input ends."""
    end_with_supervisor()
    mesh = Mesh.from_env()
    with os.fdopen(int(os.environ[REPLY_VARIABLE]), "w", encoding="utf-8") as replies:
        _reply(replies, {"ready": mesh.rank})
        tell_compiles(mesh, partial(_reply, replies))
        companion = Companion()
        for order in _orders(sys.stdin):
            found = answer(order, mesh, companion)
            _reply(replies, found)
            if found.get("poisoned"):
                # Leaving the group would wait for a device that answers no more.
                os._exit(1)
    mesh.close()


def end_with_supervisor() -> None:
    """Have this process killed when the supervisor that started it ends, however it does; end at once if it has."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Importing torch took seconds; whoever lost its parent in the meantime gets no signal any more.
    if os.getppid() != int(supervisor):
        os._exit(1)


def tell_compiles(mesh: Mesh, say: Callable[[dict[str, Any]], None]) -> None:
    """Have rank 0 say which kernels it compiles; the others compile the same ones. Nothing is compiled without a GPU."""
    if mesh.rank == 0 and mesh.device.type == "cuda":
        watch(Compiles(lambda kernel: say({"compiling": asdict(kernel)})))


def _orders(lines: TextIO) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def _reply(replies: TextIO, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


def answer(order: dict[str, Any], mesh: Mesh, companion: Companion) -> dict[str, Any]:
    """Do what an order says on this rank; every rank of the mesh must. See ``bench.orders`` for what is returned."""
    what = Order(order["do"])
    if what is Order.PROBE:
        return {"probe": probe(mesh)}
    cases, policy = [Case.from_json(one) for one in order.get("cases") or [order["case"]]], Policy(**order["policy"])
    group = group_for(cases[0], mesh)
    if group is None:
        return {"idle": True}
    found: dict[str, Any] = {}
    outcome: Verified | Outcome | None = None
    try:
        match what:
            case Order.RACE:
                found["outcomes"] = [asdict(one) for one in companion.race(cases, group, policy, order)]
            case Order.AUDIT:
                from bench.referee import audit

                companion.course.close()
                audited = audit(cases[0], group, policy)
                if isinstance(audited, list):
                    found["audited"] = [asdict(one) for one in audited]
                else:
                    outcome = audited
            case Order.VERIFY:
                companion.course.close()
                outcome = companion.verify(cases[0], group, policy)
            case _:
                companion.course.close()
                outcome = measure(cases[0], group, policy)
    except torch.OutOfMemoryError as error:
        outcome = Failed("out_of_memory", str(error).splitlines()[0])
    except Exception as error:  # noqa: BLE001  # the one place that catches everything: it becomes a failed trial
        outcome = Failed("error", f"{type(error).__name__}: {error}", traceback.format_exc())
    if outcome is not None:
        companion.course.close()
        found["outcome"] = asdict(outcome)
    gc.collect()
    if outcome is not None:
        gc.freeze()  # so that the next collection looks at that case's objects, not at every library's that was imported so far
    poisoned = _poisoned(mesh.device) if isinstance(outcome, Failed) else False
    return found | {"ranks": 1 if group.is_simulated else group.size, "poisoned": poisoned}


def group_for(case: Case, mesh: Mesh) -> Mesh | None:
    """Return the group that runs a case: real ranks if there are enough, else a simulation on rank 0; None if idle."""
    dcp = case.layout.dcp
    if dcp <= mesh.size and case.settings.exchange is not ExchangeName.LOOPBACK:
        return mesh.part(dcp)
    return Mesh.simulated(dcp, mesh.device) if mesh.rank == 0 else None


class Companion:
    """What the cases of one batch share: their inputs, and the first right result, to compare every later path with."""

    def __init__(self) -> None:
        self._asked: tuple[Any, ...] = ()
        self._sequences: Sequences | None = None
        self._path = ""
        self._results: list[Partial] = []
        self.course = Course()

    def race(self, cases: Sequence[Case], mesh: Mesh, policy: Policy, order: Mapping[str, Any]) -> list[Outcome]:
        """Time cases in turns as an order says."""
        race = Race(**order["race"], cases=len(cases))
        return self.course.race(cases, mesh, policy, race, rounds=order["rounds"], whole=order["whole"])

    def verify(self, case: Case, mesh: Mesh, policy: Policy) -> Verified | Outcome:
        """Compare a case with the oracle, and then with the path verified before it if that ran the same batch."""
        asked = (case.shape, case.layout, case.workload, mesh.size, mesh.is_simulated, policy.seed)
        if asked != self._asked:
            self._asked, self._results, self._sequences = asked, [], None
        verified = verify(case, mesh, seed=policy.seed, sequences=self._sequences)
        if isinstance(verified, Skipped):
            return verified
        stand, check = verified
        self._sequences = stand.sequences
        if not self._results:
            # Only what the oracle found right is worth comparing with; all ranks see the same check.
            self._path, self._results = str(case.settings.path), stand.results() if check.passed else []
            return Verified(check)
        found = [apart(mine, other, check) for mine, other in zip(stand.results(), self._results, strict=True)]
        worst = max(chain(*mesh.share(found)))
        if check.passed and worst > 1:
            return Failed(
                "differs", f"a row is {worst:.3g} times as far from path {self._path} as two right ones may be"
            )
        return Verified(check, worst)


def _poisoned(device: torch.device) -> bool:
    try:
        synchronize(device)
    except RuntimeError:
        return True
    return False


def probe(mesh: Mesh) -> dict[str, Any]:
    """Say what runs here: versions, and for each kernel and exchange why it does not, or an empty sentence.

    Every rank of the group must ask.
    """
    kernels = {}
    for name in KernelName:
        kind = PassKind.DECODE if name is KernelName.CUDA_CORE else PassKind.PAGED
        spec = PassSpec(
            kind=kind,
            masking=Masking.NONE,
            q_heads=16,
            kv_heads=1,
            head_dim=128,
            dtype=torch.bfloat16,
            kv_dtype=torch.bfloat16,
            page_size=16,
            kv_layout=KvLayout.NHD,
            index_device=IndexDevice.HOST,
        )
        kernels[str(name)] = open_kernel(name).refusal(spec, mesh.device) or ""
    needs_ranks = "" if mesh.size > 1 else "needs at least two ranks: start with --ranks N"
    exchanges = {
        str(ExchangeName.ALONE): "",
        str(ExchangeName.LOOPBACK): "",
        str(ExchangeName.AG_RS): needs_ranks,
        str(ExchangeName.A2A): needs_ranks,
        str(ExchangeName.DIRECT): needs_ranks or mesh.first_problem(direct.refusal(mesh, head_dim=128)),
    }
    on_gpu = mesh.device.type == "cuda"
    clock: Clock = CudaClock(mesh.device, graphs=True, cold=False) if on_gpu else HostClock()
    floor, pace = floor_us(clock, mesh.device), clock.state()
    return {
        "timer": clock.name,
        "timer_floor_us": max(mesh.share(floor)),
        "paces": mesh.share(pace),
        "device": str(mesh.device),
        "backend": mesh.backend,
        "ranks": mesh.size,
        "composed": sorted(mesh.composed),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "kernels": kernels,
        "exchanges": exchanges,
        "flashinfer_exchanges": flashinfer_fused.refusals(mesh.device),
    }


if __name__ == "__main__":
    main()
