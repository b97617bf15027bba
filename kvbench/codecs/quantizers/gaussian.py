"""Lloyd–Max codes of a Gaussian on the unit sphere, and one norm per token: the quantizer of TurboQuant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, constant
from kvbench.codecs.packing import TOKENS_PER_GROUP, pack, unpack
from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.codecs.quantizers.lloyd import gaussian_levels, look_up, nearest

NORM = torch.float16


@dataclass(frozen=True, eq=False)
class GaussianQuantizer:
    """``bits`` per component of z · √rank / ‖z‖, and ‖z‖ in fp16 per token and head group.

    Meant for rotated vectors, whose components are close to normal. Nothing is calibrated.
    """

    bits: int
    levels: Tensor
    block: int = TOKENS_PER_GROUP

    @classmethod
    def on(cls, device: torch.device, bits: int) -> GaussianQuantizer:
        """With the level table of this width on ``device``."""
        return cls(bits, gaussian_levels()[bits][0].to(device))

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank) → packed codes, norms (batch, groups, tokens)."""
        bounds, rank = torch.finfo(NORM), latents.shape[-1]
        norm = latents.float().norm(dim=-1).clamp(bounds.tiny, bounds.max).to(NORM)
        scaled = latents.float() * (rank**0.5 / norm.float()).unsqueeze(-1)
        return {"codes": pack(nearest(scaled, self.levels), (self.bits,) * rank), "norm": norm}

    def decode(self, stored: Stored) -> Tensor:
        """Codes and norms → latents in fp32."""
        rank = stored["codes"].shape[-1] // self.bits
        codes = unpack(stored["codes"], (self.bits,) * rank)
        return look_up(codes, self.levels).mul_((stored["norm"].float() / rank**0.5).unsqueeze(-1))

    def coded(self, stored: Stored) -> Coded:
        """The codes and the level table, scaled by each token's norm."""
        rank = stored["codes"].shape[-1] // self.bits
        levels, each = {self.bits: self.levels}, constant(rank**-0.5, rank, self.levels.device)
        return Coded(stored["codes"], (self.bits,) * rank, rank, levels, stored["norm"].unsqueeze(-1), component=each)

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """bits per component, 16 bits per token and group."""
        return Cost(groups * rank * self.bits, groups * NORM.itemsize * 8)

    def tensors(self) -> list[Tensor]:
        """The levels."""
        return [self.levels]
