"""``hf``: what a transformers user has today."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig

from kvbench.compressors.stock import StockPart


@dataclass(frozen=True)
class StockCache(StockPart):
    """transformers' DynamicCache under the model's stock attention; kvbench's hooks are off while it runs."""

    name = "hf"

    def new_stock_cache(self, config: PreTrainedConfig) -> Cache:
        """A DynamicCache with the architecture's layer types."""
        return DynamicCache(config=config)

    def bits_per_element(self, dtype: torch.dtype) -> float:
        """The dtype's own."""
        return dtype.itemsize * 8
