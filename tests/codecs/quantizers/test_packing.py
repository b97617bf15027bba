"""Codes of mixed widths come back bit for bit, and take no bit more than their widths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.packing import TOKENS_PER_GROUP, pack, packed_bytes, unpack


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=24),
    st.integers(0, 5),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=200)
def test_round_trip(widths: list[int], groups: int, lead: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = groups * TOKENS_PER_GROUP
    columns = [torch.randint(2**width, (*lead, tokens), generator=generator, dtype=torch.uint8) for width in widths]
    codes = torch.stack(columns, -1)
    packed = pack(codes, widths)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*lead, groups, sum(widths)) and sum(widths) == packed_bytes(widths)
    assert torch.equal(unpack(packed, widths), codes)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.integers(2, 6), st.integers(0, 2**31))
@settings(deadline=None)
def test_groups_of_tokens_are_packed_apart(widths: list[int], groups: int, seed: int) -> None:
    """So that a body grows by appending and is read tile by tile."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack(
        [torch.randint(2**width, (groups * 8,), generator=generator, dtype=torch.uint8) for width in widths], -1
    )
    whole = pack(codes, widths)
    assert torch.equal(whole, torch.cat([pack(codes[:8], widths), pack(codes[8:], widths)]))
    assert torch.equal(unpack(whole[1:2], widths), codes[8:16])


def test_the_layout_by_hand() -> None:
    """Width 3 = 2 + 1: two bytes of pairs (four tokens a byte), then one byte with the lowest bit of all eight."""
    codes = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.uint8)[:, None]
    assert pack(codes, [3]).flatten().tolist() == [0b01_01_00_00, 0b11_11_10_10, 0b10101010]


def test_views_pack_like_their_copies() -> None:
    codes = torch.randint(4, (3, 16, 5), dtype=torch.uint8)
    assert torch.equal(pack(codes.transpose(0, 2), [2] * 3), pack(codes.transpose(0, 2).contiguous(), [2] * 3))


@pytest.mark.parametrize(
    ("tokens", "widths", "reason"),
    [(7, [2, 2], "multiple of 8 tokens, got 7"), (8, [2], "one width in 0..8"), (8, [2, 9], "one width in 0..8")],
)
def test_what_does_not_fit_is_refused(tokens: int, widths: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pack(torch.zeros(tokens, 2, dtype=torch.uint8), widths)
