"""A whole sequence through the codecs of a plan in one pass that gradients flow through.

Every query sees what it would see in the cache: the queries of the prompt attend exactly, and each later one as if it
had been decoded, to sinks, recent window and itself as they are and to all other tokens as their layer's codec gives
them back. A token that is ever compressed stands twice among the keys, exact and decoded, and the mask shows every
query one of the two. The codecs are run as they are, so the logits are those of teacher forcing through the cache.

What a cache rounds beside that is left out: exact tokens in 16 bit (``exact=float16``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec
from kvbench.hooks.geometry import ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, rotate
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import causal_mask, exact_attention

PIECE = 128
"""Queries that attend at once."""


def cached_logits(
    model: PreTrainedModel, geometry: ModelGeometry, plan: Plan, ids: Tensor, prompt: int, last: int = 0
) -> Tensor:
    """Logits (rows, tokens, vocabulary) of the ``last`` (0: all) tokens of ``ids`` (rows, tokens), without padding.

    The first ``prompt`` of them are prefilled, the others decoded through the cache of ``plan``, whose layers keep keys
    before or after RoPE and have no selector.
    """
    with Interception(model, _ThroughPlan(geometry, plan, prompt)):
        return model(ids, use_cache=False, logits_to_keep=last).logits  # type: ignore[no-any-return]


def first_to_meet_codes(plan: Plan) -> int:
    """The position of the first decoded token whose query sees a compressed one, in any layer; ``plan`` has codecs."""
    kept = [_spans(layer.codec, plan) for layer in plan.layers.values() if layer.codec is not None]
    return min(spans.sinks + spans.recent + spans.block for spans in kept)


def _spans(codec: Codec, plan: Plan) -> Spans:
    """As a layer of the cache keeps them: what leaves the window at once are whole blocks of the codec."""
    return CompressedLayer(codec, plan.spans).spans


class _ThroughPlan:
    """Handler that gives the layers of a plan their contexts, and leaves the others to stock attention."""

    def __init__(self, geometry: ModelGeometry, plan: Plan, prompt: int) -> None:
        self._contexts: dict[int, _Context] = {}
        for layer in geometry.compressible:
            chosen = plan.layers.get(layer.layer)
            if chosen is not None and chosen.codec is not None:
                spans = _spans(chosen.codec, plan)
                self._contexts[layer.layer] = _Context(chosen.codec, spans, layer.rotary_dims, prompt)

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        context = self._contexts.get(layer)
        return None if context is None else Takeover(context, before_rope=context.codec.rotates)


@dataclass(frozen=True)
class _Context:
    """Attends in one layer."""

    codec: Codec
    spans: Spans
    rotary_dims: int
    prompt: int

    def attend(self, call: AttentionCall) -> Tensor:
        tokens = call.keys.shape[2]
        body = slice(self.spans.sinks, self.spans.boundary(tokens - 1))  # what the last query sees compressed
        query, keys, values = self._turned(call, call.query), self._turned(call, call.keys), call.values
        if body.start >= body.stop:
            return exact_attention(query, *call.met(keys, values), call.scaling, call.mask, call.softcap, call.sinks)
        if self.codec.decoupled:  # queries meet the slice with RoPE, and the rest without
            query, keys = torch.cat([query, call.query], -1), functional.pad(keys, (0, keys.shape[-1]))
        decoded = self._decoded(call, body)
        keys, values = call.met(*(torch.cat(pair, 2) for pair in zip((keys, values), decoded, strict=True)))
        mask = causal_mask(tokens, tokens, keys.device) if call.mask is None else call.mask
        compressed = seen_compressed(tokens, self.prompt, self.spans, keys.device)
        mask = torch.cat([mask & ~compressed, (mask & compressed)[..., body]], -1)
        outputs = []
        for queries, spans in _pieces(tokens, self.prompt, self.spans):
            some_keys, some_values = (torch.cat([all_[:, :, span] for span in spans], 2) for all_ in (keys, values))
            seen = torch.cat([mask[..., queries, span] for span in spans], -1)
            outputs.append(
                exact_attention(
                    query[:, :, queries], some_keys, some_values, call.scaling, seen, call.softcap, call.sinks
                )
            )
        return torch.cat(outputs, 2)

    def _decoded(self, call: AttentionCall, body: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens in ``body`` out of the codec, as queries meet them."""

        def turned(states: Tensor, start: int, stop: int) -> Tensor:
            return self._turned(call, states, body)

        stored = self.codec.encode(call.keys[:, :, body], call.values[:, :, body])
        return self.codec.tile(stored, turned, 0, body.stop - body.start, call.query.dtype)

    def _turned(self, call: AttentionCall, states: Tensor, tokens: slice = slice(None)) -> Tensor:
        """``states`` (batch, any heads, tokens, ·) of these ``tokens`` after RoPE, which they may be already."""
        if call.rotation is None:
            return states
        cos, sin = (part[:, tokens] for part in call.rotation)
        return rotate(call.module, states, (cos, sin), self.rotary_dims)


def _pieces(tokens: int, prompt: int, spans: Spans) -> Iterator[tuple[slice, list[slice]]]:
    """Queries that see about the same tokens, and where those are among ``tokens`` exact and the compressed states.

    All queries over all states would be twice the work. The prompt's queries see nothing compressed.
    """
    yield slice(0, prompt), [slice(0, prompt)]
    for start in range(prompt, tokens, PIECE):
        stop = min(start + PIECE, tokens)
        left, leaves = (max(spans.sinks, spans.boundary(position)) for position in (start, stop - 1))
        exact = [slice(0, spans.sinks), slice(left, stop)]
        yield slice(start, stop), [*exact, slice(tokens, tokens + leaves - spans.sinks)]


@lru_cache(maxsize=8)
def seen_compressed(tokens: int, prompt: int, spans: Spans, device: torch.device) -> Tensor:
    """(queries, tokens): True where the query at a position sees a token compressed, after a prefill of ``prompt``."""
    boundaries = [spans.boundary(position) if position >= prompt else 0 for position in range(tokens)]
    slots = torch.arange(tokens, device=device)
    return (slots >= spans.sinks) & (slots < torch.tensor(boundaries, device=device)[:, None])
