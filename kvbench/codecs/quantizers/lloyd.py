"""Lloyd–Max levels (Lloyd 1982, Max 1960): the scalar codebooks of least mean squared error for a known density."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

MAX_BITS = 8
_SAMPLES = 200_000

Levels = tuple[tuple[Tensor, float], ...]
"""For widths 0…8: the levels of a unit-variance source (2^width,) fp32, ascending, and their mean squared error."""


@lru_cache(maxsize=1)
def laplace_levels() -> Levels:
    """Levels for a Laplace density: heavy tails, as latents of keys and values have them."""
    samples = _laplace_quantiles(_SAMPLES)
    # Panter–Dite: the optimal level density goes with the cube root of the density, a Laplace three times as wide.
    return _tables(samples / samples.std(), [_laplace_quantiles(2**bits) * 3 for bits in range(1, MAX_BITS + 1)], 5)


@lru_cache(maxsize=1)
def gaussian_levels() -> Levels:
    """Levels for a normal density: what a random rotation makes of any vector."""
    samples = _normal_quantiles(_SAMPLES)
    return _tables(samples / samples.std(), [_normal_quantiles(2**bits) * 3**0.5 for bits in range(1, MAX_BITS + 1)], 4)


def look_up(codes: Tensor, levels: Tensor) -> Tensor:
    """``levels`` (count,) at ``codes`` (any shape, uint8)."""
    return levels.index_select(0, codes.flatten().int()).view(codes.shape)  # on CPU five times as fast as indexing


def nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    """Codes uint8 of the levels nearest to ``scaled``."""
    return torch.bucketize(scaled.contiguous(), between(levels), out_int32=True).byte()


def between(levels: Tensor) -> Tensor:
    """The boundaries between ascending ``levels``."""
    return (levels[1:] + levels[:-1]) / 2


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _laplace_quantiles(count: int) -> Tensor:
    centred = _midpoints(count) - 0.5
    return -centred.sign() * torch.log1p(-2 * centred.abs()) / 2**0.5


def _normal_quantiles(count: int) -> Tensor:
    return torch.special.ndtri(_midpoints(count))


def _tables(samples: Tensor, starts: list[Tensor], bytes_up_to: int) -> Levels:
    """Tables from companded ``starts`` for 1, 2, … bits; up to some width their levels are bytes, for the kernels."""
    optimal = (_lloyd(samples, start) for start in starts)
    tables = [_on_grid(levels) if len(levels) <= 2**bytes_up_to else levels for levels in optimal]
    return ((torch.zeros(1), 1.0), *((levels.float(), _error(samples, levels)) for levels in tables))


def _on_grid(levels: Tensor) -> Tensor:
    """The nearest whole multiples of the largest level / 127: for Laplace 0.1 % more error at 3 bits and 3 % at 5."""
    unit = levels.abs().max() / 127
    return (levels / unit).round() * unit


def _error(samples: Tensor, levels: Tensor) -> float:
    """Mean squared error of unit-variance ``samples``."""
    near = levels[torch.bucketize(samples, (levels[1:] + levels[:-1]) / 2)]
    return float((samples - near).square().mean() / samples.square().mean())


def _lloyd(samples: Tensor, levels: Tensor, iterations: int = 60) -> Tensor:
    """Lloyd's iteration on ascending ``samples`` from companded starting ``levels``."""
    sums = functional.pad(samples.cumsum(0), (1, 0))
    for _ in range(iterations):
        edges = functional.pad(torch.searchsorted(samples, (levels[1:] + levels[:-1]) / 2), (1, 0))
        edges = functional.pad(edges, (0, 1), value=len(samples))
        counts = edges.diff()
        means = sums[edges].diff() / counts.clamp_min(1)
        levels = torch.where(counts > 0, means, levels)
    return levels
