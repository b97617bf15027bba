"""``hf``: what a transformers user has today, or had with multi-head latent attention before."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbench.compressors.stock import StockPart
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.expanded_latents import expanded_cache, expanded_elements, expanding_once, latent_modules
from kvbench.hooks.geometry import ModelGeometry


@dataclass(frozen=True)
class StockCache(StockPart):
    """transformers' DynamicCache under the model's stock attention; kvbench's hooks are off while it runs.

    Of multi-head latent attention it keeps the latents, and expands all of them at every step. With
    ``latents=expanded`` it keeps the keys and values of every head that they expand to, each token expanded once, as
    transformers did before version 5.15: many times the bytes, and far fewer multiplications a step.
    """

    name = "hf"

    latents: Literal["kept", "expanded"] = "kept"

    def entered(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """As it is; or what the cache gives back is not expanded again."""
        return expanding_once(model) if self._expands(model) else super().entered(model)

    def new_stock_cache(self, model: PreTrainedModel) -> Cache:
        """A DynamicCache with the architecture's layer types."""
        return expanded_cache(model) if self._expands(model) else DynamicCache(config=model.config)

    def elements_per_token(self, model: PreTrainedModel, geometry: ModelGeometry) -> int:
        """As the layers cache them, or expanded."""
        expanded = latent_modules(model) if self._expands(model) else {}
        return sum(
            expanded_elements(expanded[layer.layer]) if layer.layer in expanded else layer.elements_per_token
            for layer in geometry.layers
        )

    def bits_per_element(self, dtype: torch.dtype) -> float:
        """The dtype's own."""
        return dtype.itemsize * 8

    def _expands(self, model: PreTrainedModel) -> bool:
        """Whether latents are kept expanded.

        Raises:
            UnsupportedModelError: they are to be, and there are none.
        """
        if self.latents == "kept":
            return False
        if not latent_modules(model):
            raise UnsupportedModelError(
                f"{self}: {type(model).__name__} has no multi-head latent attention, so its keys and values are cached "
                "expanded anyway; take hf"
            )
        return True
