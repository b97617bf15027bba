"""Non-uniform codes with a scale per channel or per token, and exact outliers: the quantizer of KVQuant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.quantizers.base import Cost, Stored
from kvbench.quantizers.lloyd import look_up, nearest
from kvbench.quantizers.outliers import BLOCK, Outliers
from kvbench.quantizers.packing import pack, unpack

SCALE = torch.float16


@dataclass(frozen=True)
class Channels:
    """Static scales: ``centre`` and ``deviation`` (groups, 1, rank), known beforehand and not stored per token."""

    centre: Tensor
    deviation: Tensor


@dataclass(frozen=True, eq=False)
class NonUniformQuantizer:
    """``bits`` per value from a table of ``levels`` for unit variance.

    Values are scaled by ``channels``, or without them by the mean and deviation of each token over all heads, two fp16
    per token, which leave the outliers out.
    """

    bits: int
    levels: Tensor
    outliers: Outliers
    channels: Channels | None = None
    block: int = BLOCK

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, outliers and their places, scales per token if not static."""
        latents = latents.float()
        centre, deviation = self._scales(latents, torch.ones_like(latents))
        places = self.outliers.find((latents - centre) / deviation)
        stored = {"outlier_places": places, "outliers": self.outliers.take(latents, places)}
        if self.channels is None:
            inside = self.outliers.put(torch.ones_like(latents), places, torch.zeros_like(stored["outliers"]))
            centre, deviation = self._scales(latents, inside)
            stored |= {"centre": centre.to(SCALE), "deviation": deviation.to(SCALE)}
        codes = nearest((latents - centre) / deviation, self.levels)
        return {"codes": pack(codes, (self.bits,) * latents.shape[-1])} | stored

    def decode(self, stored: Stored) -> Tensor:
        """Stored tensors → latents in fp32."""
        rank = stored["codes"].shape[-1] // self.bits
        latents = look_up(unpack(stored["codes"], (self.bits,) * rank), self.levels)
        if self.channels is None:
            latents = torch.addcmul(stored["centre"].float(), latents, stored["deviation"].float())
        else:
            latents = torch.addcmul(self.channels.centre, latents, self.channels.deviation)
        return self.outliers.put(latents, stored["outlier_places"], stored["outliers"])

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """bits per value; outliers with their places, and two fp16 per token without static scales."""
        dynamic = 2 * SCALE.itemsize * 8 if self.channels is None else 0
        return Cost(groups * rank * self.bits, groups * self.outliers.bits(rank) + dynamic)

    def tensors(self) -> list[Tensor]:
        """The levels and static scales."""
        return [self.levels, *([] if self.channels is None else [self.channels.centre, self.channels.deviation])]

    def _scales(self, latents: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Static scales, or those (batch, 1, tokens, 1) of the values ``inside`` (1 or 0), rounded as stored."""
        if self.channels is not None:
            return self.channels.centre, self.channels.deviation
        bounds = torch.finfo(SCALE)
        count = inside.sum((1, 3), keepdim=True)
        centre = (latents * inside).sum((1, 3), keepdim=True) / count
        centre = centre.clamp(-bounds.max, bounds.max).to(SCALE).float()
        deviation = (((latents - centre) * inside).square().sum((1, 3), keepdim=True) / count).sqrt()
        return centre, deviation.clamp(bounds.tiny, bounds.max).to(SCALE).float()
