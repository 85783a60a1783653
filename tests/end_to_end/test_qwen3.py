"""DCP must not change answers: a model served by ranks of a DCP group says what it says by itself."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from tests.end_to_end.qwen3 import (
    CHUNKS,
    DECODES,
    DRAFT,
    PROMPT_LENS,
    Setup,
    Transcript,
    build_model,
    by_itself,
    prompts,
    serve_on_rank,
)
from tests.ranks import on_ranks

RANKS = 4
OFF = {"prefill": "tp", "extend": "tp", "mixed": "tp", "decode": "tp", "speculate": "tp"}
SETUPS = [
    Setup(tp=1, dcp=1, interleave=1, exchange="alone", **OFF),
    *(Setup(tp=1, dcp=1, interleave=i, exchange="alone", speculate=s) for i, s in ((1, "fold"), (16, "split"))),
    *(Setup(tp=2, dcp=2, interleave=1, exchange=exchange) for exchange in ("ag_rs", "a2a")),
    Setup(tp=2, dcp=2, interleave=16, exchange="ag_rs", speculate="split"),
    Setup(tp=4, dcp=4, interleave=1, exchange="a2a"),
    Setup(tp=4, dcp=4, interleave=1, exchange="ag_rs", prefill="fold", extend="fold", mixed="fold"),
    Setup(tp=4, dcp=4, interleave=16, exchange="a2a", speculate="split"),
    # What a server would start with: the ranks that share a KV head are a DCP group, and there are two of them.
    Setup(tp=4, dcp=2, interleave=1, exchange="ag_rs", extend="split"),
    Setup(tp=4, dcp=2, interleave=16, exchange="a2a", prefill="mask", speculate="mask"),
]


@pytest.fixture(scope="module")
def alone() -> list[Transcript]:
    """Return what the model says by itself: the first request decodes once more, while the second is still reading."""
    model = build_model()
    return [by_itself(model, prompt, DECODES + more) for prompt, more in zip(prompts(), (1, 0), strict=True)]


@pytest.fixture(scope="module")
def budgets(alone: list[Transcript]) -> list[float]:
    """Return how far the logits of each request may be off: twice what float32 errs by itself, and a few roundings."""
    model = build_model().double()
    found = []
    for said in alone:
        with torch.inference_mode():
            exact = model(input_ids=torch.tensor([said.tokens])).logits[0]
        logits = torch.stack(said.logits)
        error = float((logits - exact).abs().max())
        found.append(2 * error + 4 * torch.finfo(torch.float32).eps * float(logits.abs().max()))
    return found


@pytest.fixture(scope="module")
def served() -> list[list[list[Transcript] | None]]:
    """Return what each rank says in each setup."""
    return on_ranks(RANKS, serve_on_rank, SETUPS)


def logits_of(said: Transcript) -> Tensor:
    return torch.stack(said.logits)


@pytest.mark.parametrize("index", range(len(SETUPS)), ids=map(str, SETUPS))
def test_a_group_says_what_the_model_says_by_itself(
    index: int, served: list[list[list[Transcript] | None]], alone: list[Transcript], budgets: list[float]
) -> None:
    for rank in range(SETUPS[index].tp):
        transcripts = served[rank][index]
        assert transcripts is not None
        for got, expected, budget in zip(transcripts, alone, budgets, strict=True):
            assert got.tokens == expected.tokens
            assert torch.equal(logits_of(got).argmax(-1), logits_of(expected).argmax(-1))
            error = float((logits_of(got) - logits_of(expected)).abs().max())
            assert error <= budget, f"logits err by {error:.1e}, budget {budget:.1e}"


@pytest.mark.parametrize("index", range(len(SETUPS)), ids=map(str, SETUPS))
def test_every_rank_says_exactly_the_same(index: int, served: list[list[list[Transcript] | None]]) -> None:
    first = served[0][index]
    assert first is not None
    for rank in range(1, SETUPS[index].tp):
        for one, other in zip(first, served[rank][index] or [], strict=True):
            assert torch.equal(logits_of(one), logits_of(other))
    assert all(served[rank][index] is None for rank in range(SETUPS[index].tp, RANKS))


def test_the_budget_is_far_below_what_one_token_of_the_context_changes(
    alone: list[Transcript], budgets: list[float]
) -> None:
    model = build_model()
    for said, budget in zip(alone, budgets, strict=True):
        for changed in (0, len(said.tokens) // 2):
            tokens = list(said.tokens)
            tokens[changed] = (tokens[changed] + 1) % 256
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([tokens])).logits[0]
            assert float((logits[-1] - said.logits[-1]).abs().max()) > 100 * budget


def test_the_conversation_has_every_phase(alone: list[Transcript]) -> None:
    expected = [
        length + decodes + 1 + len(DRAFT) for length, decodes in zip(PROMPT_LENS, (DECODES + 1, DECODES), strict=True)
    ]
    assert [len(said.tokens) for said in alone] == expected
    first_request = list(accumulate(chunk[0] for chunk in CHUNKS))
    assert first_request[-1] == PROMPT_LENS[0]
    assert sum(chunk[1] for chunk in CHUNKS) < PROMPT_LENS[1]
    # Greedy tokens vary, so that saying the same is no accident.
    assert len(set(alone[0].tokens[PROMPT_LENS[0] :])) > 3
