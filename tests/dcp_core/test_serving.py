"""A server's rank: what its scheduler may send, and the workspace that vLLM allocates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dcp_core import DcpLayout, ModelShape
from dcp_core.layout import IllegalLayout
from dcp_core.serving import Limits, Server, multiprocessors_of
from dcp_core.workspace import WorkspaceError

QWEN = ModelShape.preset("qwen3-235b-a22b")
VLLM = Limits().captured_as_vllm_does()
SERVER = Server(QWEN, DcpLayout(8, 2), VLLM, 132)


def test_captured_decodes_are_those_of_vllm() -> None:
    assert len(VLLM.captured) == 51
    assert VLLM.captured[:6] == (1, 2, 4, 8, 16, 24)
    assert VLLM.captured[-2:] == (496, 512)
    assert max(Limits(8192, 100).captured_as_vllm_does().captured) == 96
    assert Limits(1, 1).captured_as_vllm_does().captured == (1,)
    assert SERVER.wrappers == 54


def test_a_small_setting_gives_back_no_more_than_vllm_lets_go() -> None:
    assert SERVER.float_workspace(1) == 8192 * 8 * 128 * 16 == 128 << 20
    assert SERVER.float_workspace() == 394 << 20
    assert SERVER.float_workspace(500 << 20) == 500 << 20
    large = replace(SERVER, limits=Limits(max_batched_tokens=32768))
    assert large.float_workspace(1) == large.float_workspace() == 512 << 20


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(WorkspaceError, match="max_sequences is a positive whole number, not 0"):
        Limits(max_sequences=0)
    with pytest.raises(WorkspaceError, match="a captured batch has 1 to 4 decodes under these limits, not 8"):
        Limits(max_sequences=4, captured=(1, 8))
    with pytest.raises(IllegalLayout):
        replace(SERVER, layout=DcpLayout(7))
    with pytest.raises(WorkspaceError, match="known for FlashInfer"):
        replace(SERVER, version="9")


def test_a_gpu_is_known_by_name_or_by_its_multiprocessors() -> None:
    assert [multiprocessors_of(gpu) for gpu in ("h200", "NVIDIA H100", "A100", "l40s", "b200", "160")] == [
        132,
        132,
        108,
        142,
        148,
        160,
    ]
    for gpu in ("h201", "", "0", "١٣٢", "99999"):
        with pytest.raises(WorkspaceError, match="known: a100, b200, h100, h20, h200, l40s, or give its number"):
            multiprocessors_of(gpu)
