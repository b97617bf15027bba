"""An arm: one way to keep the context, ready to be entered, filled with a prompt and stepped.

transformers' own caches run with kvbench's hooks off; everything else runs attached. Measurements see only this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.cache import CompressedCache
from kvbench.cache.reads import STOCK
from kvbench.compressors.methods.hf import StockCache
from kvbench.compressors.stock import StockPart
from kvbench.hooks.geometry import ModelGeometry
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.prompt import ExactPrompt


@dataclass(frozen=True, eq=False)
class Arm:
    """``plan`` None is stock attention on the ``stock`` cache of transformers."""

    name: str
    model: PreTrainedModel
    geometry: ModelGeometry
    plan: Plan | None
    attachment: CompressedModel | None
    stock: StockPart

    @classmethod
    def of(
        cls,
        name: str,
        model: PreTrainedModel,
        geometry: ModelGeometry,
        plan: Plan | None,
        stock: StockPart | None = None,
        reading: Reading = DEFAULT,
    ) -> Arm:
        """An arm for a fitted plan, read as ``reading`` says; without one, for a ``stock`` cache (default ``hf``)."""
        attachment = None if plan is None else CompressedModel(model, plan, geometry, reading)
        return cls(name, model, geometry, plan, attachment, stock or StockCache())

    @property
    def reading(self) -> Reading:
        """How its cache is read."""
        return DEFAULT if self.attachment is None else self.attachment.reading

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The model as this arm needs it: hooks on, or everything stock."""
        with self.stock.entered(self.model) if self.attachment is None else self.attachment:
            yield

    def new_cache(self) -> Cache:
        """An empty cache."""
        if self.attachment is not None:
            return self.attachment.new_cache()
        return self.stock.new_stock_cache(self.model)

    def fill(self, prompt: ExactPrompt, copies: int = 1) -> Cache:
        """A cache that has taken the prompt in, compressed; every row ``copies`` times."""
        if self.attachment is None:
            return prompt.fill_stock(self.new_cache(), copies)
        return prompt.fill(self.attachment, copies)

    def teacher_forced(self, cache: Cache) -> None:
        """Make blocks of new tokens attend as if decoded one by one."""
        if isinstance(cache, CompressedCache):
            cache.as_decoded = True

    @staticmethod
    def attended_by(cache: Cache) -> str:
        """What attended to the stored tokens of ``cache`` in the last step, read back from it."""
        return cache.attended_by if isinstance(cache, CompressedCache) else STOCK

    @torch.no_grad()
    def forward(self, ids: Tensor, cache: Cache, **kwargs: Any) -> Tensor:
        """Logits (batch, tokens, vocabulary) of ``ids`` (batch, tokens) on top of ``cache``."""
        pieces = cache.pieces(ids) if isinstance(cache, CompressedCache) else (ids,)
        logits = [self.model(piece, past_key_values=cache, use_cache=True, **kwargs).logits for piece in pieces]
        return logits[0] if len(logits) == 1 else torch.cat(logits, 1)
