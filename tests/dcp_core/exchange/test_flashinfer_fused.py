"""FlashInfer's own exchanges: what the machine is asked, and what is said of each."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from dcp_core.exchange.flashinfer_fused import ALL_TO_ALL, REDUCE, refusals

GPU = torch.device("cuda", 1)


@pytest.fixture
def comm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put a FlashInfer in place that has both exchanges, on a machine whose device 0 alone has fabric memory."""
    package, made, fabric = (ModuleType(f"flashinfer{name}") for name in ("", ".comm", ".comm.mnnvl"))
    package.comm = made  # type: ignore[attr-defined]
    fabric.is_mnnvl_fabric_supported = lambda index: index == 0  # type: ignore[attr-defined]
    for module in (package, made, fabric):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in (ALL_TO_ALL, REDUCE):
        setattr(made, name, None)
    return made


def test_each_says_what_this_machine_lacks(comm: ModuleType) -> None:
    found = refusals(GPU)
    assert found[ALL_TO_ALL].endswith("and hangs without it: cuda:1 has none")
    assert found[REDUCE].startswith("returns no LSE")


def test_fabric_memory_is_asked_for_and_not_assumed_away(comm: ModuleType) -> None:
    assert refusals(torch.device("cuda", 0))[ALL_TO_ALL] == "would run, and dcpbench has no adapter to it"


def test_a_driver_that_does_not_answer_is_told(comm: ModuleType) -> None:
    def unanswered(index: int) -> bool:
        raise RuntimeError("no driver")

    sys.modules["flashinfer.comm.mnnvl"].is_mnnvl_fabric_supported = unanswered  # type: ignore[attr-defined]
    assert refusals(GPU)[ALL_TO_ALL].endswith("could not be found out (RuntimeError: no driver)")


def test_a_flashinfer_without_them_or_none_at_all_is_told(comm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    delattr(comm, REDUCE)
    assert refusals(GPU)[REDUCE] == "this version of FlashInfer lacks it"
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setitem(sys.modules, "flashinfer.comm", None)
    assert set(refusals(GPU).values()) == {"FlashInfer is not installed here"}
