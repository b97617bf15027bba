"""Codes from a table of levels, scaled per channel or per token, and exact outliers: the quantizer of KVQuant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.packing import pack, unpack
from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.codecs.quantizers.lloyd import look_up, nearest
from kvbench.codecs.quantizers.outliers import BLOCK, Outliers

SCALE = torch.float16


@dataclass(frozen=True)
class Channels:
    """Static scales: ``centre`` and ``width`` (groups, 1, rank), known beforehand and not stored per token."""

    centre: Tensor
    width: Tensor


@dataclass(frozen=True, eq=False)
class NonUniformQuantizer:
    """``bits`` per value from ``levels`` (2^bits,), ascending.

    The levels are stretched by ``channels``, or without them over the range −1…1 of each token's values in all heads
    but its outliers: middle and half width, two fp16 per token.
    """

    bits: int
    levels: Tensor
    outliers: Outliers
    channels: Channels | None = None
    block: int = BLOCK

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, outliers and their places, scales per token if not static."""
        latents = latents.float()
        places = self.outliers.find(self._standing_out(latents))
        stored = {"outlier_places": places, "outliers": self.outliers.take(latents, places)}
        if self.channels is None:
            nothing = torch.full_like(stored["outliers"], torch.nan)
            centre, width = _range(self.outliers.put(latents, places, nothing))
            stored |= {"centre": centre, "width": width}
        else:
            centre, width = self.channels.centre, self.channels.width
        codes = nearest((latents - centre.float()) / width.float(), self.levels)
        return {"codes": pack(codes, (self.bits,) * latents.shape[-1])} | stored

    def decode(self, stored: Stored) -> Tensor:
        """Stored tensors → latents in fp32."""
        rank = stored["codes"].shape[-1] // self.bits
        latents = look_up(unpack(stored["codes"], (self.bits,) * rank), self.levels)
        if self.channels is None:
            latents = torch.addcmul(stored["centre"].float(), latents, stored["width"].float())
        else:
            latents = torch.addcmul(self.channels.centre, latents, self.channels.width)
        return self.outliers.put(latents, stored["outlier_places"], stored["outliers"])

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """bits per value; outliers with their places, and two fp16 per token without static scales."""
        dynamic = 2 * SCALE.itemsize * 8 if self.channels is None else 0
        return Cost(groups * rank * self.bits, groups * self.outliers.bits(rank) + dynamic)

    def tensors(self) -> list[Tensor]:
        """The levels and static scales."""
        return [self.levels, *([] if self.channels is None else [self.channels.centre, self.channels.width])]

    def _standing_out(self, latents: Tensor) -> Tensor:
        """How many deviations each value is away from its channel's mean, or from its token's without channels."""
        if self.channels is not None:
            return (latents - self.channels.centre) / self.channels.width
        mean = latents.mean((1, 3), keepdim=True)
        deviation = latents.sub(mean).square().mean((1, 3), keepdim=True).sqrt()
        return (latents - mean) / deviation.clamp_min(torch.finfo(SCALE).tiny)


def _range(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half width (batch, 1, tokens, 1) in fp16 of what in ``inside`` is not NaN."""
    bounds = torch.finfo(SCALE)
    high = inside.nan_to_num(-torch.inf).amax((1, 3), keepdim=True)
    low = inside.nan_to_num(torch.inf).amin((1, 3), keepdim=True)
    centre = ((low + high) / 2).nan_to_num(0)  # a token of nothing but outliers has no range
    centre = centre.clamp(-bounds.max, bounds.max).to(SCALE)
    return centre, (high - centre.float()).clamp(bounds.tiny, bounds.max).to(SCALE)
