"""What commutes with RoPE, and what a query metric looks like to a key whose rotation is still to come.

RoPE rotates pairs of key dimensions, one frequency each; as a complex number, a pair is multiplied by a phase. Mixing
the heads *within one frequency* by a complex matrix therefore commutes with it (RoRoPE of TransMLA, arXiv 2502.07864).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.codecs.transforms.fitting import Basis, principal_axes
from kvbench.errors import UnsupportedModelError

TOLERANCE = 0.02
"""Largest relative change of a pair's energy under rotation: rounding in 16-bit models, and no more."""


def frequency_pairs(before: Tensor, after: Tensor, heads: int, rotary_dims: int) -> Tensor:
    """The key dimensions (frequencies, 2) that RoPE rotates together: halves, as in Llama, or neighbours, as in GLM.

    Rotation keeps the energy of every pair, so the second moments ``before`` and ``after`` RoPE (K, K) tell them apart;
    a common factor, as YaRN's, is allowed for.

    Raises:
        UnsupportedModelError: neither convention keeps the energies.
    """
    half = torch.arange(rotary_dims // 2)
    options = [torch.stack([half, half + rotary_dims // 2], 1), torch.stack([2 * half, 2 * half + 1], 1)]
    changes = [_energy_change(before, after, heads, pairs) for pairs in options]
    best = min(range(len(options)), key=changes.__getitem__)
    if not changes[best] <= TOLERANCE:
        raise UnsupportedModelError(
            "RoPE of this model pairs key dimensions neither by halves nor by neighbours, so its frequencies cannot be "
            "told apart; use a compressor that needs no pairs (pca)"
        )
    return options[best]


def _energy_change(before: Tensor, after: Tensor, heads: int, pairs: Tensor) -> float:
    energies = [moment.diagonal().view(heads, -1)[:, pairs].sum(-1) for moment in (before, after)]
    ratio = energies[1] / energies[0].clamp_min(torch.finfo(torch.float64).tiny)
    return float((ratio / ratio.median() - 1).abs().max())


def rotation_averaged(metric: Tensor, pairs: Tensor) -> Tensor:
    """``metric`` (heads, d, d) averaged over all rotations of its frequencies ``pairs`` (frequencies, 2).

    Different frequencies decorrelate, and within a pair only the mean energy is left; dimensions without RoPE stay.
    """
    rotary = pairs.flatten()
    energy = metric.diagonal(dim1=1, dim2=2)[:, pairs].mean(-1)
    averaged = metric.clone()
    averaged[:, rotary, :] = 0
    averaged[:, :, rotary] = 0
    for column in pairs.T:
        averaged[:, column, column] = energy
    return averaged


def commuting_basis(moment: Tensor, heads: int, pairs: Tensor) -> Basis:
    """Principal axes of keys among all maps that mix heads within one frequency, over all ``heads`` as one group.

    ``moment`` (K, K) of keys before or after RoPE alike. Components come in pairs of equal value, real and imaginary
    part; a cut between pairs commutes with RoPE. Dimensions without RoPE have a real basis of their own.
    """
    width = len(moment)
    index = torch.arange(width).view(heads, -1)
    columns, values = [moment.new_zeros(width, 0)], [moment.new_zeros(0)]
    for real, imaginary in pairs.tolist():
        axes, energy = _complex_axes(moment, index[:, real], index[:, imaginary])
        columns.append(axes)
        values.append(energy.repeat_interleave(2) / 2)
    plain = index[:, ~torch.isin(torch.arange(index.shape[1]), pairs.flatten())].flatten()
    if len(plain):
        (energy,), (axes,) = principal_axes(moment[plain][:, plain], 1)
        columns.append(moment.new_zeros(width, len(plain)).index_copy_(0, plain, axes))
        values.append(energy.view(-1, 2).mean(1).repeat_interleave(2))
    order = torch.cat(values).argsort(descending=True, stable=True)
    encoder = torch.cat(columns, 1)[:, order]
    return Basis(torch.cat(values)[order][None], encoder[None], encoder.T[None])


def _complex_axes(moment: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Real axes (K, 2 · heads) of one frequency and the energies (heads,) of its complex components."""
    rr, ii = moment[real][:, real], moment[imaginary][:, imaginary]
    ir = moment[imaginary][:, real]
    energy, unitary = torch.linalg.eigh(torch.complex(rr + ii, ir - ir.T))  # E[z z^H], z = real + i · imaginary
    axes = moment.new_zeros(len(moment), len(real), 2)
    # w = U^H z: its real part is Uᵣᵀ real + Uᵢᵀ imaginary, its imaginary part Uᵣᵀ imaginary − Uᵢᵀ real.
    axes[real, :, 0], axes[imaginary, :, 0] = unitary.real, unitary.imag
    axes[real, :, 1], axes[imaginary, :, 1] = -unitary.imag, unitary.real
    return axes.flatten(1), energy.clamp_min(0)


def frequencies_of(axes: Tensor, heads: int, pairs: Tensor) -> Tensor:
    """Which of the frequencies ``pairs`` every pair of neighbouring columns of ``axes`` (K, n) mixes: (n / 2,).

    -1 where it is no single one of them, as for dimensions without RoPE.
    """
    energy = axes.square().view(heads, -1, axes.shape[1] // 2, 2).sum((0, 3))
    share, frequency = (energy[pairs].sum(1) / energy.sum(0)).max(0)
    return torch.where(share > 1 - TOLERANCE, frequency, -1)


def shared_counts(weights: Sequence[Tensor], count: int) -> Tensor:
    """How many components of every frequency (frequencies,) are kept where all layers keep the same, ``count`` in all.

    ``weights`` (frequencies, heads) are those of a layer's components; every layer keeps the heaviest of its own.
    """
    total = torch.stack([layer.sort(-1, descending=True).values for layer in weights]).sum(0)
    heaviest = total.flatten().argsort(descending=True, stable=True)[:count]
    return torch.zeros(total.numel(), dtype=torch.long).index_fill_(0, heaviest, 1).view_as(total).sum(-1)
