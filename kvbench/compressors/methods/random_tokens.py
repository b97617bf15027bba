"""``random``: tokens by chance."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.plain import RandomSelector


@dataclass(frozen=True)
class RandomTokens(Eviction):
    """Which tokens stay is drawn at random: what any eviction method must beat. Query-agnostic.

    Stored: the kept tokens and their slots. The draw depends on ``seed``, layer, head and slot alone, so that all rows
    of a batch and all runs agree.
    """

    name = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.seed >= 0, f"seed={self.seed} must be at least 0")

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Every layer draws for itself."""
        return RandomSelector(budget, self.seed, layer.geometry.layer)
