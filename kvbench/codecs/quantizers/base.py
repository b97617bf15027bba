"""What a quantizer is: latents in, a few named tensors out, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Stored = dict[str, Tensor]
"""Named tensors of one encoded span, each (batch, groups, entries, …), entries a fixed fraction of the tokens.

The name tells what its bytes are: ``codes`` and ``latent`` are payload, everything else is scales and indices.
"""

PAYLOAD = frozenset({"codes", "latent"})


@dataclass(frozen=True)
class Cost:
    """Bits that one token takes in one layer and side, over all its groups: predicted, before anything is stored."""

    payload: float
    scales: float = 0.0


class Quantizer(Protocol):
    """Maps latents (batch, groups, tokens, rank) to :data:`Stored` and back."""

    @property
    def block(self) -> int:
        """Tokens are encoded in multiples of this."""

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, groups, tokens, rank), tokens a multiple of ``block``, to stored tensors."""

    def decode(self, stored: Stored) -> Tensor:
        """Stored tensors back to latents (batch, groups, tokens, rank)."""

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """Predicted bits per token; ``dtype`` is the cache's own."""

    def tensors(self) -> list[Tensor]:
        """Model-level tensors (codebooks, static scales) that decoding needs."""


@runtime_checkable
class Divisible(Quantizer, Protocol):
    """A quantizer whose first components can be quantized by themselves."""

    def first(self, count: int) -> Quantizer:
        """The quantizer of the first ``count`` components."""


@dataclass(frozen=True)
class Passthrough:
    """No quantization: latents in the cache's own dtype."""

    dtype: torch.dtype
    block: int = 1

    def encode(self, latents: Tensor) -> Stored:
        """The latents, cast; always a copy, since the exact tokens they come from are dropped and reused."""
        return {"latent": latents.to(self.dtype, copy=True, memory_format=torch.contiguous_format)}

    def decode(self, stored: Stored) -> Tensor:
        """The latents."""
        return stored["latent"]

    def first(self, count: int) -> Passthrough:
        """The same: every component is kept as it is."""
        return self

    def coded(self, stored: Stored) -> Tensor:
        """The latents, for kernels to read in place."""
        return stored["latent"]

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """Every component at the dtype's width."""
        return Cost(groups * rank * self.dtype.itemsize * 8)

    def tensors(self) -> list[Tensor]:
        """Nothing at model level."""
        return []
