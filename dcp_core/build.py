"""From a case to an open path: every choice is made here, and only what was chosen is imported. Floor 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcp_core.arithmetic import TORCH, Arithmetic
from dcp_core.cache import PagedCache, PageTable
from dcp_core.exchange.base import Exchange, FusedExchange
from dcp_core.kernels.base import Kernel, Masking, Pass, PassKind, PassSpec, decode_kind
from dcp_core.lse import Partial
from dcp_core.mesh import Mesh, MeshError
from dcp_core.paths.base import Path, PlanStage, Recipe, Site, Stage
from dcp_core.paths.gathered import GatheredRecipe, Local
from dcp_core.settings import Batching, Case, ExchangeName, KernelName, PathName, Settings, Unsupported
from dcp_core.shapes import Request, Workload

_DEFAULT = Settings()


def open_path(case: Case, mesh: Mesh) -> Path | SimulatedPath:
    """Open the path of a case on the ranks of a mesh.

    Args:
        case: what to run; its workload tells which kind of batch the path will plan.
        mesh: of ``case.layout.dcp`` ranks. For a whole simulated group the result serves every rank at once.

    Raises:
        ValueError: for what is no case, or no mesh.
        MeshError: if the mesh has another size.
        Unsupported: if a kernel or exchange cannot run this here, with the reason.

    Examples:
        Two ranks in one process: 4 new tokens of 9, tensor-parallel heads apart, keys dealt to the ranks in turns.

        >>> import torch
        >>> from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
        >>> from dcp_core.cache import PagedCache, PageTable, slot_mapping
        >>> shape, layout, batch = ModelShape.parse("q4,kv1,d16"), DcpLayout(tp=2, dcp=2), Workload.parse("q4s9")
        >>> settings = Settings(path="fold", kernel="reference", exchange="loopback")
        >>> path = open_path(Case(shape, layout, batch, settings), Mesh.simulated(2))

        Each rank keeps its shard of the sequence, the new tokens among it:

        >>> keys, values = (torch.randn(9, 1, 16, dtype=torch.bfloat16) for _ in range(2))
        >>> tables, caches = [], []
        >>> for rank in range(2):
        ...     tables.append(PageTable.over([layout.local_len(9, rank)], page_size=16))
        ...     caches.append(PagedCache.allocate(1, page_size=16, kv_heads=1, head_dim=16, dtype=torch.bfloat16))
        ...     caches[rank].append(keys, values, slot_mapping([9], [9], tables[rank], layout, rank))

        Planned once per batch, run once per layer:

        >>> q = [torch.randn(4, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
        >>> path.plan(batch, tables)
        >>> results = path.run(q, keys[5:], values[5:], caches, [torch.empty_like(each) for each in q])

        Every rank has its own heads' result over all nine tokens:

        >>> scores = q[1][0].float() @ keys[:6, 0].float().T / 4  # rank 1, the first new token: it sees six keys
        >>> torch.allclose(results[1].out[0].float(), scores.softmax(-1) @ values[:6, 0].float(), atol=0.02)
        True
    """
    for value, kind in ((case, Case), (mesh, Mesh)):
        if not isinstance(value, kind):
            raise ValueError(f"a path is opened for a Case on a Mesh; {repr(value)[:60]} is no {kind.__name__}")
    if mesh.size != case.layout.dcp:
        raise MeshError(f"a case of dcp {case.layout.dcp} needs a mesh of as many ranks, not {mesh.size}")
    if case.settings.overlap and mesh.device.type != "cuda":
        raise Unsupported(f"overlap needs two streams of a GPU, and this rank runs on {mesh.device.type}")
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
    from dcp_core.triton_ops.own_rows import attend_own_rows
    from dcp_core.triton_ops.pack_mask import pack_mask

    return Arithmetic(combine, merge, rescale, pack_mask, attend_own_rows)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Requests that settings run alike: their name, which they are, and how they attend."""

    name: str
    takes: Callable[[Request], bool]
    path: PathName


def _kinds(settings: Settings) -> list[_Kind]:
    """Return the kinds of request that settings tell apart: decodes, and the rest, or what ``fold`` takes and what not."""
    path, limit = settings.path, settings.fold_limit
    decode = _Kind("decode", lambda one: one.new == 1, PathName.TP if path is PathName.TP else PathName.DECODE)
    if path is not PathName.FOLD or limit == _DEFAULT.fold_limit:
        return [decode, _Kind("rest", lambda one: one.new > 1, path)]
    return [
        decode,
        _Kind("fold", lambda one: 1 < one.new <= limit, path),
        _Kind("split", lambda one: one.new > limit, PathName.SPLIT),
    ]


def _open_for_rank(case: Case, mesh: Mesh) -> Path:
    site, settings = _site(case, mesh), case.settings
    if settings.batching is Batching.JOINED or settings.path is PathName.DECODE:
        return Path(site, _recipe(site, settings.path))
    kinds = _kinds(settings)
    present = [kind for kind in kinds if any(map(kind.takes, case.workload.requests))]
    if len(present) == 1:
        path = settings.path if case.workload.is_decode else present[0].path
        return Path(site, OneKindRecipe(_recipe(site, path), kinds))
    if settings.batching is Batching.SHARED and case.layout.dcp > 1:
        from dcp_core.paths.shared import Kind, SharedRecipe

        shared = [Kind(kind.name, kind.takes, _local(site, kind.path, shared=True)) for kind in kinds]
        return Path(site, SharedRecipe(site, shared))
    from dcp_core.paths.mixed import KindPath, MixedRecipe

    # Each path keeps buffers in its exchange, so each has one of its own.
    apart = [KindPath(kind.name, kind.takes, _path_of(kind, _site(case, mesh))) for kind in kinds]
    return Path(site, MixedRecipe(site, apart))


def _path_of(kind: _Kind, site: Site) -> Path:
    return Path(site, _recipe(site, kind.path, decoding=kind.name == "decode"))


class OneKindRecipe:
    """Another recipe, for batches of one kind of request: several kinds are to run apart, which takes a path opened for them."""

    def __init__(self, recipe: Recipe, kinds: Sequence[_Kind]) -> None:
        self._recipe, self._kinds = recipe, kinds
        self.stages, self.result = recipe.stages, recipe.result

    def prepare(self, workload: Workload, table: PageTable) -> tuple[PlanStage, ...]:
        """Take a batch of one kind."""
        if sum(any(map(kind.takes, workload.requests)) for kind in self._kinds) > 1:
            raise ValueError(f"the kinds of request in {workload} run apart: open a path for a mixed case")
        return self._recipe.prepare(workload, table)


def _recipe(site: Site, name: PathName, *, decoding: bool | None = None) -> Recipe:
    settings = site.case.settings
    if name is not PathName.TP:
        overlap = settings.overlap and name is PathName.SPLIT
        recipe = GatheredRecipe(site, _local(site, name, shared=False), overlap=overlap)
        if not (overlap and isinstance(site.exchange, FusedExchange)):
            return recipe
        from dcp_core.paths.fetched import FetchedSplitRecipe

        return FetchedSplitRecipe(site, site.exchange, recipe)
    from dcp_core.paths.tp import TpRecipe

    decoding = site.case.workload.is_decode if decoding is None else decoding
    if decoding:
        return TpRecipe(site, settings.kernel_for_decode, decode_kind(settings.decode_wrapper))
    return TpRecipe(site, settings.kernel, PassKind.PAGED)


def _local(site: Site, name: PathName, *, shared: bool) -> Local:
    """Return how the requests of one kind attend; ``shared``: between a gather and a combine for other kinds too."""
    fused = site.exchange if isinstance(site.exchange, FusedExchange) and not shared else None
    match name:
        case PathName.SPLIT:
            from dcp_core.paths.split import SplitLocal

            return SplitLocal(site, fused=fused is not None, alone=not shared)
        case PathName.MASK:
            from dcp_core.paths.mask import MaskLocal

            return MaskLocal(site)
        case PathName.FOLD:
            from dcp_core.paths.fold import FoldLocal

            return FoldLocal(site, fused=fused)
        case _:
            from dcp_core.paths.decode import DecodeLocal

            settings = site.case.settings
            return DecodeLocal(site, settings.kernel_for_decode, decode_kind(settings.decode_wrapper))


def _site(case: Case, mesh: Mesh) -> Site:
    shape, settings = case.shape, case.settings
    dtype, kv_dtype = getattr(torch, shape.dtype), getattr(torch, shape.cache_dtype)

    def open_pass(kernel: KernelName, kind: PassKind, masking: Masking, *, q_heads: int, kv_heads: int) -> Pass:
        of_fa2_over_pages = (
            kernel is KernelName.FA2 and kind is not PassKind.RAGGED
        )  # whose splitting the settings rule
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
            fixed_split_size=settings.fixed_split_size if of_fa2_over_pages else None,
            disable_split_kv=settings.disable_split_kv and of_fa2_over_pages,
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
