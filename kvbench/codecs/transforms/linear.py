"""Linear changes of coordinates over head groups.

Every transform kvbench stores in, whether per-head PCA, a joint-heads basis, a Palu head group or a Hadamard
rotation, is one affine map per group of adjacent KV heads: ``z = (x − μ) E``, back ``x̂ = z D + μ``.

Bases are kept in 16 bit and computed with in fp32: what multiplies by one widens it for that one multiplication, and
no wide copy is kept. Of an orthonormal basis, whose encoder is its decoder transposed, only the decoder is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """``encoder`` (groups, in, rank), ``decoder`` (groups, rank, in), ``mean`` (groups, in).

    ``in`` is heads_per_group · head_dim; the groups together cover all KV heads in order. A leading batch axis on all
    three gives every row a map of its own. The encoder may be a transposed view of the decoder.
    """

    encoder: Tensor
    decoder: Tensor
    mean: Tensor

    @property
    def groups(self) -> int:
        """Head groups, each with latents of its own."""
        return self.encoder.shape[-3]

    @property
    def rank(self) -> int:
        """Latent components per group."""
        return self.encoder.shape[-1]

    @cached_property
    def shifts(self) -> bool:
        """Whether the mean is anything but zero: read back from the device once, not at every step."""
        return bool(self.mean.any())

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: fp32, or fp64 for a basis kept in that."""
        return torch.promote_types(self.decoder.dtype, torch.float32)

    @property
    def orthonormal(self) -> bool:
        """Whether the encoder is the decoder transposed, in the same memory."""
        transposed = self.decoder.mT
        same = self.encoder.data_ptr() == transposed.data_ptr() and self.encoder.stride() == transposed.stride()
        return same and self.encoder.shape == transposed.shape

    def to(self, device: torch.device) -> LinearTransform:
        """The same transform on ``device``."""
        decoder = self.decoder.to(device)
        encoder = decoder.mT if self.orthonormal else self.encoder.to(device)
        return LinearTransform(encoder, decoder, self.mean.to(device))

    def rotated(self, rotation: Tensor) -> LinearTransform:
        """The same transform with its latents rotated by the orthogonal ``rotation`` (rank, rank): free when used."""
        matrix = rotation.double().to(self.encoder.device)
        decoder = (matrix.T @ self.decoder.double()).to(self.decoder.dtype)
        if self.orthonormal:
            return LinearTransform(decoder.mT, decoder, self.mean)
        return LinearTransform((self.encoder.double() @ matrix).to(self.encoder.dtype), decoder, self.mean)

    def channels(self, start: int, count: int) -> LinearTransform:
        """What decodes ``count`` channels from ``start`` on, of a transform of a single group."""
        encoder, decoder = self.encoder.narrow(-2, start, count), self.decoder.narrow(-1, start, count)
        return LinearTransform(encoder, decoder, self.mean.narrow(-1, start, count))

    def forward(self, states: Tensor) -> Tensor:
        """(batch, kv heads, tokens, head_dim) → latents (batch, groups, tokens, rank) in :attr:`dtype`."""
        return torch.matmul(self.centred(states), self.encoder.to(self.dtype))

    def centred(self, states: Tensor) -> Tensor:
        """States (batch, kv heads, tokens, head_dim) less the mean, (batch, groups, tokens, in) in :attr:`dtype`."""
        return gather_heads(states, self.groups).to(self.dtype) - self.mean.unsqueeze(-2)

    @property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Encoder and decoder in :attr:`dtype`."""
        decoder = self.decoder.to(self.dtype)
        return (decoder.mT if self.orthonormal else self.encoder.to(self.dtype)), decoder

    def inverse(self, latents: Tensor, kv_heads: int) -> Tensor:
        """Latents (batch, groups, tokens, rank) → states (batch, kv heads, tokens, head_dim) in :attr:`dtype`."""
        grouped = torch.matmul(latents.to(self.dtype), self.decoder.to(self.dtype)) + self.mean.unsqueeze(-2)
        return scatter_heads(grouped, kv_heads)

    def tensors(self) -> list[Tensor]:
        """The model-level tensors."""
        return [self.encoder, self.decoder, self.mean]


def gather_heads(states: Tensor, groups: int) -> Tensor:
    """(batch, kv heads, tokens, d) → (batch, groups, tokens, heads_per_group · d); heads of a group are adjacent."""
    batch, heads, tokens, dim = states.shape
    if groups == heads:
        return states
    per_group = heads // groups
    return states.view(batch, groups, per_group, tokens, dim).transpose(2, 3).reshape(batch, groups, tokens, -1)


def scatter_heads(grouped: Tensor, kv_heads: int) -> Tensor:
    """The inverse of :func:`gather_heads`."""
    batch, groups, tokens, width = grouped.shape
    if groups == kv_heads:
        return grouped
    per_group = kv_heads // groups
    states = grouped.view(batch, groups, tokens, per_group, width // per_group).transpose(2, 3)
    return states.reshape(batch, kv_heads, tokens, -1)
