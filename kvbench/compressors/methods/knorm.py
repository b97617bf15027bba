"""``knorm``: tokens whose keys are short."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.compressors.rules import at_least
from kvbench.selectors.base import Budget, Selector
from kvbench.selectors.plain import KeyNormSelector


@dataclass(frozen=True)
class KeyNorm(Eviction):
    """Keys of low L2 norm are kept, head by head, since they draw the most attention.

    Based on Devoto et al. 2024 (arXiv 2406.11430). Query-agnostic. Stored: the kept tokens and their slots. The first
    ``spared`` layers keep every token; the paper spares two, where norm and attention go together least. Differences:
    none are spared by default, so that ``budget`` is what is kept; sinks and window are exact.
    """

    name = "knorm"
    paper = "arXiv 2406.11430"
    published = ("knorm:spared=2+int:bits=8",)
    rules = (*Eviction.rules, at_least("spared", 0, "layers"))

    spared: int = 0

    def apply(self, draft: Draft) -> None:
        """One selector per layer but the first ones."""
        super().apply(draft)
        for layer in list(draft)[: self.spared]:
            layer.selector = None

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Nothing of the layer matters."""
        return KeyNormSelector(budget)
