"""The kernel of folded queries' own rows says what its torch twin says, over any strides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_core import fold
from dcp_core.fold import Fold, OwnRows
from dcp_core.lse import Partial
from dcp_core.triton_ops.own_rows import attend_own_rows

ULP = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@settings(max_examples=60)
@given(
    new_lens=st.lists(st.integers(1, 19), min_size=1, max_size=4),
    dcp=st.sampled_from([2, 3, 4, 8]),
    size=st.sampled_from([(1, 1, 64), (4, 2, 128), (6, 3, 80), (5, 1, 256)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    gap=st.sampled_from([0, 1, 16]),
    seed=st.integers(0, 1 << 20),
)
def test_own_rows_are_attended_to_as_torch_does(
    new_lens: list[int],
    dcp: int,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    gap: int,
    seed: int,
    triton_device: str,
) -> None:
    (heads, kv_heads, head_dim), tokens = size, sum(new_lens)
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int) -> torch.Tensor:
        made = torch.randn(tokens, count, head_dim + gap, generator=generator).to(dtype).to(triton_device)
        return made[..., :head_dim]

    def room() -> Partial:
        return Partial(
            torch.full_like(rows(heads), torch.nan), torch.full((tokens, heads), torch.nan, device=triton_device)
        )

    q, k, v = rows(heads), rows(kv_heads), rows(kv_heads)
    own = OwnRows(q, k, v, Fold.of(new_lens, new_lens, dcp, 0).earlier.to(triton_device), dcp)
    got, expected = attend_own_rows(own, room()), fold.attend_own_rows(own, room())
    torch.testing.assert_close(got.out, expected.out, rtol=ULP[dtype], atol=4 * ULP[dtype])
    torch.testing.assert_close(got.lse, expected.lse, rtol=0, atol=1e-5)


def test_no_token_is_no_launch_and_room_of_another_shape_is_refused(triton_device: str) -> None:
    none, counts = torch.zeros(0, 2, 64, device=triton_device), torch.zeros(0, dtype=torch.int32, device=triton_device)
    own, room = OwnRows(none, none, none, counts, 2), Partial(none.clone(), none[..., 0].clone())
    assert attend_own_rows(own, room) is room
    with pytest.raises(ValueError, match="room"):
        attend_own_rows(own, Partial(none[:, :1], none[:, :1, 0]))
