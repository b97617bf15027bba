"""Bases fitted to the very sequence they compress: nothing is calibrated, and every row keeps a basis of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.codecs.transforms.linear import LinearTransform, gather_heads
from kvbench.codecs.transforms.rotations import random_rotation

SLICE = 4096
"""Tokens taken to fp64 at once while a prompt's moments are summed."""


@dataclass(frozen=True)
class PromptBasis:
    """The first ``rank`` principal axes of a sequence, over all its heads together (``width`` channels).

    By Eckart and Young this is the truncated SVD of the states around their mean. Basis and mean are kept in ``dtype``.
    Axes beyond the number of tokens are arbitrary: there is nothing to fit them to. With a ``seed`` the axes kept are
    rotated at random, so that a quantizer meets components alike.
    """

    width: int
    rank: int
    dtype: torch.dtype
    seed: int | None = None
    groups: ClassVar[int] = 1

    def fit(self, states: Tensor, real: Tensor | None) -> dict[str, Tensor]:
        """States (batch, kv heads, tokens, d) → ``basis`` (batch, 1, width, rank) and ``centre`` (batch, 1, width).

        ``real`` (batch, 1 or kv heads, tokens), None for all: the tokens that count.
        """
        flat = gather_heads(states, 1)
        weight = flat.new_ones(1, 1, 1, 1) if real is None else real[:, :1, :, None].to(flat.dtype)
        count = flat.shape[2] if real is None else real[:, :1].sum(-1, keepdim=True).clamp_min(1)
        centre = ((flat * weight).sum(2, dtype=torch.float64) / count).to(self.dtype)
        moment: Tensor | float = 0.0
        for start in range(0, flat.shape[2], SLICE):
            part = slice(start, start + SLICE)
            centred = flat[:, :, part].double() - centre.double().unsqueeze(2)
            if real is not None:
                centred = centred * weight[:, :, part].double()
            moment = moment + centred.transpose(-1, -2) @ centred
        assert isinstance(moment, Tensor)
        axes = torch.linalg.eigh(moment).eigenvectors[..., -self.rank :].flip(-1)
        if self.seed is not None:
            axes = axes @ random_rotation(self.rank, self.seed).to(axes.device)
        return {"basis": axes.to(self.dtype), "centre": centre}

    def transform(self, fitted: dict[str, Tensor]) -> LinearTransform:
        """The map of every row onto its own axes."""
        return LinearTransform(fitted["basis"], fitted["basis"].mT, fitted["centre"])

    @property
    def bits(self) -> int:
        """Bits that one row keeps."""
        return (self.rank + 1) * self.width * self.dtype.itemsize * 8
