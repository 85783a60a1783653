"""Where the direct exchange cannot run it says so, on every rank alike, and nothing is allocated."""

from __future__ import annotations

import pytest
import torch

from dcp_core.build import open_exchange
from dcp_core.exchange.direct import refusal
from dcp_core.mesh import Mesh, MeshError
from dcp_core.settings import ExchangeName, Unsupported
from tests.dcp_core.exchange.made_partials import Traffic
from tests.ranks import on_ranks

DIRECT = Traffic(dcp=2, head_dim=128).case(ExchangeName.DIRECT)


class Pretended:
    """A mesh that says of itself what a test wants."""

    def __init__(self, *, device: str = "cpu", size: int = 2, nodes: int = 1) -> None:
        self.device, self.size, self._nodes = torch.device(device), size, nodes

    def nodes(self) -> list[str]:
        return [f"node {number}" for number in range(self._nodes)]

    def share(self, value: object) -> list[object]:
        return [value] * self.size


def reason_on(mesh: Mesh) -> str:
    try:
        open_exchange(DIRECT, mesh)
    except Unsupported as error:
        return str(error)
    return ""


def test_ranks_without_a_gpu_are_refused_alike() -> None:
    first, second = on_ranks(2, reason_on)
    assert first == second == "exchange direct writes into the memory of peers' GPUs, and this group runs on cpu"


def test_a_simulated_group_has_the_loopback() -> None:
    assert "needs 2 real ranks; in a simulated group the exchange is loopback" in reason_on(Mesh.simulated(2))


@pytest.mark.parametrize(
    ("mesh", "head_dim", "reason"),
    [
        (Pretended(nodes=2), 128, "this group spans 2 nodes"),
        (Pretended(device="cuda:0", size=9), 128, "built for groups of 2 to 8, not 9"),
        (Pretended(device="cuda:0"), 512, "built for head dims from 64 to 256, not 512"),
        (Pretended(device="cuda:0"), 128, ""),
    ],
)
def test_each_bound_has_its_sentence(mesh: Pretended, head_dim: int, reason: str) -> None:
    found = refusal(mesh, head_dim)  # type: ignore[arg-type]
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_group_without_real_ranks_shares_no_memory() -> None:
    assert len(Mesh.alone().nodes()) == 1
    with pytest.raises(MeshError, match="memory is shared among the real ranks of a group"):
        Mesh.alone().symmetric(1024)
