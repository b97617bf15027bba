"""Integers, a low-rank guess of what they got wrong, and exact outliers: the quantizer of GEAR.

Kang et al. 2024, GEAR (arXiv 2403.05527). The low-rank factors are fitted to the tokens themselves, chunk by chunk, and
so belong to the cache: they are counted with the scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.outliers import BLOCK, Outliers

FACTOR = torch.float16


@dataclass(frozen=True)
class ResidualQuantizer:
    """``backbone`` integers, ``rank`` factors of their residual per ``chunk`` tokens of a head group, ``outliers``."""

    backbone: IntegerQuantizer
    outliers: Outliers
    rank: int
    chunk: int

    @property
    def block(self) -> int:
        """Whole chunks, and whole blocks of the parts."""
        return math.lcm(self.chunk, BLOCK, self.backbone.block)

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes and scales, outliers and their places, factors."""
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        chunks = latents.unflatten(2, (-1, self.chunk))
        mean = chunks.mean(3, keepdim=True).expand_as(chunks).flatten(2, 3)
        places = self.outliers.find(latents - mean)
        exact = self.outliers.take(latents, places)
        # Outliers would stretch the range of their group: their channel's mean stands in for them.
        inside = self.outliers.put(latents, places, self.outliers.take(mean, places))
        stored = self.backbone.encode(inside)
        left, right = self._factors(inside - self.backbone.decode(stored))
        return stored | {"left": left, "right": right, "outlier_places": places, "outliers": exact}

    def decode(self, stored: Stored) -> Tensor:
        """Stored tensors → latents in fp32."""
        latents = self.backbone.decode(stored)
        residual = torch.matmul(stored["left"].to(latents.dtype), stored["right"].to(latents.dtype))
        return self.outliers.put(latents + residual.flatten(2, 3), stored["outlier_places"], stored["outliers"])

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The backbone's, the outliers with their places, and both factors."""
        backbone = self.backbone.cost(groups, rank, dtype)
        factors = self._kept(rank) * (1 + rank / self.chunk) * FACTOR.itemsize * 8
        return Cost(backbone.payload, backbone.scales + groups * (self.outliers.bits(rank) + factors))

    def tensors(self) -> list[Tensor]:
        """Nothing at model level."""
        return self.backbone.tensors()

    def _kept(self, rank: int) -> int:
        return min(self.rank, rank, self.chunk)

    def _factors(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The best factors (batch, groups, chunks, chunk, r) and (…, r, rank) of every chunk's residual."""
        chunks = residual.unflatten(2, (-1, self.chunk))
        axes = torch.linalg.eigh(chunks.transpose(-1, -2) @ chunks).eigenvectors[..., -self._kept(residual.shape[-1]) :]
        right = axes.transpose(-1, -2).to(FACTOR)
        return (chunks @ right.to(chunks.dtype).transpose(-1, -2)).to(FACTOR), right
