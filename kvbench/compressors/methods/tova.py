"""``tova``: tokens that the newest token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Observing
from kvbench.selectors.attention import TovaSelector
from kvbench.selectors.base import Budget, Selector


@dataclass(frozen=True)
class Tova(Observing):
    """TOVA: one query's attention, mean over all heads of a layer, decides which tokens stay.

    Based on Oren et al. 2024, Transformers are Multi-State RNNs (arXiv 2401.06104). Query-agnostic: the last query
    before the exact window decides; ``query_aware=true`` takes the newest one, as the paper does. Stored: the kept
    tokens, the same in every head, and their slots. Differences: the paper evicts one token at every step from a cache
    of fixed size; here a share of each block that leaves the window is kept for good, and sinks and window are exact.
    """

    name = "tova"
    paper = "arXiv 2401.06104"
    published = ("tova:query_aware=true+int:bits=8",)

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Nothing of the layer matters."""
        return TovaSelector(budget, self.query_aware)
