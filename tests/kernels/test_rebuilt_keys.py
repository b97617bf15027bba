"""Keys that the CPU kernel rebuilds, rotates and scores agree with plain torch in fp64 on what was stored."""

from __future__ import annotations

import pytest
import torch
from rebuilding_cases import (
    POSITIONS,
    RANK,
    SCALING,
    Case,
    by_head,
    counted,
    expanded,
    random_mask,
    rotated,
    table,
    turn,
)
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.hooks.turns import Rotary
from kvbench.kernels.cpu.coded import CodedAttention, LatentBasis, readable
from kvbench.kernels.cpu.rebuilt import rebuilds
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys, identity_basis
from kvbench.kernels.reference import Partial, partial_attention


def latents(case: Case, quantizer: Quantizer) -> tuple[Coded, Tensor]:
    stored = quantizer.encode(torch.randn(case.batch, case.groups, case.tokens, RANK))
    coded = kernel_view(quantizer, stored)
    assert isinstance(coded, Coded) and readable(coded, coded) and rebuilds(coded, 0)
    return coded, quantizer.decode(stored).double()


def states(latent: Tensor, basis: LatentBasis) -> Tensor:
    return expanded(latent, basis.decoder, basis.mean)


def both(case: Case, positions: Tensor) -> tuple[Partial, Partial]:
    """What the kernel says, and fp64."""
    torch.manual_seed(case.tokens + case.dim)
    coded, key_latents = latents(case, case.keys)
    values, value_latents = (coded, key_latents) if case.values is None else latents(case, case.values)
    shape = case.groups, RANK, case.heads // case.groups, 2 * case.dim
    decoder, mean = torch.randn(shape) / RANK**0.5, torch.randn(case.groups, shape[2], shape[3])
    sides = [
        LatentBasis(decoder[..., at : at + case.dim], mean[..., at : at + case.dim]) for at in (0, case.dim)
    ]  # views, as those of a joint basis are
    rotary = Rotary(turn(case), *table(case), positions)
    query = torch.randn(case.batch, case.groups, case.heads // case.groups * case.queries, case.dim)
    mask = random_mask(case)
    rebuilt = RebuiltKeys(coded, sides[0].decoder, sides[0].mean, rotary.turn)
    attention = CodedAttention(tuple(query.shape), None, values, case.tokens, SCALING, (None, sides[1]), rebuilt)
    actual = attention(query, mask, KeyRotation(rotary)).computed  # while its codes and bases are there
    keys = rotated(states(key_latents, sides[0]), case, rotary)
    heads = case.heads * case.queries
    whole = query.double().reshape(case.batch, heads, 1, case.dim)
    return actual, partial_attention(whole, keys, states(value_latents, sides[1]), SCALING, by_head(mask, case))


def check(case: Case, positions: Tensor | None = None, tolerance: float = 3e-4) -> None:
    actual, expected = both(case, counted(case) if positions is None else positions)
    scale = expected.output.abs().max()
    assert (actual.output.reshape(expected.output.shape) - expected.output).abs().max() < tolerance * scale
    assert (actual.lse.reshape(expected.lse.shape) - expected.lse).abs().max() < 1e-3


CASES = {
    "joint": Case(),
    "split": Case(values=IntegerQuantizer(4, 128)),
    "per head": Case(groups=3),
    "head groups": Case(groups=2, heads=4),
    "MHA": Case(groups=1, heads=4, queries=1),
    "many queries": Case(heads=2, queries=7),
    "one token group": Case(batch=1, tokens=8),
    "many tiles": Case(batch=1, tokens=1160),
    "one mask": Case(masked="one"),
    "masks by group": Case(groups=3, masked="each"),
    "partial rotary": Case(rotary=16),
    "interleaved": Case(interleaved=True),
    "YaRN's factor": Case(factor=1.3),
    "dims that fill no vector": Case(dim=50, rotary=20),
    "int8, one scale": Case(keys=IntegerQuantizer(8, 128)),
    "int4, one scale": Case(keys=IntegerQuantizer(4, 128)),
    "int3, scales by channel group": Case(keys=IntegerQuantizer(3, 32)),
    "int4, scales by small groups": Case(keys=IntegerQuantizer(4, 16), groups=3),
    "levels of two bytes alone": Case(keys=CodebookQuantizer((7,) * RANK, torch.linspace(2.0, 0.1, RANK))),
}


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_keys(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("tokens", [8, 56, 64, 72, 136])
def test_ragged_ends(tokens: int) -> None:
    check(Case(tokens=tokens))


@pytest.mark.parametrize("groups", [1, 3])
def test_any_positions(groups: int) -> None:
    """Those of a selector's entries, other ones in each group of heads."""
    case = Case(groups=groups)
    shape = case.batch, groups, case.tokens
    check(case, torch.randint(POSITIONS, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0)))


def test_positions_outside_of_the_tables_are_never_read() -> None:
    """Padding may be anywhere: it is read as position 0."""
    case = Case(batch=1)
    positions = counted(case)
    positions[..., :5] = -3
    check(case, positions)


def test_means_and_decoders_of_zeros() -> None:
    """A dimension that no component reaches is its mean."""
    case = Case(batch=1)
    torch.manual_seed(0)
    coded, key_latents = latents(case, case.keys)
    decoder, mean = torch.randn(1, RANK, 3, 64) / 10, torch.randn(1, 3, 64)
    decoder[..., 5:9] = 0
    query = torch.randn(1, 1, 9, 64)
    rebuilt, basis = RebuiltKeys(coded, decoder, mean), LatentBasis(decoder, mean)
    actual = CodedAttention((1, 1, 9, 64), None, coded, case.tokens, SCALING, (None, basis), rebuilt)(query)
    keys = states(key_latents, basis)
    expected = partial_attention(query.double().view(1, 9, 1, 64), keys, keys, SCALING)
    error = (actual.output.reshape(expected.output.shape) - expected.output).abs().max()
    assert error < 3e-4 * expected.output.abs().max()


def test_keys_without_a_basis() -> None:
    """Each head's codes are its keys."""
    torch.manual_seed(0)
    quantizer = CodebookQuantizer((6,) * 8 + (4,) * 24, torch.linspace(2.0, 0.5, 32))
    stored = quantizer.encode(torch.randn(2, 3, 72, 32))
    coded, keys = kernel_view(quantizer, stored), quantizer.decode(stored).double()
    assert isinstance(coded, Coded)
    query = torch.randn(2, 3, 2, 32)
    rebuilt = RebuiltKeys(coded, *identity_basis(3, 32, coded.codes.device))
    actual = CodedAttention((2, 3, 2, 32), None, coded, 72, SCALING, (None, None), rebuilt)(query)
    expected = partial_attention(query.double().view(2, 6, 1, 32), keys, keys, SCALING)
    error = (actual.output.reshape(expected.output.shape) - expected.output).abs().max()
    assert error < 3e-4 * expected.output.abs().max()


def test_scores_of_both_kinds_of_keys_add_up() -> None:
    torch.manual_seed(0)
    case = Case(batch=1, groups=1, heads=1, queries=3)
    coded, key_latents = latents(case, case.keys)
    bases = [LatentBasis(torch.randn(1, RANK, 1, 64) / 10, torch.randn(1, 1, 64)) for _ in range(3)]
    query = torch.randn(1, 1, 3, 64)
    rebuilt = RebuiltKeys(coded, bases[2].decoder, bases[2].mean)
    attention = CodedAttention((1, 1, 3, 64), coded, coded, case.tokens, SCALING, (bases[0], bases[1]), rebuilt)
    actual = attention(query)
    keys = states(key_latents, bases[0]) + states(key_latents, bases[2])
    expected = partial_attention(query.double().view(1, 3, 1, 64), keys, states(key_latents, bases[1]), SCALING)
    error = (actual.output.reshape(expected.output.shape) - expected.output).abs().max()
    assert error < 3e-4 * expected.output.abs().max()
