"""What all eviction methods share: a budget, and a selector on every layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from kvbench.compressors.draft import Draft, LayerDraft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Either, Rule, at_least, share
from kvbench.selectors.base import Budget, Selector


@dataclass(frozen=True)
class Eviction(Part):
    """Base of methods that keep ``budget`` of the body's tokens per KV head, or ``tokens`` of them, and drop the rest.

    Stored beside the kept tokens: the slot of each, 32 bits per KV head. Sinks and recent window stay exact; evicted
    tokens never come back, and what was kept once is never evicted later. The budget holds for the whole body, block by
    block as tokens leave the window; a number of ``tokens`` that the prompt has used up leaves nothing for what comes.
    ``keep_decoded`` evicts from the prompt alone, as most papers do (and of a prompt that is read in pieces from the
    first): questions and answers after it stay whole, and the cache grows by them.
    """

    family = "eviction"
    roles = ("selector",)
    rules: ClassVar[tuple[Rule, ...]] = (
        Either(("budget", "tokens"), ("budget=0.5", "tokens=512")),
        share("budget", "a share of the body"),
        at_least("tokens", 1, "token of the body"),
    )

    budget: float | None = None
    tokens: int | None = None
    keep_decoded: bool = False

    def apply(self, draft: Draft) -> None:
        """One selector per layer."""
        budget = Budget() if self.budget is None else Budget(self.budget)
        for layer in draft:
            layer.selector = self.selector(
                layer, draft, replace(budget, most=self.tokens, keep_decoded=self.keep_decoded)
            )

    @abstractmethod
    def selector(self, layer: LayerDraft, draft: Draft, budget: Budget) -> Selector:
        """The selector of one layer."""


@dataclass(frozen=True)
class Observing(Eviction):
    """Base of methods that look at attention which has happened. Query-agnostic unless ``query_aware`` is set.

    The question that a prompt ends with sits in the recent window, and only ``query_aware`` lets the queries there
    choose: a cache compressed for one question may fail the next. Otherwise the tokens that leave choose among
    themselves. Only a prompt's last 256 queries are at hand: with a longer window the oldest of them choose.
    """

    query_aware: bool = False
