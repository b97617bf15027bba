"""What all eviction methods share: a budget, and a selector on every layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.part import Part
from kvbench.selectors.base import Selector


@dataclass(frozen=True)
class Eviction(Part):
    """Base of methods that keep ``budget`` of the body's tokens per KV head and never encode the rest.

    Stored beside the kept tokens: the slot of each, 32 bits per KV head. Sinks and recent window stay exact; evicted
    tokens never come back, and what was kept once is never evicted later. The budget holds for the whole body, block by
    block as tokens leave the window.
    """

    family = "eviction"
    roles = ("selector",)
    query_aware: ClassVar[bool] = False
    """Whether the choice depends on queries, so that a prompt compressed for one question may fail another."""

    budget: float

    def __post_init__(self) -> None:
        self.require(0 < self.budget <= 1, f"budget={self.budget:g} must be in (0, 1], a fraction of the body's tokens")

    def apply(self, draft: Draft) -> None:
        """One selector per layer."""
        for layer in draft:
            layer.selector = self.selector(layer, draft)

    @abstractmethod
    def selector(self, layer: LayerDraft, draft: Draft) -> Selector:
        """The selector of one layer."""
