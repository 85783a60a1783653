"""The block of docs/api.md for one rank of a group, run as it stands there on every rank of one, but for what needs a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.check import Check
from dcp_core.mesh import Mesh
from dcp_core.oracle import judge
from tests.dcp_core.paths.group import Group
from tests.ranks import on_ranks

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
ELSEWHERE = {'kernel="fa2"': 'kernel="reference"', 'exchange="direct"': 'exchange="ag_rs"'}
"""What the page chooses for GPUs, and what stands for it where there are none."""


def block() -> str:
    """Return the page's block, for a machine without GPUs."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for chosen, instead in ELSEWHERE.items():
        assert code.count(chosen) == 1
        code = code.replace(chosen, instead)
    return code


def as_the_page_says(mesh: Mesh) -> tuple[Check, bool]:
    """Run the block on a rank, with what an engine brings; tell how right the result is, and whether it is ``out``."""
    shape, layout = ModelShape(16, 1, 128), DcpLayout(2, 2)  # what two ranks of the page's eight hold
    settings = Settings(path="fold", kernel="reference", exchange="loopback")
    group = Group(Case(shape, layout, Workload.parse("8q1s32k_q4s32k"), settings))
    inputs, rank = group.inputs, mesh.rank
    brought: dict[str, Any] = {
        "workload": group.case.workload,
        "table": group.tables[rank],
        "cache": group.caches[rank],
        "q": inputs.queries[rank],
        "k_new": group.new(inputs.keys),
        "v_new": group.new(inputs.values),
        "out": torch.full_like(inputs.queries[rank], float("nan")),
    }
    with patch.object(Mesh, "from_env", lambda: mesh):  # which this rank came from: a group is joined once
        exec(block(), brought)
    assert brought["case"].workload == brought["workload"]
    return judge(brought["result"], inputs.truths[rank]), brought["result"].out is brought["out"]


def test_the_block_for_one_rank_of_a_group_is_right_on_both_ranks_of_one() -> None:
    for check, is_out in on_ranks(2, as_the_page_says):
        assert check.passed, check
        assert is_out
