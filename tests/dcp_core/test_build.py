"""From a case to an open path: what was chosen is what runs, and what cannot run says why."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dcp_core.arithmetic import TORCH
from dcp_core.build import SimulatedPath, arithmetic_for, open_exchange, open_kernel, open_path
from dcp_core.kernels.base import Pass, PassKind, PassSpec
from dcp_core.layout import DcpLayout
from dcp_core.mesh import Mesh
from dcp_core.paths.base import Path as StepPath
from dcp_core.paths.base import Stage
from dcp_core.settings import Case, ExchangeName, KernelName, Settings, Unsupported
from dcp_core.shapes import ModelShape, Workload

ROOT = Path(__file__).parents[2]


def case(
    batch: str = "q8s25", *, dcp: int = 2, path: str = "split", exchange: str = "loopback", kernel: str = "reference"
) -> Case:
    settings = Settings.from_json({"path": path, "kernel": kernel, "exchange": exchange})
    return Case(ModelShape(4 * dcp, 1, 64), DcpLayout(dcp, dcp), Workload.parse(batch), settings)


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def test_a_simulated_group_opens_a_path_per_rank() -> None:
    opened = open_path(case(dcp=3), Mesh.simulated(3, "cpu"))
    assert isinstance(opened, SimulatedPath)
    assert len(opened.ranks) == 3
    assert all(path.case == case(dcp=3) for path in opened.ranks)


@pytest.mark.parametrize("path", ["tp", "split", "mask", "fold"])
def test_a_group_of_one_opens_its_path(path: str) -> None:
    alone = case(dcp=1, path=path, exchange="alone")
    opened = open_path(alone, Mesh.alone("cpu"))
    assert isinstance(opened, StepPath)
    assert opened.case == alone


def test_a_seat_of_a_simulated_group_opens_its_own_path() -> None:
    for member in Mesh.simulated(2).members():
        assert isinstance(open_path(case(), member), StepPath)


@pytest.mark.parametrize("size", [1, 3])
def test_a_mesh_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a case of dcp 2 needs a mesh of as many ranks, not {size}"):
        open_path(case(), Mesh.simulated(size))


def test_every_kernel_opens_under_its_own_name() -> None:
    for name in KernelName:
        assert open_kernel(name).name is name


@pytest.mark.parametrize("kernel", ["fa2", "fa3", "auto"])
def test_a_kernel_that_needs_a_gpu_says_so_on_a_cpu(kernel: str) -> None:
    with pytest.raises(Unsupported, match=r"CUDA|GPU"):
        open_path(case(kernel=kernel), Mesh.simulated(2, "cpu"))


def test_an_exchange_goes_with_its_mesh_or_says_why_not() -> None:
    simulated, real = Mesh.simulated(2).members()[0], Mesh(0, 2, torch.device("cpu"))
    assert open_exchange(case(), simulated).name is ExchangeName.LOOPBACK
    assert open_exchange(case(exchange="ag_rs"), real).name is ExchangeName.AG_RS
    assert open_exchange(case(exchange="a2a"), real).name is ExchangeName.A2A
    assert open_exchange(case(dcp=1, exchange="alone"), Mesh.alone()).name is ExchangeName.ALONE
    with pytest.raises(Unsupported, match="loopback needs a simulated group"):
        open_exchange(case(), real)
    for exchange in ("ag_rs", "a2a"):
        with pytest.raises(Unsupported, match=f"exchange {exchange} needs 2 real ranks"):
            open_exchange(case(exchange=exchange), simulated)


def test_the_decodes_of_a_mixed_batch_have_a_path_of_their_own() -> None:
    mixed = case("3q1s40_q8s25")
    opened = open_path(mixed, Mesh.simulated(2))
    opened.plan(mixed.workload)
    assert isinstance(opened, SimulatedPath)
    assert {name.split(": ")[0] for name in names(opened.ranks[0].stages())} == {"decode", "rest"}


def test_a_path_of_decodes_without_dcp_takes_the_decode_kernel() -> None:
    settings = Settings.from_json({"path": "tp", "kernel": "fa3", "decode_kernel": "reference", "exchange": "alone"})
    decodes = Case(ModelShape(4, 1, 64), DcpLayout(1), Workload.parse("4q1s40"), settings)
    assert isinstance(open_path(decodes, Mesh.alone()), StepPath)
    longer = Case(ModelShape(4, 1, 64), DcpLayout(1), Workload.parse("q8s40"), settings)
    with pytest.raises(Unsupported):
        open_path(longer, Mesh.alone())


@pytest.mark.parametrize("split", [{"fixed_split_size": 2}, {"disable_split_kv": True}], ids=str)
def test_how_kv_is_split_is_told_to_fa2_over_pages_alone(
    split: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[tuple[KernelName, PassKind], dict[str, object]] = {}

    def recording(kernel: KernelName) -> SimpleNamespace:
        def open_pass(spec: PassSpec, device: torch.device) -> Pass:
            told[kernel, spec.kind] = {
                "fixed_split_size": spec.fixed_split_size,
                "disable_split_kv": spec.disable_split_kv,
            }
            return open_kernel(KernelName.REFERENCE).open(spec, device)

        return SimpleNamespace(open=open_pass)

    monkeypatch.setattr("dcp_core.build.open_kernel", recording)
    settings = {
        "path": "split",
        "kernel": "fa2",
        "new_kernel": "fa3",
        "decode_kernel": "cuda_core",
        "exchange": "loopback",
    }
    asked = replace(case("q8s25_2q1s9"), settings=Settings.from_json(settings | split))
    open_path(asked, Mesh.simulated(2, "cpu"))
    silent = {"fixed_split_size": None, "disable_split_kv": False}
    assert told == {
        (KernelName.FA2, PassKind.PAGED): silent | split,
        (KernelName.FA3, PassKind.RAGGED): silent,
        (KernelName.CUDA_CORE, PassKind.DECODE): silent,
    }


def test_on_a_cpu_arithmetic_is_torch_s() -> None:
    assert arithmetic_for(torch.device("cpu")) is TORCH


def test_the_reference_kernel_loads_no_other_library() -> None:
    program = """
import sys
from dcp_core import *
from dcp_core.build import open_path
from dcp_core.mesh import Mesh
settings = Settings.from_json({"path": "fold", "kernel": "reference", "exchange": "loopback"})
open_path(Case(ModelShape(8, 1, 64), DcpLayout(2, 2), Workload.parse("q8s25"), settings), Mesh.simulated(2))
print(*(name for name in ("flashinfer", "transformers", "bench") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_overlap_without_a_gpu_s_streams_is_refused_and_not_run_otherwise() -> None:
    plain = case()
    overlapped = replace(plain, settings=replace(plain.settings, overlap=True))
    with pytest.raises(Unsupported, match="overlap needs two streams of a GPU, and this rank runs on cpu"):
        open_path(overlapped, Mesh.simulated(2, "cpu"))


def test_what_is_no_case_no_mesh_or_no_batch_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="a path is opened for a Case on a Mesh; None is no Case"):
        open_path(None, Mesh.simulated(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cpu' is no Mesh"):
        open_path(case(), "cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a batch is a Workload, as Workload\.parse\('8q1s1k'\), not 'q1'"):
        open_path(case(), Mesh.simulated(2)).plan("q1")  # type: ignore[arg-type]
