"""``snapkv``: tokens that the end of the prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.eviction import Observing
from kvbench.compressors.rules import Bounds, Multiple, at_least
from kvbench.selectors.attention import SnapKvSelector
from kvbench.selectors.base import Budget, Selector

WINDOW = 64
"""Queries that choose, by default and at most."""


@dataclass(frozen=True)
class SnapKv(Observing):
    """SnapKV: the attention of ``window`` queries, pooled over ``kernel`` neighbours, picks tokens.

    Based on Li et al. 2024, SnapKV (arXiv 2404.14469). Query-agnostic: the last queries before the exact window choose.
    ``query_aware=true`` is the paper's way, the prompt's very last ones, of which the question must be part. Stored:
    the kept tokens of every KV head and their slots. Differences: attention is pooled by its mean, not its maximum; the
    score is the mean over the query heads of a group, so that memory is per KV head; tokens that leave the window while
    decoding are judged by the one query at hand, over the window alone, where the paper keeps all of them.
    """

    name = "snapkv"
    paper = "arXiv 2404.14469"
    published = ("snapkv:query_aware=true+int:bits=8",)
    rules = (
        *Observing.rules,
        Bounds("window", 1, WINDOW, unit=" queries"),
        at_least("kernel", 1),
        Multiple("kernel", odd=True),
    )

    window: int = WINDOW
    kernel: int = 5

    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """Nothing of the layer matters."""
        return SnapKvSelector(budget, self.window, self.kernel, self.query_aware)
