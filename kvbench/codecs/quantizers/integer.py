"""Group-wise asymmetric integers: the quantizer of KIVI, Hugging Face's QuantizedCache and most peers.

``x ≈ scale · code + zero`` with scale and zero in fp16 per group of values, the group running along the channels of
one token or along the tokens of one channel (KIVI, Liu et al. 2024, arXiv 2402.02750: keys have outlier *channels*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import BlockAffine, Coded
from kvbench.codecs.packing import TOKENS_PER_GROUP, pack, unpack
from kvbench.codecs.quantizers.base import Cost, Stored

SCALE = torch.float16


@dataclass(frozen=True)
class IntegerQuantizer:
    """``bits`` per value, one fp16 scale and zero per ``group`` values along ``axis``."""

    bits: int
    group: int
    axis: Literal["channel", "token"] = "channel"

    @property
    def block(self) -> int:
        """Whole groups of tokens, and whole packing groups."""
        return math.lcm(TOKENS_PER_GROUP, self.group) if self.axis == "token" else TOKENS_PER_GROUP

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → codes, scale, zero."""
        grouped = self._grouped(latents.to(torch.promote_types(latents.dtype, torch.float32)))
        axis = self._reduced
        low, high = grouped.amin(axis), grouped.amax(axis)
        limit = torch.finfo(SCALE).max
        zero = low.clamp(-limit, limit).to(SCALE)
        # The scale is rounded before the codes are taken, so that codes fit the scale that decoding will see.
        scale = ((high - zero) / (2**self.bits - 1)).clamp(torch.finfo(SCALE).tiny, limit).to(SCALE)
        codes = (grouped - zero.unsqueeze(axis)) / scale.unsqueeze(axis)
        codes = codes.round_().clamp_(0, 2**self.bits - 1).to(torch.uint8)
        codes = self._flat(codes, latents.shape[-1])
        return {"codes": pack(codes, (self.bits,) * latents.shape[-1]), "scale": scale, "zero": zero}

    def decode(self, stored: Stored) -> Tensor:
        """Codes, scale, zero → latents in fp32."""
        scale, zero = stored["scale"].float(), stored["zero"].float()
        rank = stored["codes"].shape[-1] // self.bits
        codes = unpack(stored["codes"], (self.bits,) * rank)
        grouped = self._grouped(codes).float()
        axis = self._reduced
        return self._flat(torch.addcmul(zero.unsqueeze(axis), grouped, scale.unsqueeze(axis)), rank)

    def coded(self, stored: Stored) -> Coded:
        """The codes, with a scale and zero per token and channel group, or per component and block of tokens."""
        codes, scale, zero = stored["codes"], stored["scale"], stored["zero"]
        rank = codes.shape[-1] // self.bits
        widths = (self.bits,) * rank
        if self.axis == "token":
            return Coded(codes, widths, rank, blocks=BlockAffine(self.group, scale, zero))
        return Coded(codes, widths, self._channels(rank), None, scale, zero)

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """bits per value, plus two fp16 per group."""
        pairs = rank / self.group if self.axis == "token" else math.ceil(rank / self._channels(rank))
        return Cost(groups * rank * self.bits, groups * pairs * 2 * SCALE.itemsize * 8)

    def tensors(self) -> list[Tensor]:
        """Nothing at model level: scales belong to the tokens."""
        return []

    @property
    def _reduced(self) -> int:
        return -2 if self.axis == "token" else -1

    def _channels(self, rank: int) -> int:
        return min(self.group, rank)

    def _grouped(self, states: Tensor) -> Tensor:
        """Split the quantized axis into (groups, group); a ragged last channel group repeats its last value."""
        batch, heads, tokens, rank = states.shape
        if self.axis == "token":
            return states.reshape(batch, heads, tokens // self.group, self.group, rank)
        size = self._channels(rank)
        ragged = -rank % size
        if ragged:
            states = torch.cat([states, states[..., -1:].expand(*states.shape[:-1], ragged)], -1)
        return states.unflatten(-1, (-1, size))

    def _flat(self, grouped: Tensor, rank: int) -> Tensor:
        if self.axis == "token":
            return grouped.flatten(2, 3)
        return grouped.flatten(-2)[..., :rank]
