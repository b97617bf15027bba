"""``random``: tokens by chance."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.compressors.rules import at_least
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.plain import RandomSelector


@dataclass(frozen=True)
class RandomTokens(Eviction):
    """Which tokens stay is drawn at random: what any eviction method must beat. Query-agnostic.

    Stored: the kept tokens and their slots. The draw depends on ``seed``, layer, head and slot alone, so that all rows
    of a batch and all runs agree.
    """

    name = "random"
    rules = (*Eviction.rules, at_least("seed", 0))

    seed: int = 0

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Every layer draws for itself."""
        return RandomSelector(budget, self.seed, layer.geometry.layer)
