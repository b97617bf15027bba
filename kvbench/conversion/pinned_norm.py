"""An RMSNorm that does nothing.

DeepSeek normalises its latents, and a latent that is fitted to a trained model must come through as it is. One more
channel that always holds the same large number ``c`` pins the norm's divisor: with r latent channels of length at most
``|z|``,

    z / √((|z|² + c²) / (r + 1) + ε)  =  z / σ · (1 − O(|z|² / 2c²)),   σ = √(c² / (r + 1) + ε),

which the weights on both sides undo. With |z| / c ≤ 2⁻²⁴ the rest is 2⁻⁴⁹: below what fp32 rounds, and in fp32 nothing
at all, because |z|² is lost in the sum. The norm's weight for the channel is 0, so what is cached of it is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6
"""ε of the norms of latents in DeepSeek-V3's code: they take the class's default, whatever the config says."""
MARGIN, MARGIN_IN_FP16 = 2.0**24, 2.0**5
"""How often the longest latent goes into ``c``. fp16 has no room for more, and rounds by 2⁻¹¹ anyway."""
LARGEST, LARGEST_IN_FP16 = 2.0**60, 2.0**15
"""Of ``c``, whose square must be a number of fp32 and which itself must be one of the weights' dtype."""


@dataclass(frozen=True)
class PinnedNorm:
    """A projection to ``weight`` (r + 1, in), ``bias`` (r + 1,), its norm's weight ``norm`` (r + 1,), all in fp64.

    What the norm puts out are the latents divided by ``scale``, near 1 unless they are too long for the dtype, and a
    zero behind them.
    """

    weight: Tensor
    bias: Tensor
    norm: Tensor
    scale: float

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, longest: float, dtype: torch.dtype) -> PinnedNorm:
        """For latents ``weight`` (r, in) x + ``bias`` (r,) no longer than ``longest``, stored in ``dtype``.

        The constant, the norm's weight and what latents are shrunk by where ``c`` would be too large for the dtype are
        powers of two, so that no dtype rounds them.
        """
        narrow = dtype == torch.float16
        margin, largest = (MARGIN_IN_FP16, LARGEST_IN_FP16) if narrow else (MARGIN, LARGEST)
        constant = 2.0 ** math.ceil(math.log2(longest * margin)) if longest > 0 else 1.0
        shrunk = min(1.0, largest / constant)
        constant *= shrunk
        divisor = math.sqrt(constant**2 / (len(weight) + 1) + EPSILON) / shrunk
        kept = min(2.0 ** round(math.log2(divisor)), largest)
        norm = torch.full((len(weight),), kept, dtype=torch.float64)
        return cls(
            functional.pad(weight * shrunk, (0, 0, 0, 1)),
            functional.pad(bias * shrunk, (0, 1), value=constant),
            functional.pad(norm, (0, 1)),
            divisor / kept,
        )

    def followed_by(self, matrix: Tensor) -> Tensor:
        """``matrix`` (out, r) behind the latents as one (out, r + 1) behind the norm."""
        return functional.pad(matrix * self.scale, (0, 1))


def longest_output(weight: Tensor, bias: Tensor, norm: Tensor) -> float:
    """No output of ``weight`` (out, in), ``bias`` (out,) behind an RMSNorm of weight ``norm`` (in,) is longer.

    What the norm puts out before its weight has length √in at most.
    """
    return math.sqrt(len(norm)) * float(torch.linalg.matrix_norm(weight * norm, 2)) + float(bias.norm())
