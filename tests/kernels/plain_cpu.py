"""The CPU kernels compiled for other instructions than this processor's, against fp64: a process of its own.

A test says by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES which ones, and as arguments what the kernels should make of them:
whether there is VNNI, and how many columns are looked up in the same table.
"""

from __future__ import annotations

import sys

import torch
from unpacking_cases import check_unpacking

from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.kernels.cpu.coded import CodedAttention, coded_attention
from kvbench.kernels.cpu.exact import exact_decode
from kvbench.kernels.cpu.llvm import unpack_ops, vectors
from kvbench.kernels.rebuilding import RebuiltKeys, identity_basis
from kvbench.kernels.reference import partial_attention

MIXED = (8,) * 4 + (6,) * 8 + (5,) * 8 + (4,) * 8 + (3,) * 16 + (2,) * 8 + (1,) * 12
UNEVEN = (7,) * 3 + (6,) * 5 + (5,) * 9 + (4,) * 7 + (3,) * 21 + (2,) * 6 + (1,) * 10
WIDE = 1100
"""Columns whose products of 16 bits do not all fit one sum."""


def main(vnni: str, sharing: str) -> None:
    assert vectors.has_vnni() == bool(int(vnni)) and unpack_ops.columns_of_a_table() == int(sharing)
    for widths in (MIXED, MIXED[::-1], UNEVEN, *((width,) * 48 for width in range(1, 9))):
        for looked_up in (False, True):
            check_unpacking(widths, 8, looked_up)
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 3, 3, 64), torch.randn(2, 3, 208, 64), 1 + torch.randn(2, 3, 208, 64)
    whole = query.double().view(2, 9, 1, 64)
    expected = partial_attention(whole, keys.double(), values.double(), 0.125).output.view(2, 3, 3, 64)
    assert (exact_decode(query, keys, values, 0.125).output - expected).abs().max() < 3e-6
    for dtype in (torch.float16, torch.bfloat16):
        for rank in (64, 38):
            narrow = keys[..., :rank].to(dtype), values.to(dtype)
            expected = partial_attention(whole[..., :rank], *(states.double() for states in narrow), 0.125)
            actual = exact_decode(query[..., :rank], *narrow, 0.125).output
            assert (actual - expected.output.view(2, 3, 3, 64)).abs().max() < 3e-6
    for quantizer in (
        *(IntegerQuantizer(bits, 64) for bits in (8, 4, 3)),
        IntegerQuantizer(4, 16),
        CodebookQuantizer(MIXED, torch.ones(64)),
    ):
        check_attention((quantizer, quantizer), query, keys, values, 0.125)
        check_rebuilt(quantizer, query, keys, values, 0.125)
        check_decoupled(quantizer, query, keys, values, 0.125)
    for bits in (4, 2):
        per_channel = IntegerQuantizer(bits, 16, "token"), IntegerQuantizer(bits, 32)
        check_attention(per_channel, query, keys, values, 0.125)
    # All of one sign, so that sums grow as large as they can.
    large = (1 + torch.rand(1, 1, tokens, WIDE) for tokens in (2, 72, 72))
    check_attention((IntegerQuantizer(8, WIDE),) * 2, *large, 0.01)


def check_attention(
    quantizers: tuple[IntegerQuantizer | CodebookQuantizer, ...],
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
) -> None:
    batch, groups, rows, rank = query.shape
    tokens = keys.shape[2]
    stored = [quantizer.encode(states) for quantizer, states in zip(quantizers, (keys, values), strict=True)]
    coded = [kernel_view(quantizer, codes) for quantizer, codes in zip(quantizers, stored, strict=True)]
    decoded = [quantizer.decode(codes).double() for quantizer, codes in zip(quantizers, stored, strict=True)]
    assert isinstance(coded[0], Coded) and isinstance(coded[1], Coded)
    actual = coded_attention(query, coded[0], coded[1], tokens, scaling)
    expected = partial_attention(query.double().view(batch, groups * rows, 1, rank), *decoded, scaling)
    output = expected.output.view(batch, groups, rows, -1)
    assert (actual.output - output).abs().max() < 1e-3 * output.abs().max()
    assert (actual.lse - expected.lse.view_as(actual.lse)).abs().max() < 1e-3


def check_rebuilt(
    quantizer: IntegerQuantizer | CodebookQuantizer,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
) -> None:
    batch, groups, rows, rank = query.shape
    stored = [quantizer.encode(states) for states in (keys, values)]
    coded = [kernel_view(quantizer, codes) for codes in stored]
    decoded = [quantizer.decode(codes).double() for codes in stored]
    decoder, mean = torch.randn(groups, rank, 1, rank) / 8, torch.randn(groups, 1, rank)
    rebuilt = RebuiltKeys(coded[0], decoder, mean)
    shape = batch, groups, rows, rank
    actual = CodedAttention(shape, None, coded[1], keys.shape[2], scaling, (None, None), rebuilt)(query).output
    keys_again = torch.einsum("bgtr,grd->bgtd", decoded[0], decoder[:, :, 0].double()) + mean.double()
    expected = partial_attention(query.double().view(batch, groups * rows, 1, rank), keys_again, decoded[1], scaling)
    output = expected.output.view(batch, groups, rows, -1)
    assert (actual - output).abs().max() < 1e-3 * output.abs().max()


def check_decoupled(
    quantizer: IntegerQuantizer | CodebookQuantizer,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
) -> None:
    """``keys`` beside ``values`` that are keys as well, rebuilt from codes and as they are."""
    batch, groups, rows, rank = query.shape
    stored = [quantizer.encode(states) for states in (keys, values)]
    coded = [kernel_view(quantizer, codes) for codes in stored]
    decoded = [quantizer.decode(codes).double() for codes in stored]
    both = torch.cat([query, 0.1 * query.flip(-1)], -1)
    rebuilt = RebuiltKeys(coded[0], *identity_basis(groups, rank, query.device))
    for beside, states in ((rebuilt, decoded[0]), (keys, keys.double())):
        attention = CodedAttention(tuple(both.shape), coded[1], coded[1], keys.shape[2], scaling, (None, None), beside)
        whole = both.double().view(batch, groups * rows, 1, 2 * rank)
        expected = partial_attention(whole, torch.cat([states, decoded[1]], -1), decoded[1], scaling)
        output = expected.output.view(batch, groups, rows, -1)
        assert (attention(both).output - output).abs().max() < 1e-3 * output.abs().max()


if __name__ == "__main__":
    main(*sys.argv[1:])
