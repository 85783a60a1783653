"""Kernels are asked for shared memory once each; no driver is needed to see it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dcp_core.triton_ops import carveout


class Kernel:
    """Stands for what Triton compiled."""

    def __init__(self, function: int) -> None:
        self.function = function


def test_every_kernel_is_asked_once_also_in_the_place_of_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    driver = SimpleNamespace(cuFuncSetAttribute=lambda function, *_: asked.append(function.value))
    monkeypatch.setattr(carveout, "_driver", lambda: driver)
    for number in range(1, 5):
        kernel = Kernel(number)
        for _ in range(2):
            carveout.ask_for_shared_memory(kernel)
        del kernel
    assert asked == [1, 2, 3, 4]


def test_a_refusal_is_an_error_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carveout, "_driver", lambda: SimpleNamespace(cuFuncSetAttribute=lambda *_: 1))
    kernel = Kernel(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="error 1"):
            carveout.ask_for_shared_memory(kernel)
