"""``dcpbench recommend``: which dcp size to run for a model and its traffic, from what was measured before."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import completion
from bench.cli.exits import Exit
from bench.cli.known import Known, Sources, find, this_machine
from bench.cli.options import Json
from bench.cli.recommend_map import answer_all
from bench.cli.recommend_options import GPU_MEMORY, Asked, Given, Memory
from bench.cli.recommend_traffic import served_by, write_sweep
from bench.cli.screen import draw, emit, put_shell, say, warn
from bench.errors import UsageError
from dcp_core.memory import parse_tokens

if TYPE_CHECKING:
    from bench.recommend.evidence import Evidence
    from bench.recommend.recommend import Recommendation
    from bench.record import Environment
    from bench.report.vllm import Serving
    from dcp_core.shapes import ModelShape

UNLESS_TOLD = "h200"
"""The GPU whose memory is meant where neither the user nor a profile tells one: the one that a reference ships for."""


def recommend(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Preset, config.json, or q64,kv4,d128,l94.",
            metavar="NAME",
            autocompletion=completion.models,
        ),
    ],
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size: the GPUs that you have.")],
    traffic: Asked,
    memory: Memory,
    given: Given,
    json: Json = False,
) -> int:
    r"""Say which dcp size to run for a model and its traffic, and how that is known; "leave DCP off" is an answer.

    Asks profiles, those that ship with dcpbench if there are no others: nothing is measured, and no GPU is needed. What
    nobody measured is a bracket, and an answer is firm where it holds over all of it.

    Examples:
      dcpbench recommend --model qwen3-235b-a22b --tp 8 \
          --context 32k --concurrency 64
      dcpbench recommend --model qwen3-235b-a22b --tp 8 \
          --context 32k --concurrency 32 --chunk 8k --weights 60GiB
      dcpbench recommend --model qwen3-235b-a22b --tp 8 --map
      dcpbench recommend --model qwen3-235b-a22b --tp 8 --map \
          --context 8k,64k --concurrency 1,8,64 --weights 60GiB
      dcpbench recommend --model qwen3-235b-a22b --tp 8 --trace requests.csv
    """
    from bench.recommend.decision import Limits as AssumedLimits
    from bench.recommend.grounds import Grounds
    from bench.recommend.recommend import rooms_of
    from bench.report import advice
    from bench.report.advice_json import to_json
    from dcp_core.layout import DcpLayout
    from dcp_core.serving import Limits
    from dcp_core.shapes import ModelShape

    shape = ModelShape.parse(model)
    DcpLayout(tp).check(shape)
    server = Limits(
        parse_tokens(traffic.max_batched_tokens), traffic.max_sequences, parse_tokens(traffic.max_model_len)
    ).captured_as_vllm_does()
    known, notes = _profiles(model, shape, tp, given)
    measured = known[1].profile.environment if known else None
    device = measured.hard.get("device_name", "") if measured else ""
    gpu, multiprocessors = _gpu(given, measured)
    rooms = rooms_of(
        shape,
        tp,
        budget=memory.budget(gpu),
        upper=memory.weights is None,
        server=server,
        multiprocessors=multiprocessors,
    )
    evidence = _evidence(known)
    limits = AssumedLimits(given.bracket(), device)
    grounds = Grounds(model, shape, tp, evidence, limits, rooms, given.slo_us)
    if traffic.map:
        notes = [*(known[1].notes if known else ()), *notes]
        return answer_all(grounds, traffic, notes, {dcp: one.path for dcp, one in known.items()}, json=json)
    served, said = served_by(traffic, shape, tp, evidence.get(1), rooms[1])
    found = grounds.recommend(served)
    notes += said
    if traffic.sweep is not None:
        notes.append(write_sweep(traffic.sweep, found))
    notes = [*(known[1].notes if known else ()), *notes]
    command = _serve(found, known)
    if json:
        files = {str(dcp): str(one.path) for dcp, one in known.items()}
        serve = {"flags": dict(command.flags), "environment": dict(command.environment), "notes": list(command.notes)}
        emit({**to_json(found), "serve": serve, "notes": notes, "profiles": files})
        return Exit.DONE
    for note in notes:
        warn(note)
    say(advice.paragraph(found))
    say()
    if found.decision is not None:
        draw(advice.options_grid(found))
        say()
    draw(advice.room_grid(found))
    for sentence in advice.changes(found):
        say(sentence)
    say()
    put_shell(command.to_text())
    return Exit.DONE


def _profiles(model: str, shape: ModelShape, tp: int, given: Given) -> tuple[dict[int, Known], list[str]]:
    """Return the profile of each legal dcp size, as far as there are some of one machine, and what to say of others.

    Raises:
        UsageError: if there is something to compare, and none for dcp 1.
    """
    from bench.profile.entry import Geometry
    from dcp_core.layout import DcpLayout, legal_dcps

    sources = Sources(given.profile, given.gpu, given.anyway, given.results)
    here = cache(this_machine)
    found: dict[int, Known] = {}
    notes = []
    for dcp in legal_dcps(shape, tp):
        layout = DcpLayout(tp, dcp)
        heads = layout.heads(shape)
        geometry = Geometry(heads.gathered, heads.kv, shape.head_dim, shape.dtype, shape.cache_dtype)
        try:
            one = find(geometry, sources, f"{shape.name} with {layout}", here=here)
        except UsageError as error:
            if dcp == 1 and len(legal_dcps(shape, tp)) > 1:
                sizes = ",".join(map(str, legal_dcps(shape, tp)))
                raise UsageError(
                    f"{error}; measure it with 'dcpbench tune --model {model} --tp {tp} --dcp {sizes} --context … "
                    f"--concurrency …' on the GPU"
                ) from None
            notes.append(f"dcp {dcp}: {error}.")
            continue
        if found and (apart := found[1].profile.environment.differences(one.profile.environment)):
            notes.append(
                f"dcp {dcp}: {one.path} is another machine's than that of dcp 1 ({'; '.join(apart)}): left out."
            )
            continue
        found[dcp] = one
    return found, notes


def _gpu(given: Given, measured: Environment | None) -> tuple[str, int]:
    """Return the GPU's name, as given or as a profile tells it, short if it is known, and its multiprocessors.

    Raises:
        UsageError: for a profile that was measured without a GPU.
    """
    from dcp_core.serving import multiprocessors_of

    device = measured.hard.get("device_name", "") if measured else ""
    words = (given.gpu or device or UNLESS_TOLD).strip().lower().split()
    known = next((name for name in GPU_MEMORY if name in words), "")
    if known or given.gpu or not measured:
        name = known or words[-1]
        return name, multiprocessors_of(name)
    if "sm_count" not in measured.soft:
        raise UsageError(
            f"{device} is no GPU, and what was measured on it says nothing of one: ask with the profile of a GPU, or --gpu h200"
        )
    return device, int(measured.soft["sm_count"])


def _evidence(known: dict[int, Known]) -> dict[int, Evidence]:
    """Join each profile with the runs beside it, where its exchanges may have been measured; dcp 1 has none."""
    from bench.recommend.evidence import Evidence, Exchanges, Telling
    from bench.shipped import runs_beside
    from bench.store import Store

    @cache
    def beside(folder: Path) -> Exchanges:
        telling = Telling({dcp: one.profile for dcp, one in known.items()})
        return Exchanges.of(Store.read(folder, reader=telling)[0])

    return {
        dcp: Evidence(one.profile, partial(beside, runs_beside(one.path)))
        if dcp > 1 and one.path.parent.name == "profiles"
        else Evidence(one.profile)
        for dcp, one in known.items()
    }


def _serve(found: Recommendation, known: dict[int, Known]) -> Serving:
    """Return vLLM's flags for the answer, from the measured batches that it rests on, and with the exchange of its times."""
    from bench.recommend.evidence import ENGINE_EXCHANGES
    from bench.record import Environment
    from bench.report.vllm import serving
    from dcp_core.layout import DcpLayout

    dcp = found.answer.dcp
    layout, decision = DcpLayout(found.tp, dcp), found.decision
    one = next((one for one in decision.options if one.layout.dcp == dcp), None) if decision else None
    basis = {batch for part in one.parts for batch in part.step.basis} if one else set()
    profile = known[dcp].profile if dcp in known else None
    entries = [entry for entry in profile.answering(layout) if entry.workload in basis] if profile else []
    environment = profile.environment if profile else Environment({})
    exchange = one.via if one and one.via in ENGINE_EXCHANGES else None
    return serving(entries, environment, layout, workspace_bytes=found.rooms[dcp].workspace, exchange=exchange)
