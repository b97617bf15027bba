"""Narrower floating-point formats: 16-bit casts, and 8-bit floats with or without scales per token."""

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

    ``scaled`` first stretches ``group`` channels of every token (None: those of a whole head group) to the format's
    range and keeps their largest magnitude in ``scale``. Formats of 8 bits are packed as codes, eight tokens at a time.
    """

    dtype: torch.dtype
    scaled: bool = False
    group: int | None = None
    scale: torch.dtype = SCALE

    @property
    def block(self) -> int:
        """Whole packing groups of 8-bit formats."""
        return TOKENS_PER_GROUP if self.dtype.itemsize == 1 else 1

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, and largest magnitudes (batch, groups, tokens, channel groups)
        if scaled."""
        limit = torch.finfo(self.dtype).max
        if not self.scaled:
            return {"codes": self._packed(latents.clamp(-limit, limit).to(self.dtype, copy=True))}
        bounds, rank = torch.finfo(self.scale), latents.shape[-1]
        pieces = latents.abs().split(self._channels(rank), -1)
        largest = torch.stack([piece.amax(-1) for piece in pieces], -1).clamp(bounds.tiny, bounds.max).to(self.scale)
        # Rounding of the magnitude may push the largest value just over the limit.
        stretched = latents.float() * self._by_channel(limit / largest.float(), rank)
        return {"codes": self._packed(stretched.clamp(-limit, limit).to(self.dtype)), "largest": largest}

    def decode(self, stored: Stored) -> Tensor:
        """Codes → latents in fp32."""
        codes = stored["codes"]
        if self.dtype.itemsize == 1:
            codes = unpack(codes, (8,) * (codes.shape[-1] // TOKENS_PER_GROUP)).view(self.dtype)
        latents = codes.float()
        if self.scaled:
            latents *= self._by_channel(stored["largest"].float() / torch.finfo(self.dtype).max, latents.shape[-1])
        return latents

    def coded(self, stored: Stored) -> Coded | Tensor | None:
        """Scaled 8-bit codes with the format's values as levels; longer formats without a scale as they are.

        None for 8-bit codes without a scale, as two bytes do not hold the format's range.
        """
        codes = stored["codes"]
        if self.dtype.itemsize > 1:
            return None if self.scaled else codes
        if not self.scaled:
            return None
        rank = codes.shape[-1] // TOKENS_PER_GROUP
        levels = {8: _levels(self.dtype, codes.device)}
        component = constant(1 / torch.finfo(self.dtype).max, rank, codes.device)
        return Coded(codes, (8,) * rank, self._channels(rank), levels, stored["largest"], component=component)

    def _channels(self, rank: int) -> int:
        """Channels that share a scale."""
        return rank if self.group is None else min(self.group, rank)

    def _by_channel(self, scales: Tensor, rank: int) -> Tensor:
        """Scales of channel groups (…, groups) for each of ``rank`` channels, or for all where there is one."""
        return scales if scales.shape[-1] == 1 else scales.repeat_interleave(self._channels(rank), -1)[..., :rank]

    def _packed(self, codes: Tensor) -> Tensor:
        return pack(codes.view(torch.uint8), (8,) * codes.shape[-1]) if self.dtype.itemsize == 1 else codes.contiguous()

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The format's width per component, and that of a scale per token and channel group if scaled."""
        scales = -(-rank // self._channels(rank)) if self.scaled and rank else 0
        return Cost(groups * rank * self.dtype.itemsize * 8, groups * scales * self.scale.itemsize * 8)

    def tensors(self) -> list[Tensor]:
        """Nothing at model level."""
        return []
