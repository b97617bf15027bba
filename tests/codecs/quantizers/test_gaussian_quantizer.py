"""TurboQuant's quantizer against the published distortions of Max quantizers."""

from __future__ import annotations

import pytest
import torch

from kvbench.codecs.quantizers.gaussian import GaussianQuantizer
from kvbench.codecs.quantizers.lloyd import MAX_BITS, gaussian_levels

GAUSSIAN = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Mean squared error of the optimal quantizers of a unit normal density, by bits (Max 1960, Table I)."""

CPU = torch.device("cpu")


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_tables_have_the_published_distortion(bits: int) -> None:
    levels, error = gaussian_levels()[bits]
    assert len(levels) == 2**bits
    assert error == pytest.approx(GAUSSIAN[bits], rel=0.01)


def test_tables_improve_with_every_bit() -> None:
    errors = [error for _, error in gaussian_levels()]
    assert len(errors) == MAX_BITS + 1
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_vectors_of_any_length_reach_it(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    states = torch.randn(2, 3, 512, 64, generator=generator) * torch.logspace(-3, 3, 512)[:, None]
    quantizer = GaussianQuantizer.on(CPU, bits)
    error = (quantizer.decode(quantizer.encode(states)) - states).square().sum(-1) / states.square().sum(-1)
    assert error.mean().item() == pytest.approx(GAUSSIAN[bits], rel=0.05)


def test_cost_is_what_it_takes() -> None:
    quantizer = GaussianQuantizer.on(CPU, 3)
    stored = quantizer.encode(torch.randn(2, 3, 16, 24))
    cost = quantizer.cost(3, 24, torch.float32)
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 16 * (cost.payload + cost.scales)


def test_zeros_and_huge_vectors_stay_finite() -> None:
    states = torch.zeros(1, 1, 8, 16)
    states[..., 4:, :] = 1e7
    quantizer = GaussianQuantizer.on(CPU, 2)
    decoded = quantizer.decode(quantizer.encode(states))
    assert decoded.isfinite().all()
    assert decoded[:, :, :4].abs().max() < 1e-3
