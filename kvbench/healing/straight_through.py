"""Rounding that gradients pass as if it were not there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.codecs.quantizers.base import Cost, Quantizer, Stored


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """``quantizer`` with the identity's gradient: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    What it stores are the decoded latents, so that bases learn from what decoding will see.
    """

    quantizer: Quantizer

    @property
    def block(self) -> int:
        """The quantizer's."""
        return self.quantizer.block

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank), through codes and back."""
        with torch.no_grad():
            error = self.quantizer.decode(self.quantizer.encode(latents.detach())) - latents
        return {"latent": latents + error}

    def decode(self, stored: Stored) -> Tensor:
        """The latents."""
        return stored["latent"]

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The quantizer's."""
        return self.quantizer.cost(groups, rank, dtype)

    def tensors(self) -> list[Tensor]:
        """The quantizer's."""
        return self.quantizer.tensors()
