"""``dcpbench verify``: every path, kernel and exchange against the oracle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.options import Json, ranks_here, session_of, values_of, whole_number
from bench.cli.screen import ASKING, draw, emit, say, screen, waiting, warn
from bench.grid import Column, Grid
from bench.record import Failed, Skipped, Verified
from bench.report.table import case_name, counted, exchange_of, kernels_of, path_of

if TYPE_CHECKING:
    from dcp_core.settings import Case


@dataclass(slots=True)
class Tally:
    """The verdicts on one path, kernel and exchange."""

    passed: int = 0
    skipped: int = 0
    failed: int = 0
    worst_share: float = 0.0
    worst_apart: float = 0.0
    reasons: set[str] = field(default_factory=set)

    def add(self, verdict: Verified | Skipped | Failed) -> None:
        """Count a verdict; of a check, keep the share of the error budget that it used, and of what paths may be apart."""
        match verdict:
            case Verified(check=check, apart=apart):
                self.worst_share = max(self.worst_share, check.share)
                self.worst_apart = max(self.worst_apart, apart or 0.0)
                self.passed += verdict.passed
                self.failed += not verdict.passed
            case Skipped(reason=reason):
                self.skipped += 1
                self.reasons.add(reason)
            case Failed():
                self.failed += 1


def verify(
    invocation: typer.Context,
    path: Annotated[
        str | None, typer.Option("--path", help="Only these paths.", metavar="PATH", autocompletion=completion.paths)
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option("--kernel", help="Only these kernels.", metavar="KERNEL", autocompletion=completion.kernels),
    ] = None,
    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange", help="Only these exchanges.", metavar="EXCHANGE", autocompletion=completion.exchanges
        ),
    ] = None,
    dcp: Annotated[str | None, typer.Option("--dcp", help="Only these dcp sizes.", metavar="1,2,8")] = None,
    head_dim: Annotated[
        str | None, typer.Option("--head-dim", help="Only these head dims.", metavar="64,128,256")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Cross real exchanges with every batch too.")] = False,
    json: Json = False,
) -> int:
    """Check every path, kernel and exchange that runs here against a float64 oracle, edge cases included.

    Odd lengths, batches shorter than the group, empty shards, several KV heads per rank, interleaves, head dims: each
    result must stay within an error budget derived from what the same precision errs. Exit code 3 if one does not.

    Examples:
      dcpbench verify
      dcpbench --ranks 2 verify --path fold,mask --dcp 2 --exchange a2a
    """
    from bench.cli.campaign import said
    from bench.environment import devices
    from bench.policy import Policy
    from bench.supervisor import Supervisor

    on_gpu = devices()
    ranks = ranks_here(session_of(invocation).ranks, len(on_gpu))
    chosen = {"path": path, "kernel": kernel, "exchange": exchange, "dcp": dcp, "head-dim": head_dim}
    wanted = {name: values_of(name, [text]) for name, text in chosen.items() if text is not None}
    with Supervisor(ranks, Policy()) as supervisor:
        with waiting(ASKING):
            probe = supervisor.probe()
        cases = _cases(wanted, probe, ranks=ranks, on_gpu=bool(on_gpu), thorough=thorough)
        warn(f"{counted(len(cases), 'case')} to check.")
        verdicts = []
        with screen(len(cases), sum(map(_weight, cases)), forecast=False) as view:
            supervisor.told = view.compiling
            for case, verdict in supervisor.verify(said(cases, view)):
                verdicts.append((case, verdict))
                view.advance(f"{case_name(case)}: {_word(verdict)}" if _is_wrong(verdict) else "", _weight(case))
    return _report(verdicts, as_json=json)


def _cases(
    wanted: Mapping[str, Sequence[str]],
    probe: Mapping[str, Mapping[str, str]],
    *,
    ranks: int,
    on_gpu: bool,
    thorough: bool = False,
) -> list[Case]:
    """Return what to check: everything that runs here, narrowed to what was asked for.

    Args:
        probe: of ``kernels`` and ``exchanges`` by name, why each does not run here, or an empty sentence.

    Raises:
        UsageError: for a name or number that is none, or if nothing is left.
        UnfitError: for a kernel or exchange that was asked for and does not run here.
    """
    from bench.errors import UnfitError, UsageError
    from bench.verify import Selection, verify_cases
    from dcp_core.settings import ExchangeName, KernelName, PathName, coerce
    from dcp_core.shapes import DType

    names = {axis: [coerce(axis, text) for text in wanted.get(axis, ())] for axis in ("path", "kernel", "exchange")}
    kernels, exchanges = probe["kernels"], probe["exchanges"]
    for axis, refusals in (("kernel", kernels), ("exchange", exchanges)):
        for name in names[axis]:
            if refusals.get(name):
                raise UnfitError(
                    f"{axis} {name} does not run here: {refusals[name]}; leave it out, 'dcpbench doctor' says what does"
                )
    paths: list[PathName] = names["path"] or list(PathName)
    usable: list[KernelName] = names["kernel"] or [name for name in KernelName if not kernels.get(name, "unknown")]
    silent = (ExchangeName.ALONE, ExchangeName.LOOPBACK)
    wired = [name for name in ExchangeName if name not in silent and not exchanges.get(name, "unknown")]
    asked: list[ExchangeName] = names["exchange"] or list(ExchangeName)
    selection = Selection(
        kernels=tuple(usable),
        ranks=ranks,
        exchanges=tuple(wired),
        # auto is one of the others, and torch's reference is the same code where there is no GPU.
        seldom=(KernelName.AUTO, KernelName.REFERENCE) if on_gpu and not names["kernel"] else (),
        dtypes=(DType.BFLOAT16,) if on_gpu else (DType.FLOAT32,),
        paths=tuple(paths),
        thorough=thorough,
    )
    if sizes := wanted.get("dcp"):
        selection = replace(selection, dcps=tuple(whole_number("--dcp", text) for text in sizes))
    if head_dims := wanted.get("head-dim"):
        selection = replace(selection, head_dims=tuple(whole_number("--head-dim", text) for text in head_dims))
    cases = [case for case in verify_cases(selection) if case.settings.exchange in asked]
    if not cases:
        raise UsageError(
            "nothing to check: no case has all of these at once (--path, --kernel, --exchange, --dcp, --head-dim): leave one out"
        )
    return cases


def _weight(case: Case) -> float:
    """Return what checking a case takes beside others: most are simulated, one rank after another."""
    return float(case.layout.dcp)


def _report(verdicts: Sequence[tuple[Case, Verified | Skipped | Failed]], *, as_json: bool) -> Exit:
    tallies: dict[tuple[str, str, str], Tally] = defaultdict(Tally)
    for case, verdict in verdicts:
        settings = case.settings
        tallies[path_of(settings), kernels_of(settings), exchange_of(settings)].add(verdict)
    wrong = [(case, verdict) for case, verdict in verdicts if _is_wrong(verdict)]
    if as_json:
        emit([{"case": case.to_json(), "verdict": _word(verdict), **_details(verdict)} for case, verdict in verdicts])
        return Exit.FAILED_CASES if wrong else Exit.DONE
    draw(_grid(tallies))
    say()
    for reason in sorted({reason for tally in tallies.values() for reason in tally.reasons}):
        say(f"skipped: {reason}")
    for case, verdict in wrong:
        say(f"FAILED {case_name(case)}, interleave {case.layout.interleave}, {case.geometry}: {_word(verdict)}")
    passed = sum(tally.passed for tally in tallies.values())
    say(f"{passed} right, {len(wrong)} wrong, {len(verdicts) - passed - len(wrong)} skipped.")
    return Exit.FAILED_CASES if wrong else Exit.DONE


def _grid(tallies: dict[tuple[str, str, str], Tally]) -> Grid:
    columns = (
        Column("path"),
        Column("kernel"),
        Column("via"),
        Column("right", right=True),
        Column("wrong", right=True),
        Column("skipped", right=True),
        Column("error", right=True),
        Column("apart", right=True),
    )
    rows = tuple(
        (
            *names,
            str(tally.passed),
            str(tally.failed),
            str(tally.skipped),
            f"{tally.worst_share:.0%}",
            f"{tally.worst_apart:.0%}",
        )
        for names, tally in sorted(tallies.items())
    )
    footnotes = (
        "via –: no ranks to exchange between: dcp 1, or all of a group in one process.",
        "error: from the float64 oracle, in the worst case, as a share of its budget.",
        "apart: from another path on the same batch, in the worst row, as a share of what two right results may be apart.",
    )
    return Grid("Against the float64 oracle, and path against path", columns, rows, footnotes=footnotes)


def _is_wrong(verdict: Verified | Skipped | Failed) -> bool:
    return isinstance(verdict, Failed) or (isinstance(verdict, Verified) and not verdict.passed)


def _word(verdict: Verified | Skipped | Failed) -> str:
    match verdict:
        case Verified(passed=True):
            return "right"
        case Verified(check=check):
            return (
                f"WRONG, out errs by {check.out_error:.2e} (budget {check.out_budget:.2e}), "
                f"lse by {check.lse_error:.2e} (budget {check.lse_budget:.2e})"
            )
        case Skipped(reason=reason):
            return f"skipped, {reason}"
        case Failed(fault=fault, message=message):
            return f"FAILED, {fault}: {message}"


def _details(verdict: Verified | Skipped | Failed) -> dict[str, Any]:
    match verdict:
        case Verified(check=check, apart=apart):
            return asdict(check) | {"apart": apart}
        case _:
            return asdict(verdict)
