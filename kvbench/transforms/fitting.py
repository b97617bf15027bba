"""Fitting bases to second moments.

Whitened SVD of a projection weight equals PCA of the projection's outputs (METHODS, 2.0a), so every basis here is an
eigendecomposition in the output space of a head group, in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.transforms.linear import LinearTransform


def group_blocks(matrix: Tensor, groups: int) -> Tensor:
    """The diagonal blocks (groups, n, n) of a (groups · n, groups · n) matrix."""
    size = matrix.shape[0] // groups
    return torch.stack([matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(groups)])


def principal_axes(moment: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (groups, n) descending and eigenvectors (groups, n, n) of each head group's block, fp64."""
    values, vectors = torch.linalg.eigh(group_blocks(moment.double(), groups))
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def orthonormal_transform(axes: Tensor, mean: Tensor, rank: int, dtype: torch.dtype) -> LinearTransform:
    """The transform onto the first ``rank`` of ``axes`` (groups, n, n) around ``mean`` (groups · n,)."""
    kept = axes[..., :rank].to(dtype)
    centre = mean.reshape(axes.shape[0], -1).to(dtype)
    return LinearTransform(kept.contiguous(), kept.transpose(1, 2).contiguous(), centre)


def rank_for_energy(eigenvalues: Tensor, energy: float) -> int:
    """The smallest rank whose eigenvalues hold ``energy`` (0…1] of the total, the same for all groups."""
    spectrum = eigenvalues.mean(0)
    share = spectrum.cumsum(0) / spectrum.sum().clamp_min(torch.finfo(spectrum.dtype).tiny)
    return min(int((share < energy - 1e-12).sum()) + 1, len(spectrum))
