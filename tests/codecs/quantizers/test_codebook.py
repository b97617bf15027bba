"""Lloyd–Max codebooks against published distortions, and mixed widths through them."""

from __future__ import annotations

import pytest
import torch

from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.lloyd import MAX_BITS, laplace_levels

LAPLACE = {1: 0.5, 2: 0.1765, 3: 0.0548, 4: 0.0154}
"""Mean squared error of the optimal quantizers of a unit-variance Laplace density with 2, 4, 8 and 16 levels, by bits:
the Max-quantizer table of the textbooks (in dB 3.01, 7.54, 12.64, 18.13)."""


def laplace(count: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(1, 1, count, rank, generator=generator, dtype=torch.float64) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs()) / 2**0.5


@pytest.mark.parametrize("bits", LAPLACE)
def test_tables_have_the_published_distortion(bits: int) -> None:
    assert laplace_levels()[bits][1] == pytest.approx(LAPLACE[bits], rel=0.01)


def test_tables_are_symmetric_ascending_and_better_with_every_bit() -> None:
    tables = laplace_levels()
    assert len(tables) == MAX_BITS + 1
    for bits, (levels, _) in enumerate(tables):
        assert len(levels) == 2**bits
        assert (levels.diff() > 0).all()
        assert torch.allclose(levels, -levels.flip(0), rtol=5e-3, atol=1e-3)
    distortions = torch.tensor([error for _, error in tables])
    gains = -distortions.diff()
    assert (gains > 0).all()
    assert (gains.diff() < 0).all(), "convex, which makes greedy water-filling optimal"


@pytest.mark.parametrize("bits", LAPLACE)
def test_fresh_samples_have_the_published_distortion(bits: int) -> None:
    deviation = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    quantizer = CodebookQuantizer((bits,) * 3, deviation)
    states = laplace(80_000, 3, seed=bits) * deviation
    error = (quantizer.decode(quantizer.encode(states)) - states).square().mean((0, 1, 2)) / deviation**2
    assert error.tolist() == pytest.approx([LAPLACE[bits]] * 3, rel=0.06)


def test_mixed_widths_in_any_order() -> None:
    deviation = torch.ones(6)
    widths = (3, 0, 8, 1, 0, 3)
    quantizer = CodebookQuantizer(widths, deviation)
    states = laplace(4096, 6).float()
    stored = quantizer.encode(states)
    decoded = quantizer.decode(stored)
    assert stored["codes"].shape == (1, 1, 4096 // 8, sum(widths))
    assert quantizer.cost(1, 6, torch.float32).payload == sum(widths)
    assert (decoded[..., [1, 4]] == 0).all(), "no bits: the mean"
    error = (decoded - states).square().mean((0, 1, 2))
    assert error[0].item() == pytest.approx(LAPLACE[3], rel=0.15)
    assert error[3].item() == pytest.approx(LAPLACE[1], rel=0.15)
    alone = CodebookQuantizer((8,), torch.ones(1))
    assert torch.equal(decoded[..., 2:3], alone.decode(alone.encode(states[..., 2:3])))


@pytest.mark.parametrize("widths", [(0,), (0, 0, 0)])
def test_no_bits_at_all(widths: tuple[int, ...]) -> None:
    quantizer = CodebookQuantizer(widths, torch.ones(len(widths)))
    stored = quantizer.encode(torch.randn(2, 1, 16, len(widths)))
    assert stored["codes"].nbytes == 0
    assert torch.equal(quantizer.decode(stored), torch.zeros(2, 1, 16, len(widths)))


def test_outliers_are_clipped_to_the_last_level() -> None:
    quantizer = CodebookQuantizer((4,), torch.ones(1))
    states = torch.tensor([1e30, -1e30] * 4).view(1, 1, 8, 1)
    largest = laplace_levels()[4][0].max()
    assert torch.allclose(quantizer.decode(quantizer.encode(states)).abs(), largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_widths_need_not_be_adjacent(dtype: torch.dtype) -> None:
    """Predictive coding has two runs of components, each in the order of its widths."""
    deviation = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.5
    quantizer = CodebookQuantizer((4, 4, 2, 2, 4, 4, 3, 3, 2, 2, 0, 0), deviation)
    latents = torch.randn(1, 1, 16, 12, generator=torch.Generator().manual_seed(1), dtype=dtype) * deviation
    decoded = quantizer.decode(quantizer.encode(latents))
    assert decoded.dtype == dtype
    for column, width in enumerate(quantizer.widths):
        alone = CodebookQuantizer((width,), deviation[column : column + 1])
        expected = alone.decode(alone.encode(latents[..., column : column + 1]))
        torch.testing.assert_close(decoded[..., column : column + 1], expected)
