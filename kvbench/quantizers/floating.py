"""Narrower floating-point formats: 16-bit casts, and 8-bit floats with or without a scale per token and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.quantizers.base import Cost, Stored

SCALE = torch.float16


@dataclass(frozen=True)
class FloatQuantizer:
    """Latents in ``dtype``, saturating at its largest value.

    ``scaled`` first stretches every token of a head group to the format's whole range and keeps its largest magnitude
    in fp16.
    """

    dtype: torch.dtype
    scaled: bool = False
    block: int = 1

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, and largest magnitudes (batch, groups, tokens) if scaled."""
        limit = torch.finfo(self.dtype).max
        if not self.scaled:
            return {"codes": latents.clamp(-limit, limit).to(self.dtype, copy=True).contiguous()}
        bounds = torch.finfo(SCALE)
        largest = latents.abs().amax(-1).clamp(bounds.tiny, bounds.max).to(SCALE)
        # Rounding of the magnitude may push the largest value just over the limit.
        codes = (latents.float() * (limit / largest.float()).unsqueeze(-1)).clamp(-limit, limit).to(self.dtype)
        return {"codes": codes.contiguous(), "largest": largest}

    def decode(self, stored: Stored) -> Tensor:
        """Codes → latents in fp32."""
        latents = stored["codes"].float()
        if self.scaled:
            latents *= (stored["largest"].float() / torch.finfo(self.dtype).max).unsqueeze(-1)
        return latents

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The format's width per component, and 16 bits per token and group if scaled."""
        return Cost(groups * rank * self.dtype.itemsize * 8, groups * SCALE.itemsize * 8 if self.scaled else 0.0)

    def tensors(self) -> list[Tensor]:
        """Nothing at model level."""
        return []
