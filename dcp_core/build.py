"""From a case to an open path: every choice is made here, and only what was chosen is imported. Floor 6."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcp_core.arithmetic import TORCH, Arithmetic
from dcp_core.cache import PagedCache, PageTable
from dcp_core.exchange.base import Exchange
from dcp_core.kernels.base import Kernel, Masking, Pass, PassKind, PassSpec
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh, MeshError
from dcp_core.paths.base import Path, PlanStage, Recipe, Site, Stage
from dcp_core.settings import Batching, Case, ExchangeName, KernelName, PathName, Unsupported
from dcp_core.shapes import Workload


def open_path(case: Case, mesh: Mesh) -> Path | SimulatedPath:
    """Open the path of a case on the ranks of a mesh.

    Args:
        case: what to run; its workload tells which kind of batch the path will plan.
        mesh: of ``case.layout.dcp`` ranks. For a whole simulated group the result serves every rank at once.

    Raises:
        MeshError: if the mesh has another size.
        Unsupported: if a kernel or exchange cannot run this here, with the reason.
    """
    if mesh.size != case.layout.dcp:
        raise MeshError(f"a case of dcp {case.layout.dcp} needs a mesh of as many ranks, not {mesh.size}")
    if mesh.whole:
        return SimulatedPath(mesh, [_open_for_rank(case, member) for member in mesh.members()])
    return _open_for_rank(case, mesh)


class SimulatedPath:
    """The path of every rank of a simulated group: as ``Path``, with one entry per rank where ranks differ."""

    def __init__(self, mesh: Mesh, ranks: Sequence[Path]) -> None:
        self.ranks = tuple(ranks)
        self.case = self.ranks[0].case
        self._mesh = mesh

    def plan(self, workload: Workload, tables: Sequence[PageTable] | None = None) -> None:
        """Prepare every rank for a batch.

        Raises:
            ValueError: if there is not one table per rank, and as ``Path.plan``.
        """
        if tables is not None:
            self._check_one_each("page tables", tables)
        for rank, path in enumerate(self.ranks):
            path.plan(workload, tables[rank] if tables else None)

    def run(
        self, q: Sequence[Tensor], k_new: Tensor, v_new: Tensor, caches: Sequence[PagedCache], out: Sequence[Tensor]
    ) -> list[Partial]:
        """Run a step on every rank; new keys and values are the same for all.

        Raises:
            ValueError: if there is not one of each per rank, and as ``Path.run``.
        """
        for name, each in (("q", q), ("caches", caches), ("out", out)):
            self._check_one_each(name, each)
        return self._mesh.each(lambda rank: self.ranks[rank].run(q[rank], k_new, v_new, caches[rank], out[rank]))

    def stages(self) -> tuple[Stage, ...]:
        """Return what a step of rank 0 consists of, in order: by name the same on every rank.

        One that communicates meets its peers' at the board, so ``run`` is what runs them all.
        """
        return self.ranks[0].stages()

    def _check_one_each(self, name: str, each: Sequence[object]) -> None:
        if len(each) != len(self.ranks):
            raise ValueError(f"a group of {len(self.ranks)} needs as many {name}, one per rank, not {len(each)}")


def open_kernel(name: KernelName) -> Kernel:
    """Return a kernel by name, importing its library."""
    if name is KernelName.REFERENCE:
        from dcp_core.kernels.reference import Reference

        return Reference()
    from dcp_core.kernels.flashinfer import FlashInfer

    return FlashInfer(name)


def open_exchange(case: Case, mesh: Mesh) -> Exchange:
    """Return the exchange of a case for one rank of a mesh.

    Raises:
        Unsupported: if the mesh cannot carry it.
    """
    heads, head_dim = case.layout.heads(case.shape), case.shape.head_dim
    dtype, arithmetic = getattr(torch, case.shape.dtype), arithmetic_for(mesh.device)
    name = case.settings.exchange
    if mesh.board is None and name is ExchangeName.LOOPBACK:
        raise Unsupported("exchange loopback needs a simulated group, whose ranks share one process")
    if mesh.board is not None and name not in (ExchangeName.LOOPBACK, ExchangeName.ALONE):
        raise Unsupported(
            f"exchange {name} needs {case.layout.dcp} real ranks; in a simulated group the exchange is loopback"
        )
    match name:
        case ExchangeName.ALONE:
            from dcp_core.exchange.alone import Alone

            return Alone()
        case ExchangeName.LOOPBACK if mesh.board is not None:
            from dcp_core.exchange.loopback import Loopback

            return Loopback(mesh.board, mesh.rank, heads.kv, arithmetic)
        case ExchangeName.A2A:
            from dcp_core.exchange.a2a import AllToAll

            return AllToAll(mesh, heads, head_dim, dtype, arithmetic)
        case ExchangeName.DIRECT:
            from dcp_core.exchange.direct import Direct

            return Direct(mesh, heads, head_dim, dtype)
        case _:
            from dcp_core.exchange.ag_rs import AllGatherReduceScatter

            return AllGatherReduceScatter(mesh, heads, head_dim, dtype, arithmetic)


def arithmetic_for(device: torch.device) -> Arithmetic:
    """Return the Triton arithmetic on a CUDA device, torch's elsewhere."""
    if device.type != "cuda":
        return TORCH
    from dcp_core.triton_ops.combine import combine, rescale
    from dcp_core.triton_ops.merge import merge
    from dcp_core.triton_ops.pack_mask import pack_mask

    return Arithmetic(combine, merge, rescale, pack_mask)


def _open_for_rank(case: Case, mesh: Mesh) -> Path:
    site = _site(case, mesh)
    settings = case.settings
    if settings.batching is Batching.JOINED or settings.path is PathName.DECODE:
        return Path(site, _recipe(site))
    if not case.workload.is_mixed:
        kind = _decode_recipe(site) if settings.path is PathName.TP and case.workload.is_decode else _recipe(site)
        return Path(site, OneKindRecipe(kind))
    # Each path keeps buffers in its exchange, so each has one of its own.
    from dcp_core.paths.mixed import MixedRecipe

    rest = _site(case, mesh)
    return Path(site, MixedRecipe(site, Path(site, _decode_recipe(site)), Path(rest, _recipe(rest))))


class OneKindRecipe:
    """Another recipe, for batches that are not mixed: those are to run apart, which takes a path opened for one."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.stages, self.result = recipe.stages, recipe.result

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch of one kind."""
        if workload.is_mixed:
            raise ValueError(f"batching separate runs the mixed batch {workload} apart: open a path for a mixed case")
        return self._recipe.prepare(workload, table)


def _decode_recipe(site: Site) -> Recipe:
    kernel = site.case.settings.kernel_for_decode
    if site.case.settings.path is PathName.TP:
        from dcp_core.paths.tp import TpRecipe

        return TpRecipe(site, kernel, PassKind.DECODE)
    from dcp_core.paths.decode import DecodeRecipe

    return DecodeRecipe(site, kernel)


def _recipe(site: Site) -> Recipe:
    match site.case.settings.path:
        case PathName.TP:
            from dcp_core.paths.tp import TpRecipe

            return TpRecipe(site, site.case.settings.kernel, PassKind.PAGED)
        case PathName.DECODE:
            return _decode_recipe(site)
        case PathName.SPLIT:
            from dcp_core.paths.split import SplitRecipe

            return SplitRecipe(site)
        case PathName.MASK:
            from dcp_core.paths.mask import MaskRecipe

            return MaskRecipe(site)
        case PathName.FOLD:
            from dcp_core.paths.fold import FoldRecipe

            return FoldRecipe(site)


def _site(case: Case, mesh: Mesh) -> Site:
    shape, settings = case.shape, case.settings
    dtype, kv_dtype = getattr(torch, shape.dtype), getattr(torch, shape.cache_dtype)

    def open_pass(kernel: KernelName, kind: PassKind, masking: Masking, *, q_heads: int, kv_heads: int) -> Pass:
        spec = PassSpec(
            kind=kind,
            masking=masking,
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=shape.head_dim,
            dtype=dtype,
            kv_dtype=dtype if kind is PassKind.RAGGED else kv_dtype,
            page_size=settings.page_size,
            kv_layout=settings.kv_layout,
            index_device=settings.index_device,
            replayable=settings.replayable,
        )
        return open_kernel(kernel).open(spec, mesh.device)

    return Site(
        case=case,
        rank=mesh.rank,
        device=mesh.device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        heads=case.layout.heads(shape),
        exchange=open_exchange(case, mesh),
        arithmetic=arithmetic_for(mesh.device),
        open_pass=open_pass,
    )
