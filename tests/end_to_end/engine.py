"""How a serving engine uses dcp_core: one rank's worker, whose model keeps everything of its own but attention.

Weights are replicated on every rank, which a tensor-parallel engine would not do; attention is not: a rank computes its own
query heads only, and holds only its shard of its KV heads' cache. Requests of a step lie one after another in one row of
tokens, as engines lay them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from dcp_core import Case, DcpLayout, ModelShape, Settings, Workload
from dcp_core.build import open_path
from dcp_core.cache import PagedCache, PageTable, page_count, slot_mapping
from dcp_core.mesh import Mesh
from dcp_core.paths.base import Path

EVERY_KIND = Workload.parse("q1_q2")
"""A batch of a decode and a longer request: a path that is opened for it serves both, together or alone."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands: in the tensor-parallel group, and in the DCP group that shares its KV heads.

    DCP groups are neighbours: ranks 0 … dcp-1 are the first.
    """

    shape: ModelShape
    layout: DcpLayout
    tp: Mesh
    dcp: Mesh

    @property
    def _grid(self) -> tuple[int, int, int, int]:
        """Return (DCP groups, KV heads of a group, ranks of a group, query heads of a rank per KV head)."""
        heads = self.layout.heads(self.shape)
        return self.layout.tp // self.layout.dcp, heads.kv, self.layout.dcp, heads.query // heads.kv

    @property
    def _group(self) -> int:
        return self.tp.rank // self.layout.dcp

    def own_queries(self, q: Tensor) -> Tensor:
        """Return this rank's heads of ``[T, query heads, D]``."""
        return q.view(len(q), *self._grid, -1)[:, self._group, :, self.dcp.rank].flatten(1, 2).contiguous()

    def own_keys(self, keys: Tensor) -> Tensor:
        """Return this rank's heads of ``[T, KV heads, D]``, the same on every rank of its DCP group; so for values."""
        groups, kv_heads, *_ = self._grid
        return keys.view(len(keys), groups, kv_heads, -1)[:, self._group].contiguous()

    def gather_heads(self, out: Tensor) -> Tensor:
        """Return the heads of all ranks in the model's order, from this rank's own."""
        if self.tp.size == 1:
            return out
        stacked = out.new_empty(self.tp.size, *out.shape)
        self.tp.all_gather(stacked, out)
        groups, kv_heads, ranks, share = self._grid
        by_rank = stacked.view(groups, ranks, len(out), kv_heads, share, -1)
        return by_rank.permute(2, 0, 3, 1, 4, 5).flatten(1, 4)


class Engine:
    """Runs step after step of a fixed set of requests on one rank."""

    def __init__(self, model: nn.Module, place: Place, *, requests: int, most_tokens: int, page_size: int = 16) -> None:
        self._model, self._place = model, place
        self._totals = [0] * requests
        # Pages for the longest that each request may grow to, scattered as after hours of serving.
        most = self._local([most_tokens] * requests)
        pages = page_count(most, page_size) + 5
        self._pages = PageTable.shuffled(most, page_size, pages=pages, seed=place.tp.rank)
        heads, shape = place.layout.heads(place.shape), place.shape
        self._caches = [
            PagedCache.allocate(
                pages,
                page_size=page_size,
                kv_heads=heads.kv,
                head_dim=shape.head_dim,
                dtype=getattr(torch, shape.cache_dtype),
            )
            for _ in range(shape.layers)
        ]
        self._paths: dict[Settings, Path] = {}
        AttentionInterface.register("dcp", self._attend)
        model.set_attn_implementation("dcp")

    def step(self, tokens: list[list[int]], settings: Settings) -> list[Tensor]:
        """Run the new tokens of every request through the model: logits ``[new, vocabulary]`` of each."""
        contexts = self._totals
        self._totals = [context + len(new) for context, new in zip(contexts, tokens, strict=True)]
        workload = Workload.of(map(len, tokens), self._totals)
        self._plan(workload, settings)
        position_ids = torch.cat([torch.arange(r.context, r.total) for r in workload.requests])
        input_ids = torch.tensor([token for new in tokens for token in new])
        with torch.inference_mode():
            result = self._model(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False)
        return list(result.logits[0].split(list(workload.new_lens)))

    def _plan(self, workload: Workload, settings: Settings) -> None:
        """Do once per step what all layers share."""
        layout, rank = self._place.layout, self._place.dcp.rank
        if settings not in self._paths:
            case = Case(self._place.shape, layout, EVERY_KIND, settings)
            self._paths[settings] = open_path(case, self._place.dcp)
        table = self._pages.first(self._local(workload.total_lens))
        self._path = self._paths[settings]
        self._path.plan(workload, table)
        self._slots = slot_mapping(workload.new_lens, workload.total_lens, table, layout, rank)

    def _attend(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **_: Any
    ) -> tuple[Tensor, None]:
        """Attend in one layer: what the model calls instead of its own, with tensors ``[1, heads, T, D]``."""
        q = self._place.own_queries(query[0].transpose(0, 1).contiguous())
        k, v = (self._place.own_keys(tensor[0].transpose(0, 1).contiguous()) for tensor in (key, value))
        cache = self._caches[layer.layer_idx]
        cache.append(k, v, self._slots)
        out = torch.empty_like(q)
        self._path.run(q, k, v, cache, out)
        return self._place.gather_heads(out)[None], None

    def _local(self, lens: list[int] | tuple[int, ...]) -> list[int]:
        return [self._place.layout.local_len(length, self._place.dcp.rank) for length in lens]
