"""Small models of every family and ways to drive them through a cache, shared by the tests of several floors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbench.cache.attach import CompressedModel, LayerPlan, Plan
from kvbench.cache.self_test import identity_plan, self_test
from kvbench.cache.spans import Spans
from kvbench.calibration.collect import collect
from kvbench.calibration.statistics import Statistics
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import Bands, Frame, bands_of
from kvbench.codecs.quantizers.base import Passthrough
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry, probe_geometry
from kvbench.models.random_families import FAMILIES
from kvbench.models.random_models import build
from kvbench.selectors.base import Budget, Leaving, Selector

ALL_FAMILIES = tuple(FAMILIES)
VARIANTS = ("plain", "blocks", "all")
SMALL_SPANS = Spans(sinks=2, recent=4, block=4)
"""So small that a few dozen tokens reach every part of a layer."""


@dataclass(frozen=True)
class KeepAll(Selector):
    """A selector that evicts nothing: every entry goes through slots, and nothing may change."""

    budget: Budget = field(default_factory=Budget)

    def scores(self, leaving: Leaving) -> Tensor:
        return leaving.candidates[0].new_zeros(*leaving.candidates[0].shape[:3])


FRAMES: tuple[Frame, ...] = get_args(Frame)


def in_frame(layer: LayerGeometry, frame: Frame) -> tuple[bool, Bands | None]:
    """What a codec of ``layer`` is told of the frame of its keys."""
    return frame == "before", bands_of(layer, block=8) if frame == "bands" else None


@dataclass(frozen=True)
class Subject:
    """A random model and its geometry; tests share it, so they must leave it as they found it."""

    family: str
    model: PreTrainedModel
    geometry: ModelGeometry

    @property
    def has_window(self) -> bool:
        return any(layer.sliding_window for layer in self.geometry.layers)

    def identity(self, frame: Frame = "after", spans: Spans = SMALL_SPANS) -> Plan:
        return identity_plan(self.geometry, frame, spans)

    def lossless(self, frame: Frame, variant: str, spans: Spans = SMALL_SPANS) -> Plan:
        """Identity in another way: ``plain``, in ``blocks`` of 8 tokens, or through a selector that keeps ``all``."""
        quantizer = Passthrough(self.geometry.dtype, block=8 if variant == "blocks" else 1)
        layers = {}
        for layer in self.geometry.compressible:
            keys = SideCodec(layer.kv_heads, layer.head_dim, None, quantizer)
            values = SideCodec(layer.kv_heads, layer.value_dim, None, quantizer)
            selector = KeepAll() if variant == "all" else None
            layers[layer.layer] = LayerPlan(Codec(keys, values, *in_frame(layer, frame)), selector)
        return Plan(layers, spans)

    def attach(self, plan: Plan) -> CompressedModel:
        """Attached after the self-test, as users do."""
        return attach(self.model, plan, self.geometry)

    def attach_untested(self, plan: Plan) -> CompressedModel:
        """Without the self-test's two forward passes."""
        return CompressedModel(self.model, plan, self.geometry)

    def stock_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)


def attach(model: PreTrainedModel, plan: Plan, geometry: ModelGeometry | None = None) -> CompressedModel:
    """``plan`` on ``model`` after the self-test, to be entered."""
    geometry = geometry or probe_geometry(model)
    self_test(model, geometry, plan.frame)
    return CompressedModel(model, plan, geometry)


@lru_cache(maxsize=64)
def subject(family: str, dtype: torch.dtype = torch.float64, **geometry: int) -> Subject:
    """A model of ``family`` with two layers, one of each kind; ``geometry`` as in ``random:<family>?key=value``."""
    model = build(family, dtype, 0, **{"layers": 2} | geometry)
    model.requires_grad_(False)
    return Subject(family, model, probe_geometry(model))


@lru_cache(maxsize=8)
def calibrated(one: Subject, windows: int = 4, length: int = 96) -> Statistics:
    """Statistics of ``one`` over random tokens."""
    return collect(one.model, one.geometry, token_ids(windows, length, seed=7))


def token_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Random ids without special tokens."""
    return torch.randint(3, 259, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def left_padding(rows: int, tokens: int, padding: Iterable[int]) -> Tensor:
    """An attention mask (rows, tokens) whose rows start with that many zeros."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    return mask


def position_ids(mask: Tensor) -> Tensor:
    """Positions that count real tokens only, as ``generate`` does."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def feed(
    model: PreTrainedModel, cache: Cache, ids: Tensor, chunks: Iterable[int], mask: Tensor | None = None, start: int = 0
) -> Tensor:
    """Logits of ``ids[:, start:]`` fed on top of ``cache`` in pieces of ``chunks`` tokens.

    ``mask`` covers all of ``ids``; with it, positions count real tokens.
    """
    logits, done = [], start
    for size in chunks:
        stop = done + size
        extra = {}
        if mask is not None:
            extra = {"attention_mask": mask[:, :stop], "position_ids": position_ids(mask)[:, done:stop]}
        logits.append(model(ids[:, done:stop], past_key_values=cache, use_cache=True, **extra).logits)
        done = stop
    return torch.cat(logits, 1)


def as_decoded(one: Subject, frame: Frame, ids: Tensor) -> Tensor:
    """Logits of 34 tokens ``ids`` through identity codecs: a prompt of 5, the rest in two blocks as if decoded."""
    with one.attach(one.identity(frame)) as compressed:
        cache = compressed.new_cache()
        prefill = feed(one.model, cache, ids, [5])
        cache.as_decoded = True
        return torch.cat([prefill, feed(one.model, cache, ids, (17, 12), start=5)], 1)


def worst(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> float:
    """Largest absolute difference, over real tokens only if a ``mask`` (rows, tokens) is given; NaN stays NaN."""
    difference = (actual - expected).abs()
    if mask is not None:
        difference = difference[mask.bool()]
    return float(difference.max())
