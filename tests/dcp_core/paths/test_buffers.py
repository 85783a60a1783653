"""A captured graph reads the buffers of the plan it was captured under: the next batch of that size must keep them."""

from __future__ import annotations

import pytest
import torch

from dcp_core import Workload
from dcp_core.build import SimulatedPath, open_path
from dcp_core.mesh import Mesh
from dcp_core.paths.fold import FoldLocal
from dcp_core.settings import IllegalSettings
from tests.dcp_core.paths.group import case


def buffers(path: SimulatedPath) -> list[int]:
    """Return where rank 0's step keeps what it hands from stage to stage."""
    recipe = path.ranks[0]._recipe
    gathered = getattr(recipe, "_recipe", recipe)
    found = [gathered._rows.room.out, gathered._rows.lse]
    if isinstance(gathered._local, FoldLocal):
        local = gathered._local
        found += [local._folded_room.out, local._folded_room.lse, local._own.out, local._own.lse, local._earlier]
        found += [local._opened()._padded, local._opened()._indices.target]
    return [tensor.data_ptr() for tensor in found]


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [("decode", "4q1s40", "4q1s57"), ("split", "2q8s40", "2q8s57"), ("fold", "2q7s40_q5s12", "2q7s57_q5s90")],
)
def test_planning_another_batch_of_the_same_size_keeps_the_buffers(path: str, first: str, second: str) -> None:
    opened = open_path(case(first, dcp=2, path=path), Mesh.simulated(2))
    assert isinstance(opened, SimulatedPath)
    opened.plan(Workload.parse(first))
    before = buffers(opened)
    opened.plan(Workload.parse(second))
    assert buffers(opened) == before


def test_a_batch_whose_rows_a_rank_would_leave_out_is_not_called_replayable() -> None:
    assert case("2q8s10", dcp=2, path="fold", replayable=True)
    with pytest.raises(IllegalSettings, match="where every context reaches all 2 ranks"):
        case("q8s40_q8s9", dcp=2, path="fold", replayable=True)


def test_a_path_opened_for_one_kind_of_batch_refuses_a_mixed_one() -> None:
    opened = open_path(case("2q8s40", dcp=2, path="split"), Mesh.simulated(2))
    with pytest.raises(ValueError, match="open a path for a mixed case"):
        opened.plan(Workload.parse("2q1s40_q8s40"))


@pytest.mark.parametrize("wrong", ["q", "out", "dtype"])
def test_tensors_of_another_batch_are_refused(wrong: str) -> None:
    of = case("2q8s40", dcp=1, path="tp")
    opened = open_path(of, Mesh.alone())
    opened.plan(of.workload)
    heads = of.layout.heads(of.shape)
    q, out = torch.zeros(16, heads.query, of.shape.head_dim), torch.zeros(16, heads.query, of.shape.head_dim)
    new = torch.zeros(16, heads.kv, of.shape.head_dim)
    tensors = {"q": q, "out": out}
    if wrong == "dtype":
        tensors["q"] = q.double()
    else:
        tensors[wrong] = tensors[wrong][:3]
    with pytest.raises(ValueError, match="of the planned batch is"):
        opened.run(tensors["q"], new, new, None, tensors["out"])
