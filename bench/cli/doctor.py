"""``dcpbench doctor``: whether this machine is fit to measure, what runs here, and why the rest does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from bench.cli.exits import Exit
from bench.cli.options import Json, ranks_here, session_of
from bench.cli.screen import ASKING, draw, emit, say, waiting, warn
from bench.grid import Column, Grid

if TYPE_CHECKING:
    from bench.fitness import Finding


def doctor(invocation: typer.Context, json: Json = False) -> int:
    """Say whether this machine is fit to measure and what to do if not, and which kernels and exchanges run here.

    Reads what the driver tells of the GPUs, and changes nothing; then starts the workers that a run would start, and asks
    them. Ends with exit code 4 if nothing should be measured: other work on a GPU, a driver that is too old for torch, no
    kernel that runs, or a GPU that none of FlashInfer's kernels can use.

    Examples:
      dcpbench doctor
      dcpbench --ranks 2 doctor --json
    """
    from bench.environment import clocks, devices, fingerprint
    from bench.errors import UnfitError
    from bench.fitness import at_work, fitness, timer
    from bench.policy import Policy
    from bench.supervisor import Supervisor

    found, environment = devices(), fingerprint()
    ranks = ranks_here(session_of(invocation).ranks, len(found))
    gpus = [
        {"name": one.name, "total_bytes": one.total_bytes, "free_bytes": one.free_bytes, **clocks(index)}
        for index, one in enumerate(found)
    ]
    findings = fitness(environment)
    probe: dict[str, Any] = {"kernels": {}, "exchanges": {}, "flashinfer_exchanges": {}}
    problem = next((str(finding) for finding in findings if finding.is_unfit), "")
    try:
        with Supervisor(ranks, Policy()) as supervisor, waiting(ASKING):
            probe = supervisor.probe()
        findings += [timer(probe["timer"], probe["timer_floor_us"]), *at_work(probe["paces"])]
    except UnfitError as unfit:
        problem = problem or str(unfit)
    problem = problem or _problem(probe["kernels"], on_gpu=bool(found))
    if json:
        refused = dict(_refused())
        emit(
            {
                "devices": gpus,
                "hard": environment.hard,
                "soft": environment.soft,
                "fitness": [asdict(finding) for finding in findings],
                **probe,
                "refused": refused,
                "problem": problem,
            }
        )
    else:
        _show(gpus, environment.hard | environment.soft, findings, probe, problem)
    if problem:
        warn(f"dcpbench: unfit: {problem}")
        return Exit.UNFIT
    return Exit.DONE


def _problem(kernels: dict[str, str], *, on_gpu: bool) -> str:
    """Say why this machine is unfit, or nothing."""
    usable = [name for name, reason in kernels.items() if not reason]
    if not usable:
        return "no kernel runs here"
    if on_gpu and usable == ["reference"]:
        return "there is a GPU, and none of FlashInfer's kernels can use it"
    return ""


def _show(
    gpus: list[dict[str, Any]], about: dict[str, str], findings: Sequence[Finding], probe: dict[str, Any], problem: str
) -> None:
    from bench.fitness import answer
    from dcp_core.memory import format_size

    columns = (
        Column("device", wrap=True),
        Column("free", right=True),
        Column("of", right=True),
        Column("now", wrap=True),
    )
    rows = tuple(
        (gpu["name"], format_size(gpu["free_bytes"]), format_size(gpu["total_bytes"]), _state(gpu)) for gpu in gpus
    )
    if rows:
        draw(Grid("GPUs", columns, rows))
    else:
        say("No GPU: torch's reference kernel runs on the CPU, groups of ranks over gloo.")
    say()
    fit = (Column("what", wrap=True), Column("found", wrap=True), Column("to do", wrap=True))
    judged = tuple((finding.about, finding.found, finding.advice or "–") for finding in findings)
    answered = f"Fit to measure? {answer(findings, problem, on_gpu=bool(gpus))}"
    if judged:
        draw(Grid(answered, fit, judged))
    else:
        say(answered)
    say()
    draw(
        Grid(
            "Environment",
            (Column("what"), Column("found", wrap=True)),
            tuple((name, about[name]) for name in sorted(about)),
        )
    )
    say()
    what = (Column("name"), Column("here", wrap=True))
    titles = {
        "kernels": "Kernels",
        "exchanges": "Exchanges",
        "flashinfer_exchanges": "FlashInfer's own exchanges for DCP: none serves",
    }
    for part, title in titles.items():
        if answers := probe[part]:
            draw(Grid(title, what, tuple((name, reason or "yes") for name, reason in answers.items())))
            say()
    draw(
        Grid(
            "Kernels of FlashInfer that cannot serve DCP", (Column("name"), Column("why", wrap=True)), tuple(_refused())
        )
    )


def _state(gpu: dict[str, Any]) -> str:
    names = {"sm_mhz": "MHz", "temperature_c": "°C", "power_w": "W", "processes": "processes"}
    return ", ".join(f"{gpu[name]} {unit}" for name, unit in names.items() if name in gpu)


def _refused() -> tuple[tuple[str, str], ...]:
    from dcp_core.refused import REFUSED

    return REFUSED
