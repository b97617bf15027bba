"""``tova``: tokens that the newest token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.selectors.attention import TovaSelector
from kvbench.selectors.base import Selector


@dataclass(frozen=True)
class Tova(Eviction):
    """TOVA: the newest query's attention, mean over all heads of a layer, decides which tokens stay.

    Based on Oren et al. 2024, Transformers are Multi-State RNNs (arXiv 2401.06104). Query-aware. Stored: the kept
    tokens, the same in every head, and their slots. Differences: the paper evicts one token at every step from a cache
    of fixed size; here a share of each block that leaves the window is kept for good, and sinks and window are exact.
    """

    name = "tova"
    paper = "arXiv 2401.06104"
    query_aware = True

    def selector(self, layer: LayerDraft, draft: Draft) -> Selector:
        """Nothing of the layer matters."""
        return TovaSelector(self.budget)
