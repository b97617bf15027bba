"""Narrower floating-point formats: 16-bit casts, and 8-bit floats with or without a scale per token and head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, constant
from kvbench.codecs.packing import TOKENS_PER_GROUP, pack, unpack
from kvbench.codecs.quantizers.base import Cost, Stored

SCALE = torch.float16


@lru_cache(maxsize=8)
def _levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each of the 256 codes of an 8-bit ``dtype`` stands for; zero for those that are no number."""
    return torch.arange(256, dtype=torch.uint8, device=device).view(dtype).float().nan_to_num(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class FloatQuantizer:
    """Latents in ``dtype``, saturating at its largest value.

    ``scaled`` first stretches every token of a head group to the format's whole range and keeps its largest magnitude
    in fp16. Formats of 8 bits are packed as codes, eight tokens at a time.
    """

    dtype: torch.dtype
    scaled: bool = False

    @property
    def block(self) -> int:
        """Whole packing groups of 8-bit formats."""
        return TOKENS_PER_GROUP if self.dtype.itemsize == 1 else 1

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, and largest magnitudes (batch, groups, tokens) if scaled."""
        limit = torch.finfo(self.dtype).max
        if not self.scaled:
            return {"codes": self._packed(latents.clamp(-limit, limit).to(self.dtype, copy=True))}
        bounds = torch.finfo(SCALE)
        largest = latents.abs().amax(-1).clamp(bounds.tiny, bounds.max).to(SCALE)
        # Rounding of the magnitude may push the largest value just over the limit.
        codes = (latents.float() * (limit / largest.float()).unsqueeze(-1)).clamp(-limit, limit).to(self.dtype)
        return {"codes": self._packed(codes), "largest": largest}

    def decode(self, stored: Stored) -> Tensor:
        """Codes → latents in fp32."""
        codes = stored["codes"]
        if self.dtype.itemsize == 1:
            codes = unpack(codes, (8,) * (codes.shape[-1] // TOKENS_PER_GROUP)).view(self.dtype)
        latents = codes.float()
        if self.scaled:
            latents *= (stored["largest"].float() / torch.finfo(self.dtype).max).unsqueeze(-1)
        return latents

    def coded(self, stored: Stored) -> Coded | Tensor | None:
        """Scaled 8-bit codes with the format's values as levels; longer formats without a scale as they are.

        None for 8-bit codes without a scale: two bytes do not hold the format's range.
        """
        codes = stored["codes"]
        if self.dtype.itemsize > 1:
            return None if self.scaled else codes
        if not self.scaled:
            return None
        rank = codes.shape[-1] // TOKENS_PER_GROUP
        levels = {8: _levels(self.dtype, codes.device)}
        component = constant(1 / torch.finfo(self.dtype).max, rank, codes.device)
        return Coded(codes, (8,) * rank, rank, levels, stored["largest"].unsqueeze(-1), component=component)

    def _packed(self, codes: Tensor) -> Tensor:
        return pack(codes.view(torch.uint8), (8,) * codes.shape[-1]) if self.dtype.itemsize == 1 else codes.contiguous()

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The format's width per component, and 16 bits per token and group if scaled."""
        return Cost(groups * rank * self.dtype.itemsize * 8, groups * SCALE.itemsize * 8 if self.scaled else 0.0)

    def tensors(self) -> list[Tensor]:
        """Nothing at model level."""
        return []
