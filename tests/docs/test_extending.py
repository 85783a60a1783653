"""The kernel of docs/extending.md, run as it stands there, through the seams that every kernel goes through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import dcp_core.build
from dcp_core.mesh import Mesh
from dcp_core.settings import Unsupported
from tests.dcp_core.paths.group import Group, case

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setattr(dcp_core.build, "open_kernel", lambda name: names["PageByPage"]())


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
