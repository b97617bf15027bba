"""A tiny random model that every compressor is checked on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import CompressedModel
from kvbench.cache.cache import CompressedCache
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.compressor import Compressor
from kvbench.hooks.geometry import ModelGeometry
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.sensitivity import collected
from kvbench.models.random_models import build

TOKENS = 1024
"""Of the prompts that caches are filled with."""


@dataclass
class Bench:
    """A tiny calibrated model, and the compressor under test on it."""

    compressor: Compressor
    factory: ArmFactory
    statistics: Statistics
    ids: Tensor

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.factory.model

    @property
    def geometry(self) -> ModelGeometry:
        """What its layers are."""
        return self.factory.geometry

    @classmethod
    def of(cls, compressor: Compressor, family: str = "llama") -> Bench:
        """A seeded two-layer model with 3 KV heads of 64 and statistics of random text."""
        sizes = {"layers": 2, "hidden": 192, "heads": 6, "kv_heads": 3, "head_dim": 64, "context": 8192}
        model = build(family, torch.float32, 0, **sizes)
        factory = ArmFactory(model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (3, TOKENS + 64), generator=generator)
        return cls(compressor, factory, collected(model, factory.geometry, ids[:2, :512]), ids)

    def attached(self, compressor: Compressor | None = None) -> CompressedModel:
        """The compressor under test, or another, fitted and ready to be attached."""
        attachment = self.factory.arm(compressor or self.compressor, self.statistics).attachment
        assert attachment is not None  # baselines are not validated
        return attachment

    @torch.no_grad()
    def feed(self, cache: CompressedCache, ids: Tensor) -> Tensor:
        """Logits of ``ids`` (rows, tokens) on top of ``cache``."""
        pieces = cache.pieces(ids)
        return torch.cat([self.model(piece, past_key_values=cache, use_cache=True).logits for piece in pieces], 1)

    def filled(self, attached: CompressedModel, rows: Tensor, tokens: int = TOKENS) -> CompressedCache:
        """A cache after a prefill of the first ``tokens`` of ``rows``."""
        cache = attached.new_cache()
        self.feed(cache, rows[:, :tokens])
        return cache

    def deviation(self, compressor: Compressor) -> float:
        """Mean squared difference from the stock model's logits over 64 tokens after a prefill."""
        rows = self.ids[:1]
        with torch.no_grad():
            stock = self.model(rows, use_cache=False).logits[:, TOKENS:]
        with self.attached(compressor) as attached:
            cache = self.filled(attached, rows)
            cache.as_decoded = True
            return float((self.feed(cache, rows[:, TOKENS:]) - stock).square().mean())
