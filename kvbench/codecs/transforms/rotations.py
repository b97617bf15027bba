"""Bases that know nothing of the data: random rotations, and single channels. The same for every head.

A random rotation spreads outlier channels over all components and makes them close to normal (QuaRot, QuIP#).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.codecs.transforms.linear import LinearTransform


def random_rotation(size: int, seed: int) -> Tensor:
    """Orthogonal (size, size), fp64: a Hadamard matrix with random signs, or for other sizes than powers of two a
    random orthogonal matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    if size & (size - 1):
        return random_orthogonal(size, seed)
    signs = torch.randint(2, (size,), generator=generator).double() * 2 - 1
    return signs[:, None] * hadamard(size)


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix over √size, orthogonal and symmetric, fp64; ``size`` is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def random_orthogonal(size: int, seed: int) -> Tensor:
    """Orthogonal (size, size), fp64, uniform over rotations (Haar)."""
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthogonal, triangle = torch.linalg.qr(normal)
    return orthogonal * triangle.diagonal().sign()


def shared_basis(columns: Tensor, heads: int, dtype: torch.dtype, device: torch.device) -> LinearTransform:
    """Every one of ``heads`` onto the orthonormal ``columns`` (head_dim, rank), kept in memory once."""
    decoder = columns.T.to(device, dtype).contiguous().expand(heads, -1, -1)
    mean = torch.zeros(1, len(columns), dtype=dtype, device=device)
    return LinearTransform(decoder.mT, decoder, mean.expand(heads, -1))
