"""``snapkv``: tokens that the end of the prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Eviction
from kvbench.selectors.attention import SnapKvSelector
from kvbench.selectors.base import OBSERVED, Selector


@dataclass(frozen=True)
class SnapKv(Eviction):
    """SnapKV: the attention of the prompt's last ``window`` queries, pooled over ``kernel`` neighbours, picks tokens.

    Based on Li et al. 2024, SnapKV (arXiv 2404.14469). Query-aware: the question must be part of the prompt. Stored:
    the kept tokens of every KV head and their slots. Differences: the score is the mean over the query heads of a
    group, so that memory is per KV head; tokens that leave the window while decoding are judged by the one query at
    hand, over the window alone, where the paper keeps all of them.
    """

    name = "snapkv"
    paper = "arXiv 2404.14469"
    query_aware = True

    window: int = OBSERVED
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1 <= self.window <= OBSERVED, f"window={self.window} must be in 1…{OBSERVED} queries")
        self.require(self.kernel >= 1 and self.kernel % 2 == 1, f"kernel={self.kernel} must be odd")

    def selector(self, layer: LayerDraft, draft: Draft) -> Selector:
        """Nothing of the layer matters."""
        return SnapKvSelector(self.budget, self.window, self.kernel)
