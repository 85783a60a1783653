"""A small Qwen3 model, and what two requests make it say: with attention of its own, or served by ranks of a DCP group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from dcp_core import DcpLayout, ModelShape, Settings
from dcp_core.mesh import Mesh
from tests.end_to_end.engine import Engine, Place

VOCABULARY = 256
PROMPT_LENS = (70, 21)
CHUNKS = ((40, 8), (30, 8))
"""New tokens of the two requests in the prompt's first two steps; in the third, the first request decodes already."""
DECODES = 3
DRAFT = (11, 22, 33)
"""Tokens that a speculative step tries behind the one that was chosen."""


@dataclass(frozen=True)
class Setup:
    """How a model is served: the layout, and by which path each phase of a request runs."""

    tp: int
    dcp: int
    interleave: int
    exchange: str
    prefill: str = "split"
    extend: str = "mask"
    mixed: str = "split"
    decode: str = "split"  # whose decodes run apart, through path decode
    speculate: str = "fold"

    def settings(self, path: str) -> Settings:
        return Settings.from_json({"path": path, "kernel": "reference", "exchange": self.exchange})

    def __str__(self) -> str:
        return f"tp {self.tp}, dcp {self.dcp}, interleave {self.interleave}, {self.exchange}, {self.extend}"


@dataclass
class Transcript:
    """One request: the tokens it was fed, and the logits ``[vocabulary]`` behind each."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def next_token(self) -> int:
        """The greedy choice."""
        return int(self.logits[-1].argmax())

    def add(self, tokens: list[int], logits: Tensor) -> None:
        """Record a step."""
        self.tokens += tokens
        self.logits += list(logits.clone())


def build_model() -> Qwen3ForCausalLM:
    """Return the same random model in every process: 8 query heads share 2 KV heads."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.15,  # wide, so that what attention sees decides what is said
        dtype="float32",
    )
    torch.manual_seed(5)
    return Qwen3ForCausalLM(config).eval()


def prompts() -> list[list[int]]:
    """Return two random prompts."""
    generator = torch.Generator().manual_seed(6)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in PROMPT_LENS]


def by_itself(model: Qwen3ForCausalLM, prompt: list[int], decodes: int) -> Transcript:
    """Generate with the model's own attention and cache: the prompt, greedy tokens, and a speculative step."""
    said, cache = Transcript(), DynamicCache(config=model.config)

    def feed(tokens: list[int]) -> None:
        with torch.inference_mode():
            result = model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        said.add(tokens, result.logits[0])

    feed(prompt)
    for _ in range(decodes):
        feed([said.next_token])
    feed([said.next_token, *DRAFT])
    return said


def serve(setup: Setup, place: Place) -> list[Transcript]:
    """Serve both requests together: prompts in chunks, then decoding, then a speculative step."""
    said, waiting = [Transcript() for _ in PROMPT_LENS], prompts()
    engine = Engine(build_model(), place, requests=len(waiting), most_tokens=128)

    def step(tokens: list[list[int]], path: str) -> None:
        logits = engine.step(tokens, setup.settings(path))
        for request, new, its_logits in zip(said, tokens, logits, strict=True):
            request.add(new, its_logits)

    for chunk, path in zip(CHUNKS, (setup.prefill, setup.extend), strict=True):
        step([prompt[:size] for prompt, size in zip(waiting, chunk, strict=True)], path)
        waiting = [prompt[size:] for prompt, size in zip(waiting, chunk, strict=True)]
    step([[said[0].next_token], waiting[1]], setup.mixed)
    for _ in range(DECODES):
        step([[request.next_token] for request in said], setup.decode)
    step([[request.next_token, *DRAFT] for request in said], setup.speculate)
    return said


def serve_on_rank(mesh: Mesh, setups: list[Setup]) -> list[list[Transcript] | None]:
    """Serve every setup in turn on one rank of the job; None where the rank has no part in one."""
    groups = _dcp_groups(mesh)
    said: list[list[Transcript] | None] = []
    for setup in setups:
        tp = mesh.part(setup.tp)
        if tp is None:
            said.append(None)
            continue
        dcp = tp.part(setup.dcp) if setup.dcp in (1, setup.tp) else groups[setup.dcp]
        layout = DcpLayout(setup.tp, setup.dcp, setup.interleave)
        said.append(serve(setup, Place(_shape(), layout, tp, dcp)))
    return said


def _dcp_groups(mesh: Mesh) -> dict[int, Mesh]:
    """Split a job of four ranks into two DCP groups of neighbours; every rank takes part in forming both."""
    pairs = [dist.new_group([first, first + 1]) for first in range(0, mesh.size, 2)]
    own = pairs[mesh.rank // 2]
    return {2: Mesh(mesh.rank % 2, 2, mesh.device, group=own, control=own)}


def _shape() -> ModelShape:
    return ModelShape.from_hf_config(build_model().config.to_dict())
