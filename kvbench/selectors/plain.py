"""Selectors that need no attention: drop everything, key norms, chance. Query-agnostic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.selectors.base import Leaving, Selector


@dataclass(frozen=True)
class DropAll(Selector):
    """Nothing of the body is kept: sinks and recent window are all there is."""

    budget: float = 0.0

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
    """Chance, the same for every row of a batch, different for every head and block of tokens."""

    seed: int

    def scores(self, leaving: Leaving) -> Tensor:
        """Uniform draws seeded by ``seed`` and the first candidate's slot."""
        keys = leaving.candidates[0]
        generator = torch.Generator().manual_seed(self.seed << 32 | leaving.start + leaving.begin)
        drawn = torch.rand(keys.shape[1:3], generator=generator)
        return drawn.to(keys.device).expand(keys.shape[0], -1, -1)
