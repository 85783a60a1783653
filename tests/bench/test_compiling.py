"""Kernels that are compiled are told of, if they take their time, and whatever a library does the worker goes on."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import bench.compiling
from bench.compiling import Compiles, watch
from bench.orders import Compiling
from bench.worker import tell_compiles


class Heard(list[Compiling]):
    """What was told, and the moment at which it was."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def __call__(self, one: Compiling) -> None:
        self.append(one)
        self.came.set()

    def words(self) -> list[tuple[str, bool]]:
        return [(one.kernel, one.ended) for one in self]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Return what hears of every kernel that is watched for a moment."""
    monkeypatch.setattr(bench.compiling, "AFTER_S", 0.0)
    return Heard()


def test_a_kernel_that_takes_its_time_is_told_of_twice(heard: Heard) -> None:
    with Compiles(heard).of("decode"):
        assert heard.came.wait(10)
    assert heard.words() == [("decode", False), ("decode", True)]
    assert 0 <= heard[0].seconds <= heard[1].seconds


def test_what_a_cache_answers_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.compiling, "AFTER_S", 3600.0)
    heard = Heard()
    with Compiles(heard).of("decode"):
        pass
    assert heard == []


def test_a_kernel_that_fails_is_told_to_have_ended(heard: Heard) -> None:
    def fail() -> None:
        with Compiles(heard).of("decode"):
            assert heard.came.wait(10)
            raise RuntimeError("nvcc is missing")

    with pytest.raises(RuntimeError, match="nvcc"):
        fail()
    assert heard.words() == [("decode", False), ("decode", True)]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for FlashInfer and Triton, as far as they are watched."""

    class JitSpec:
        name = "batch_decode_with_kv_cache_dtype_q_bf16_dtype_kv_bf16"

        def build_and_load(self, *, then: Any) -> str:
            assert then.wait(10)
            return "a module"

    core: Any = ModuleType("flashinfer.jit.core")
    core.JitSpec = JitSpec

    class JITFunction:
        fn = SimpleNamespace(__name__="_combine")

        def _do_compile(self, then: Any) -> str:
            assert then.wait(10)
            return "a kernel"

    jit: Any = ModuleType("triton.runtime.jit")
    jit.JITFunction = JITFunction
    for name, module in {
        "flashinfer": ModuleType("flashinfer"),
        "flashinfer.jit": ModuleType("flashinfer.jit"),
        "flashinfer.jit.core": core,
        "triton": ModuleType("triton"),
        "triton.runtime": ModuleType("triton.runtime"),
        "triton.runtime.jit": jit,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(spec=JitSpec, function=JITFunction)


def test_flashinfer_s_builds_are_told_by_the_first_part_of_their_names(
    heard: Heard, libraries: SimpleNamespace
) -> None:
    watch(Compiles(heard))
    assert libraries.spec().build_and_load(then=heard.came) == "a module"
    assert heard.words() == [("batch_decode_with_kv_cache", False), ("batch_decode_with_kv_cache", True)]


def test_triton_s_kernels_are_told_by_their_names(heard: Heard, libraries: SimpleNamespace) -> None:
    watch(Compiles(heard))
    assert libraries.function()._do_compile(heard.came) == "a kernel"
    assert heard.words() == [("_combine", False), ("_combine", True)]


def test_libraries_that_do_not_let_themselves_be_watched_are_left_alone(
    heard: Heard, libraries: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer.jit.core", None)
    monkeypatch.setattr(libraries.function, "_do_compile", None)
    monkeypatch.delattr(sys.modules["triton.runtime.jit"], "JITFunction")
    watch(Compiles(heard))
    assert libraries.function._do_compile is None


def test_what_is_watched_is_what_these_versions_of_the_libraries_have() -> None:
    from flashinfer.jit.core import JitSpec, JitSpecNvcc
    from triton.runtime.jit import JITFunction

    assert JitSpecNvcc.build_and_load is JitSpec.build_and_load
    assert callable(JITFunction._do_compile)


@pytest.mark.parametrize(("rank", "device", "tells"), [(0, "cuda", True), (1, "cuda", False), (0, "cpu", False)])
def test_rank_0_says_what_it_compiles_on_a_gpu(
    rank: int, device: str, tells: bool, heard: Heard, libraries: SimpleNamespace
) -> None:
    def say(line: dict[str, Any]) -> None:
        heard(Compiling.read(line["compiling"]))

    mesh: Any = SimpleNamespace(rank=rank, device=SimpleNamespace(type=device))
    tell_compiles(mesh, say)
    if not tells:
        heard.came.set()  # nobody else will
    assert libraries.function()._do_compile(heard.came) == "a kernel"
    assert heard.words() == ([("_combine", False), ("_combine", True)] if tells else [])
