"""``streaming``: sinks and recent window, nothing between."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.selectors.plain import DropAll


@dataclass(frozen=True)
class Streaming(Part):
    """StreamingLLM: the first ``sinks`` and the last ``recent`` tokens, as in ``streaming:sinks=4,recent=508``.

    Based on Xiao et al. 2023 (arXiv 2309.17453). Query-agnostic. Stored: the exact spans and nothing else, whatever the
    context. Differences: the paper renumbers positions inside the cache; here tokens keep the positions they had, and
    the window is let out by whole blocks.
    """

    name = "streaming"
    family = "eviction"
    roles = ("selector",)
    paper = "arXiv 2309.17453"
    published = ("streaming",)

    def apply(self, draft: Draft) -> None:
        """Drop the body of every layer."""
        for layer in draft:
            layer.selector = DropAll()
