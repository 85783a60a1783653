"""The kernel, the exchange and the path of docs/extending.md, run as they stand there, through the seams of all others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dcp_core.build
from bench.report import exchange_cost
from dcp_core.arithmetic import TORCH
from dcp_core.exchange.base import Exchange
from dcp_core.lse import LseBase
from dcp_core.mesh import Mesh
from dcp_core.paths.base import Site
from dcp_core.paths.gathered import Local
from dcp_core.settings import Case, ExchangeName, PathName, Unsupported
from tests.dcp_core.exchange import made_partials
from tests.dcp_core.exchange.made_partials import Exchanged, Traffic, agree, exchange, looped_back
from tests.dcp_core.paths.group import Group, case
from tests.ranks import on_ranks

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def written(name: str) -> Any:
    """Return a class of the page, made by the one block that has it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if f"class {name}:" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names[name]


@pytest.fixture
def page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp_core.build, "open_kernel", lambda name: written("PageByPage")())


@pytest.fixture
def token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of ``mask``, beside the decodes of a batch."""
    others, mine = dcp_core.build._local, written("TokenByToken")

    def local(site: Site, name: PathName, *, shared: bool) -> Local:
        return mine(site) if name is PathName.MASK else others(site, name, shared=shared)

    monkeypatch.setattr(dcp_core.build, "_local", local)


@pytest.mark.usefixtures("page_by_page")
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
@pytest.mark.parametrize(
    ("path", "dcp", "batch"),
    [
        ("tp", 1, "q7s9_q17s130_3q1s37"),
        ("decode", 2, "q1s1_q1s2_3q1s37_q1s401"),
        ("decode", 8, "q1s1_q1s2_3q1s37_q1s401"),
        ("fold", 2, "q5s5_q1s3_q17s130_q1s64_q2s3"),
        ("fold", 3, "q8s25_q64"),
    ],
)
def test_the_kernel_of_the_page_is_right_on_every_row(path: str, dcp: int, batch: str, kv_layout: str) -> None:
    check = Group(case(batch, dcp=dcp, path=path, kv_layout=kv_layout)).check()
    assert check.passed, check


@pytest.mark.usefixtures("page_by_page")
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"path": "split"}, "reads pages; a ragged pass over new tokens needs another kernel"),
        ({"path": "mask"}, "takes no custom mask, and packed is one"),
    ],
)
def test_what_the_kernel_of_the_page_cannot_do_it_refuses_in_a_sentence(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        dcp_core.build.open_path(case("q8s25", dcp=2, **settings), Mesh.simulated(2, "cpu"))


@pytest.mark.usefixtures("token_by_token")
@pytest.mark.parametrize("batching", ["separate", "shared", "joined"])
@pytest.mark.parametrize(
    ("dcp", "interleave", "batch"),
    [(2, 1, "q1s3_q1s64_q5s5_q17s130_q2s3"), (3, 1, "q8s25_q64"), (4, 16, "2q1s37_q7s90_q2s2")],
)
def test_the_path_of_the_page_is_right_on_every_row(dcp: int, interleave: int, batch: str, batching: str) -> None:
    check = Group(case(batch, dcp=dcp, path="mask", interleave=interleave, batching=batching)).check()
    assert check.passed, check


TRAFFIC = {
    "several KV heads": Traffic(dcp=2, query=6, kv=3),
    "one KV head": Traffic(dcp=2, query=2, kv=1),
    "one token": Traffic(dcp=2, tokens=1, empty=False),
    "base two": Traffic(dcp=2, base=LseBase.TWO),
    "bfloat16": Traffic(dcp=2, dtype="bfloat16"),
}


def opened_from_the_page(case: Case, mesh: Mesh) -> Exchange:
    exchange: Exchange = written("EverythingToAll")(mesh, case.layout.heads(case.shape), TORCH)
    return exchange


def everything(mesh: Mesh) -> dict[str, Exchanged]:
    made_partials.open_exchange = opened_from_the_page  # in this rank's process only
    return {name: exchange(mesh, traffic, ExchangeName.A2A) for name, traffic in TRAFFIC.items()}


def test_the_exchange_of_the_page_gives_between_processes_what_the_loopback_gives() -> None:
    ranks = on_ranks(2, everything)
    for name, traffic in TRAFFIC.items():
        for got, expected in zip((rank[name] for rank in ranks), looped_back(traffic), strict=True):
            assert torch.equal(got.gathered, expected.gathered)
            agree(got.combined, expected.combined, traffic, ExchangeName.A2A)
            agree(got.into, expected.combined, traffic, ExchangeName.A2A)


def test_every_exchange_that_communicates_has_a_colour_and_a_marker() -> None:
    communicating = set(ExchangeName) - {ExchangeName.ALONE, ExchangeName.LOOPBACK}
    assert exchange_cost.COLOURS.keys() == exchange_cost.MARKERS.keys() == communicating
