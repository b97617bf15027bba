"""Fitting bases to second moments.

The SVD of a projection weight W whitened by its inputs' covariance L Lᵀ, W L = U S Vᵀ, spans the same subspace as PCA
of the projection's outputs. So every basis here is an eigendecomposition in the output space of a head group, in fp64.

Values are best fitted around zero: tokens that soak up attention carry values near zero, and a basis around the mean
rebuilds them as the part of the mean that it cuts off.
Keys may be centred: what their mean adds to a score is the same for every token, so the softmax never sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.transforms.linear import LinearTransform

FLOOR = 1e-6
"""Eigenvalues of a metric are kept above this share of the largest: what it ignores must still come back."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Complete coordinates of every head group, the most valuable first, in fp64.

    ``values`` (groups, n): the error that keeping a component removes, per token. ``encoder`` and ``decoder``
    (groups, n, n) are inverse to each other; their leading columns and rows are the best of their rank.
    """

    values: Tensor
    encoder: Tensor
    decoder: Tensor

    @property
    def variances(self) -> Tensor:
        """The values of the first group, (n,)."""
        return self.values[0]

    @property
    def parts(self) -> list[int]:
        """Components by kind: all are of one."""
        return [len(self.variances)]

    def leading(self, rank: int) -> Basis:
        """The first ``rank`` components."""
        return Basis(self.values[:, :rank], self.encoder[..., :rank], self.decoder[:, :rank])

    def reordered(self, order: Tensor) -> Basis:
        """The components ``order`` (n,) in that order."""
        return Basis(self.values[:, order], self.encoder[..., order], self.decoder[:, order])

    def scale(self, rank: int) -> float:
        """By what the first ``rank`` latents are multiplied in :meth:`transform`.

        It makes the largest entries of encoder and decoder alike, so that both lie in the middle of fp16's range: 1 for
        an orthonormal basis, what makes it one for a multiple of such, else a power of two.
        """
        encoder, decoder = self.encoder[..., :rank], self.decoder[:, :rank]
        most = [float(matrix.abs().max()) for matrix in (encoder, decoder)]
        ratio = math.sqrt(most[1] / most[0]) if min(most) else 1.0
        return ratio if _transposed(encoder * ratio, decoder / ratio) else 2.0 ** round(math.log2(ratio))

    def transform(self, mean: Tensor, rank: int, dtype: torch.dtype) -> LinearTransform:
        """The transform onto the first ``rank`` components around ``mean`` (groups · n,), times :meth:`scale`.

        It is kept in ``dtype``, or in fp32 where a number is beyond that.
        """
        scale = self.scale(rank)
        encoder, decoder = self.encoder[..., :rank] * scale, self.decoder[:, :rank] / scale
        centre = mean.reshape(len(self.encoder), -1)
        if max(float(matrix.abs().max()) for matrix in (encoder, decoder, centre)) > torch.finfo(dtype).max:
            dtype = torch.float32
        kept_decoder = decoder.to(dtype).contiguous()
        kept_encoder = kept_decoder.mT if _transposed(encoder, decoder) else encoder.to(dtype).contiguous()
        return LinearTransform(kept_encoder, kept_decoder, centre.to(dtype))


def _transposed(encoder: Tensor, decoder: Tensor) -> bool:
    """Whether they are each other's transposes, up to what fp64 rounds."""
    return float((encoder - decoder.mT).abs().max()) <= 1e-12 * float(decoder.abs().max())


def principal_basis(moment: Tensor, groups: int) -> Basis:
    """The orthonormal basis that minimises the trace of the error's second moment: PCA of each group's block."""
    values, axes = principal_axes(moment, groups)
    return Basis(values, axes, axes.transpose(1, 2))


def weighted_basis(moment: Tensor, metric: Tensor, groups: int) -> Basis:
    """The basis that minimises tr(M · second moment of the error) at every rank, for ``metric`` M (groups · n squared).

    The best rank-r approximation of X M^½ is its projection onto the leading eigenvectors U of M^½ C M^½, and
    x̂ = x M^½ U Uᵀ M^-½ attains it. With M = Σ q qᵀ this is KQ-SVD's optimum for the scores q·k.
    """
    root, inverse = _square_roots(group_blocks(metric.double(), groups))
    values, axes = torch.linalg.eigh(root @ group_blocks(moment.double(), groups) @ root)
    axes = axes.flip(-1)
    return Basis(values.flip(-1).clamp_min(0), root @ axes, axes.transpose(1, 2) @ inverse)


def _square_roots(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """M^½ and M^-½ of symmetric blocks (groups, n, n), eigenvalues kept above :data:`FLOOR`."""
    values, axes = torch.linalg.eigh(blocks)
    lowest = (values[:, -1:] * FLOOR).clamp_min(torch.finfo(values.dtype).tiny)
    roots = values.clamp_min(lowest).sqrt().unsqueeze(1)
    return (axes * roots) @ axes.transpose(1, 2), (axes / roots) @ axes.transpose(1, 2)


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
    return Basis(axes.new_ones(axes.shape[0], axes.shape[-1]), axes, axes.mT).transform(mean, rank, dtype)
