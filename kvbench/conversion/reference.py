"""What a converted model computes, by the original model and the compressor's own codecs.

Keys and values of *all* tokens go through the codec before they are attended: no exact sinks, no recent window, and not
even a token's own key and value are exact, as in a model whose layers know nothing but latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.codecs.codec import Codec
from kvbench.hooks.geometry import ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, rotate
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import exact_attention


@torch.no_grad()
def logits_through_codecs(model: PreTrainedModel, geometry: ModelGeometry, plan: Plan, ids: Tensor) -> Tensor:
    """Logits (rows, tokens, vocabulary) of ``ids`` (rows, tokens) with everything in the latents of ``plan``."""
    with Interception(model, _ThroughCodecs(geometry, plan)):
        return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


class _ThroughCodecs:
    """Handler that sends every layer's keys and values through its decoupled codec."""

    def __init__(self, geometry: ModelGeometry, plan: Plan) -> None:
        self._contexts = {}
        for layer in geometry.layers:
            codec = plan.layers[layer.layer].codec
            assert codec is not None
            self._contexts[layer.layer] = _Context(codec, layer.rotary_dims)

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover:
        return Takeover(self._contexts[layer], before_rope=True)


@dataclass(frozen=True)
class _Context:
    codec: Codec
    rotary_dims: int

    def attend(self, call: AttentionCall) -> Tensor:
        def turned(states: Tensor, start: int = 0, stop: int = 0) -> Tensor:
            assert call.rotation is not None
            return rotate(call.module, states, call.rotation, self.rotary_dims)

        stored = self.codec.encode(call.keys, call.values)
        keys, values = self.codec.tile(stored, turned, 0, call.keys.shape[2], call.query.dtype)
        query = torch.cat([turned(call.query), call.query], -1)  # meets the slice with RoPE, and the rest without
        return exact_attention(query, keys, values, call.scaling, call.mask, call.softcap)
