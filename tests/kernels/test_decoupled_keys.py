"""Rebuilt RoPE keys beside a latent that queries are taken into: the CPU kernel agrees with fp64 on what was stored."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.cpu.coded import CodedAttention, LatentBasis
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys, identity_basis
from kvbench.kernels.reference import partial_attention

SCALING = 0.08
INT8, INT4 = IntegerQuantizer(8, 64), IntegerQuantizer(4, 32)


@dataclass(frozen=True)
class Case:
    """``heads`` share RoPE keys of ``rope`` dimensions and latents of ``rank``, of ``width`` if they have a basis."""

    latents: Quantizer
    rope_keys: Quantizer | torch.dtype = INT8
    heads: int = 16
    rank: int = 96
    rope: int = 16
    tokens: int = 200
    width: int | None = None
    rotated: bool = False
    masked: bool = False


CASES = {
    "bytes by matrices": Case(INT8),
    "bytes where they lie": Case(INT8, heads=5),
    "one query": Case(INT8, heads=1),
    "more heads than a matrix has rows": Case(INT8, heads=40, tokens=72),
    "nibbles": Case(INT4, INT4),
    "nibbles where they lie": Case(INT4, heads=3),
    "no whole vectors": Case(IntegerQuantizer(8, 128), rank=72, rope=10),
    "three bits": Case(IntegerQuantizer(3, 32), heads=7),
    "fp8": Case(FloatQuantizer(torch.float8_e4m3fn, True), FloatQuantizer(torch.float8_e4m3fn, True)),
    "mixed widths": Case(CodebookQuantizer((8,) * 16 + (4,) * 48 + (2,) * 32, torch.linspace(2.0, 0.5, 96))),
    "fp8 with scales in fp32": Case(FloatQuantizer(torch.float8_e4m3fn, True, 32, torch.float32)),
    "RoPE keys in fp32": Case(INT8, torch.float32),
    "RoPE keys in fp16, few heads": Case(INT8, torch.float16, heads=5, tokens=8),
    "FlashMLA's layout": Case(FloatQuantizer(torch.float8_e4m3fn, True, 32, torch.float32), torch.bfloat16, tokens=264),
    "RoPE when read": Case(INT8, rotated=True),
    "RoPE when read, few heads": Case(INT8, heads=2, rotated=True, tokens=8),
    "a basis": Case(INT8, width=130),
    "all of it, masked": Case(INT4, width=50, rotated=True, masked=True, tokens=1160),
}


def encoded(quantizer: Quantizer | torch.dtype, states: Tensor) -> tuple[Coded | Tensor, Tensor, object]:
    """What is stored, the numbers that it stands for, and what keeps it alive."""
    if isinstance(quantizer, torch.dtype):
        states = torch.cat([states, states], 2).to(quantizer)[:, :, : states.shape[2]]  # with room for more behind
        return states, states.double(), states
    stored = quantizer.encode(states)
    coded = kernel_view(quantizer, stored)
    assert isinstance(coded, Coded)
    return coded, quantizer.decode(stored).double(), stored


@pytest.mark.parametrize("name", CASES)
def test_both_kinds_of_keys_together(name: str) -> None:
    case, batch = CASES[name], 2
    torch.manual_seed(case.tokens + case.heads)
    rope, rope_keys, first = encoded(case.rope_keys, torch.randn(batch, 1, case.tokens, case.rope))
    latent, latents, second = encoded(case.latents, 1 + torch.randn(batch, 1, case.tokens, case.rank))
    width = case.width or case.rank
    query = torch.randn(batch, case.heads, 1, case.rope + width) / (1 if case.width is None else 5)
    basis = None
    if case.width is not None:
        basis = LatentBasis(torch.randn(1, case.rank, 1, width) / case.rank**0.5, torch.randn(1, 1, width))
        latents = torch.einsum("bgtr,grd->bgtd", latents, basis.decoder[:, :, 0].double()) + basis.mean.double()
    rotary = rotary_of(case) if case.rotated else None
    if rotary is not None:
        turned = rope_keys[..., list(rotary.turn.partners)] * torch.tensor(rotary.turn.signs).double()
        rope_keys = rope_keys * rotary.cos.double()[: case.tokens] + turned * rotary.sin.double()[: case.tokens]
    mask = torch.rand(batch, 1, 1, case.tokens) > 0.4 if case.masked else None
    beside = rope
    if isinstance(rope, Coded):
        identity = identity_basis(1, case.rope, rope.codes.device)
        beside = RebuiltKeys(rope, *identity, None if rotary is None else rotary.turn)
    shape = batch, 1, case.heads, case.rope + width
    attention = CodedAttention(shape, latent, latent, case.tokens, SCALING, (basis, basis), beside)
    actual = attention(query, mask, None if rotary is None else KeyRotation(rotary)).computed
    del first, second  # which it read where they lie
    expected = partial_attention(query.double(), torch.cat([rope_keys, latents], -1), latents, SCALING, mask)
    scale = expected.output.abs().max()
    assert (actual.output.reshape(expected.output.shape) - expected.output).abs().max() < 1e-3 * scale
    assert (actual.lse.reshape(expected.lse.shape) - expected.lse).abs().max() < 1e-3


def rotary_of(case: Case) -> Rotary:
    """Pairs that lie side by side, as in DeepSeek's models."""
    turn = Turn(tuple(i ^ 1 for i in range(case.rope)), tuple(1.0 if i % 2 else -1.0 for i in range(case.rope)))
    angles = torch.arange(case.tokens)[:, None] * 50.0 ** -torch.linspace(0, 1, case.rope // 2)
    angles = angles.repeat_interleave(2, -1)
    return Rotary(turn, angles.cos(), angles.sin(), torch.arange(case.tokens, dtype=torch.int32)[None, None])
