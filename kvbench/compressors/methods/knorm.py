"""``knorm``: tokens whose keys are short."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.plain import KeyNormSelector


@dataclass(frozen=True)
class KeyNorm(Eviction):
    """Keys of low L2 norm are kept, head by head, since they draw the most attention.

    Based on Devoto et al. 2024 (arXiv 2406.11430). Query-agnostic. Stored: the kept tokens and their slots.
    Differences: every layer is compressed, where the paper spares the first ones.
    """

    name = "knorm"
    paper = "arXiv 2406.11430"

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Nothing of the layer matters."""
        return KeyNormSelector(budget)
