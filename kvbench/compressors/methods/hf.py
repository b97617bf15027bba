"""``hf``: what a transformers user has today."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class StockCache(Part):
    """transformers' DynamicCache under the model's stock attention; kvbench's hooks are off while it runs."""

    name = "hf"
    family = "baseline"
    roles = ("baseline",)

    def apply(self, draft: Draft) -> None:
        """Nothing to fill in: the runner detaches kvbench for this one."""
