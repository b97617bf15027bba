"""Selectors that need no attention: drop everything, key norms, chance. Query-agnostic."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.selectors.base import Budget, Leaving, Selector


@dataclass(frozen=True)
class DropAll(Selector):
    """Nothing of the body is kept: sinks and recent window are all there is."""

    judges_heads = False

    budget: Budget = field(default_factory=lambda: Budget(0.0))

    def scores(self, leaving: Leaving) -> Tensor:
        """All alike."""
        return torch.zeros_like(leaving.candidates[0][..., 0])


@dataclass(frozen=True)
class KeyNormSelector(Selector):
    """Keys of low norm are kept: they tend to draw high attention."""

    def scores(self, leaving: Leaving) -> Tensor:
        """−‖k‖."""
        return -leaving.candidates[0].norm(dim=-1)


@dataclass(frozen=True)
class RandomSelector(Selector):
    """Chance, the same for every row of a batch, different for every layer, head and block of tokens."""

    judges_heads = False

    seed: int
    layer: int

    def scores(self, leaving: Leaving) -> Tensor:
        """Uniform draws seeded by ``seed``, ``layer`` and the first candidate's slot."""
        keys = leaving.candidates[0]
        name = f"{self.seed} {self.layer} {leaving.start + leaving.begin}"
        # Torch's generator looks at 32 bits of its seed only, so all three must be mixed into those.
        mixed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
        generator = torch.Generator().manual_seed(mixed)
        drawn = torch.rand(keys.shape[1:3], generator=generator)
        return drawn.to(keys.device).expand(keys.shape[0], -1, -1)
