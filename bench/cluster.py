"""A sweep over the nodes of a Ray cluster: lanes that each take one batch after another, with a supervisor of their own.

The program that leads it reads, writes and prints, as on one machine; a lane measures what a machine by itself would, and hands
each trial over as a line of a run. All candidates of a batch run in one lane, and all lanes are of one kind of device. Never
imports torch; Ray is imported where it is needed.
"""

from __future__ import annotations

import datetime
import re
import socket
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from bench.errors import UnfitError, UsageError
from bench.line import decode, encode
from bench.machine import Machine
from bench.policy import Policy
from bench.record import Failed, Trial
from bench.sentinel import Watch
from bench.supervisor import Supervisor, ranks_for
from dcp_core.settings import Case

ATTEMPTS = 2
"""Lanes that a case may take down with it before it is given up."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
KNOCK_S = 5.0
OPENING_S = 60.0
"""How long a lane may take to come up on a node that has room for it."""


class Lane:
    """What runs on a node, as a Ray actor: a supervisor and its workers, warm from batch to batch, and a sentinel of its own."""

    def __init__(self, ranks: int, alone: bool) -> None:
        self._ranks, self._alone = ranks, alone
        self._supervisor: Supervisor | None = None
        self._watch: Watch | None = None
        self._expected_s: dict[Case, float] = {}

    def describe(self) -> Machine:
        """Say what this lane measures on."""
        return Machine.here(self._ranks)

    def measure(
        self, cases: Sequence[dict[str, Any]], policy: Policy, expected_s: Sequence[float], watch: Watch
    ) -> Iterator[bytes]:
        """Measure cases one after another, and yield the line of each trial as it ends.

        Args:
            watch: over the whole sweep, of which nothing was measured; the lane keeps that of its first batch.

        Raises:
            UnfitError: as a supervisor does, and on which node.
        """
        self._supervisor = self._supervisor or Supervisor(self._ranks, policy, alone=self._alone)
        self._watch = self._watch or watch
        whole = [Case.from_json(case) for case in cases]
        self._expected_s.update(zip(whole, expected_s, strict=True))  # the sentinel is of an earlier batch
        try:
            for trial in self._supervisor.measure(self._watch.over(whole), self._expected_s):
                yield encode(self._watch.seen(trial))
        except UnfitError as unfit:
            raise UnfitError(f"{socket.gethostname()}: {unfit}") from None


@dataclass(slots=True)
class _Errand:
    """A batch on its way: the lane that has it, and the cases whose trials have not come."""

    lane: Any
    left: list[Case]


class Cluster:
    """Lanes on a Ray cluster that runs already, as many as there is room for. A resource: close it, or leave its context."""

    def __init__(self, address: str, ranks: int | None, *, told: Callable[[str], None], alone: bool = False) -> None:
        """Join a cluster and open its lanes.

        Args:
            address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
            ranks: of a lane; as many as the smallest node has GPUs if None, or two on nodes without any.
            told: hears in a sentence of each lane that is lost or left out, and why; may be set anew.
            alone: measure nothing beside other processes on a device.

        Raises:
            UsageError: without Ray, or if no node has room for a lane.
            UnfitError: if no cluster answers there, or no lane comes up.
        """
        try:
            self._ray: Any = import_module("ray")
        except ImportError:
            raise UsageError("--cluster needs Ray: pip install 'dcpbench[cluster]' on every node") from None
        try:
            _knock(address)
            self._ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            why = _reason(error)
            raise UnfitError(
                f"no Ray cluster answers at {address[:80]}: {why}; start one with 'ray start --head', or give its address"
            ) from None
        self.told = told
        self._alone = alone
        self._lanes: list[Any] = []
        try:
            resource, ranks, count = _room(self._ray.nodes(), ranks)
            self._lanes += [self._open(resource, ranks) for _ in range(count)]
            self.machine = self._agree()
        except BaseException:  # an interruption too: nobody else knows of these lanes yet
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the lanes and leave the cluster; closing twice does nothing more."""
        for lane in self._lanes:
            self._ray.kill(lane)
        self._lanes = []
        self._ray.shutdown()

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self._lanes)

    def measure(
        self, cases: Sequence[Case], policy: Policy, expected_s: Mapping[Case, float] | None = None
    ) -> Iterator[Trial]:
        """Measure cases, whole batches in one lane each, and yield the trial of each as it ends, of whichever lane.

        Each lane repeats the first case that it measured, as a machine by itself does. What a lane that is lost or left out has
        not measured goes to another one. A case that took down ATTEMPTS lanes has failed; what a lane raises costs no case.

        Raises:
            UnfitError: once no lane is left.
        """
        waiting, took_down = deque(_batches(cases)), Counter[Case]()
        free, running = deque(self._lanes), dict[Any, _Errand]()
        seconds = expected_s or dict.fromkeys(cases, 0.0)
        watch = Watch(len(cases), sum(seconds[case] for case in cases))
        while waiting or running:
            while waiting and free:
                errand = _Errand(free.popleft(), waiting.popleft())
                running[self._send(errand, policy, seconds, watch)] = errand
            if not running:
                raise UnfitError("no lane of the cluster is left; start again: what was measured is kept")
            (ready,), _ = self._ray.wait(list(running), num_returns=1)
            errand = running[ready]
            try:
                trial = decode(self._ray.get(next(ready)))
            except StopIteration:
                del running[ready]
                free.append(errand.lane)
            except self._ray.exceptions.RayError as error:
                del running[ready]
                why = _reason(error)
                if isinstance(error, self._ray.exceptions.RayTaskError):
                    self._leave_out(errand.lane, f"a lane is left out: {why}")
                else:
                    self._leave_out(errand.lane, f"a lane is lost: {why}")
                    took_down.update(errand.left[:1])  # none where the last was measured, and the sentinel under way
                    if errand.left and took_down[errand.left[0]] >= ATTEMPTS:
                        why = f"{ATTEMPTS} lanes were lost while they measured it: {why}"
                        yield self._given_up(errand.left.pop(0), policy, why)
                if errand.left:
                    waiting.appendleft(errand.left)
            else:
                if not trial.is_sentinel:
                    errand.left.remove(trial.case)
                yield trial

    def _open(self, resource: str, ranks: int) -> Any:
        """Start a lane in a placement group of its own, so that all its ranks are on one node."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = placement_group([{"CPU": ranks, resource: ranks}], strategy="STRICT_PACK")
        gpus = ranks if resource == "GPU" else 0
        options = {"num_cpus": ranks, "num_gpus": gpus, "max_restarts": 0}
        actor = self._ray.remote(Lane).options(
            **options, scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group)
        )
        return actor.remote(ranks, self._alone)

    def _agree(self) -> Machine:
        """Keep the lanes of the kind that most are of, the first such kind where two are as frequent, and return that."""
        asked = [(lane, lane.describe.remote()) for lane in self._lanes]
        self._ray.wait([answer for _, answer in asked], num_returns=len(asked), timeout=OPENING_S)
        up: list[tuple[Any, Machine]] = []
        for lane, answer in asked:
            try:
                up.append((lane, self._ray.get(answer, timeout=0)))
            except self._ray.exceptions.GetTimeoutError:
                self._leave_out(lane, f"a lane did not come up within {OPENING_S:.0f} s")
            except self._ray.exceptions.RayError as error:
                self._leave_out(lane, f"a lane did not come up: {_reason(error)}")
        if not up:
            raise UnfitError("no lane of the cluster came up; free or repair a node, and start again")
        alike = [sum(not _differs(one, other) for _, other in up) for _, one in up]
        most = max(alike)
        machine = up[alike.index(most)][1]
        for lane, described in up:
            if differences := _differs(machine, described):
                self._leave_out(lane, f"a lane of another kind than {most} of {len(up)} is left out: {differences}")
        return machine

    def _leave_out(self, lane: Any, why: str) -> None:
        """End a lane, which may hold a device still, and say why."""
        self._lanes.remove(lane)
        self._ray.kill(lane)
        self.told(f"{why}.")

    def _send(self, errand: _Errand, policy: Policy, expected_s: Mapping[Case, float], watch: Watch) -> Any:
        cases = [case.to_json() for case in errand.left]
        seconds = [expected_s[case] for case in errand.left]
        return errand.lane.measure.options(num_returns="streaming").remote(cases, policy, seconds, watch)

    def _given_up(self, case: Case, policy: Policy, why: str) -> Trial:
        return Trial(
            case=case,
            outcome=Failed("crashed", why),
            ranks=ranks_for(case),
            policy=policy,
            environment=self.machine.environment,
            seconds=0.0,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at an address with a port: Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isascii() and port.isdigit():
        socket.create_connection((host, min(int(port), 65535)), timeout=KNOCK_S).close()


def _room(nodes: Sequence[Mapping[str, Any]], ranks: int | None) -> tuple[str, int, int]:
    """Return what a rank takes one of, the ranks of a lane, and how many lanes there is room for.

    Raises:
        UsageError: if there is room for none.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    resource = "GPU" if any(node.get("GPU") for node in alive) else "CPU"
    sizes = [int(min(node.get(resource, 0), node.get("CPU", 0))) for node in alive if node.get(resource)]
    ranks = ranks or (min(sizes, default=1) if resource == "GPU" else 2)
    count = sum(size // ranks for size in sizes)
    if not count:
        raise UsageError(
            f"no node of the cluster has {ranks} {resource}s, and CPUs, for the ranks of a group; ask for fewer with --ranks"
        )
    return resource, ranks, count


def _differs(first: Machine, other: Machine) -> str:
    """Say in what another lane differs so that its trials could not be compared; an empty text if in nothing."""
    differences = first.environment.differences(other.environment, ranks=first.ranks)
    versions = [machine.environment.soft.get("dcpbench", "") for machine in (first, other)]
    if versions[0] != versions[1]:
        differences.append(f"dcpbench: {versions[0]} here, {versions[1]} there")
    return "; ".join(differences)


def _reason(error: Exception) -> str:
    """Return why something of Ray's failed, in one plain line.

    That is what a lane found unfit, or else the last line at the margin: where it happened, traces and dumps come before.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, UnfitError):
        return str(cause)
    lines = [line for line in COLOURS.sub("", str(error)).splitlines() if line and not line[0].isspace()]
    return lines[-1][:200].rstrip(".") if lines else type(error).__name__


def _batches(cases: Sequence[Case]) -> list[list[Case]]:
    """Return cases by batch, in the order in which each batch comes up first."""
    found: dict[tuple[Any, ...], list[Case]] = defaultdict(list)
    for case in cases:
        found[case.shape, case.layout, case.workload].append(case)
    return list(found.values())
