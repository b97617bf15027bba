"""KVQuant's quantizer: outliers come back, places are right, scales belong to what is left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.codecs.quantizers.lloyd import gaussian_levels
from kvbench.codecs.quantizers.nonuniform import Channels, NonUniformQuantizer
from kvbench.codecs.quantizers.outliers import BLOCK, Outliers

HEADS, RANK = 3, 16


def quantizer(bits: int = 3, fraction: float = 0.01, static: bool = False) -> NonUniformQuantizer:
    channels = Channels(torch.full((HEADS, 1, RANK), 0.5), torch.full((HEADS, 1, RANK), 2.0)) if static else None
    levels = gaussian_levels()[bits][0] if static else torch.linspace(-1, 1, 2**bits)
    return NonUniformQuantizer(bits, levels, Outliers(fraction), channels)


def normal(tokens: int = 2 * BLOCK, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, HEADS, tokens, RANK, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_cost_is_what_it_takes(bits: int, fraction: float, static: bool) -> None:
    one, states = quantizer(bits, fraction, static), normal()
    stored = one.encode(states)
    cost = one.cost(HEADS, RANK, torch.float32)
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 2 * BLOCK * (cost.payload + cost.scales)
    assert stored["codes"].nbytes * 8 == 2 * 2 * BLOCK * cost.payload


@pytest.mark.parametrize("static", [True, False])
def test_outliers_come_back_exactly(static: bool) -> None:
    one, states = quantizer(static=static), normal()
    states[1, 2, 40, 3] = 777.0
    states[0, 0, 5, 15] = -500.0
    decoded = one.decode(one.encode(states))
    assert decoded[1, 2, 40, 3] == 777
    assert decoded[0, 0, 5, 15] == -500
    rest = (decoded - states).abs()
    assert rest.max() < 4.5, "an outlier must not stretch the range of its neighbours"


@pytest.mark.parametrize("static", [True, False])
def test_error_falls_with_bits_and_with_outliers(static: bool) -> None:
    states = normal(seed=3)
    states[..., 7] *= 4

    def error(bits: int, fraction: float) -> float:
        one = quantizer(bits, fraction, static)
        return float((one.decode(one.encode(states)) - states).square().mean())

    by_bits = [error(bits, 0.01) for bits in (2, 3, 4, 8)]
    by_outliers = [error(3, fraction) for fraction in (0.0, 0.01, 0.05)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_outliers == sorted(by_outliers, reverse=True)


def test_uniform_levels_over_a_range_err_by_half_a_step() -> None:
    one, states = quantizer(4, 0.0), normal()
    step = (states.amax((1, 3), keepdim=True) - states.amin((1, 3), keepdim=True)) / 15
    assert ((one.decode(one.encode(states)) - states).abs() <= step / 2 * 1.02 + 1e-3).all()


@given(st.integers(0, 2**31), st.sampled_from([0.01, 0.2, 0.5]), st.sampled_from([0.0, 1e-9, 1.0, 1e9]))
@settings(deadline=None, max_examples=40)
def test_constant_and_extreme_tokens_stay_finite(seed: int, fraction: float, level: float) -> None:
    states = normal(seed=seed)
    states[0, :, :3] = level
    states[1, :, 5] = torch.tensor([level, -level]).repeat(RANK // 2)
    one = quantizer(fraction=fraction)
    assert one.decode(one.encode(states)).isfinite().all()


def test_wide_blocks_have_wide_places() -> None:
    rank = 2**15 // BLOCK + 8
    states = torch.zeros(1, 1, BLOCK, rank)
    states[..., -1, -1] = 9.0
    places = Outliers(1 / (BLOCK * rank)).find(states)
    assert places.dtype == torch.int32
    assert places.item() == BLOCK * rank - 1
    narrow = Outliers(0.001).find(torch.randn(1, 1, BLOCK, 2**15 // BLOCK))
    assert narrow.dtype == torch.int16 and narrow.min() >= 0
