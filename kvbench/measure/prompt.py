"""One exact prompt, computed once and handed to every compressor.

A prefill's attention is exact whatever the compressor: it encodes afterwards. So the keys and values of one prefill
serve all of them, and nobody pays for the prompt twice; a cache loaded from here equals one that sat in the model
during the prefill (a test compares the two).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbench.cache.attach import CompressedModel
from kvbench.cache.cache import CompressedCache
from kvbench.cache.layer import KVLayer
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import exact_attention
from kvbench.selectors.base import OBSERVED, Observed


@dataclass(frozen=True)
class LayerPrompt:
    """One layer of the prompt: ``keys`` and the last queries, both after RoPE by ``rotation``, and ``values``.

    ``latent``: RoPE keys and latents of multi-head latent attention, which transformers caches the other way round.
    """

    keys: Tensor
    values: Tensor
    query: Tensor
    scaling: float
    rotation: Rotation | None
    latent: bool = False


@dataclass(frozen=True)
class ExactPrompt:
    """All layers of a prompt of ``length`` tokens, and the logits (batch, vocabulary) after its last token."""

    layers: dict[int, LayerPrompt]
    length: int
    logits: Tensor

    def repeat(self, batch: int) -> ExactPrompt:
        """The same row ``batch`` times, really copied."""
        if batch == 1:
            return self

        layers = {
            index: replace(
                layer,
                keys=_repeated(layer.keys, batch),
                values=_repeated(layer.values, batch),
                query=_repeated(layer.query, batch),
            )
            for index, layer in self.layers.items()
        }
        return ExactPrompt(layers, self.length, _repeated(self.logits, batch))

    def fill(self, compressed: CompressedModel, copies: int = 1) -> CompressedCache:
        """A new cache of ``compressed`` that has taken in this prompt, every row ``copies`` times.

        Copies are made a layer at a time, so a large batch is never there uncompressed as a whole.
        """
        cache = compressed.new_cache()
        for index, prompt in self.layers.items():
            layer = cache.layers[index]
            assert isinstance(layer, KVLayer)
            rotator = compressed.rotator(index, cache)
            if rotator is not None and prompt.rotation is not None:
                compressed.record(index, cache, 0, prompt.rotation, None)
            keys, values, query = (_repeated(rows, copies) for rows in (prompt.keys, prompt.values, prompt.query))
            observed = Observed(query, prompt.scaling, compressed.applied(index, prompt.rotation))
            layer.load(keys, values, observed, rotator)
        return cache

    def fill_stock(self, cache: Cache, copies: int = 1) -> Cache:
        """``cache``, empty and one of transformers' own, with this prompt, every row ``copies`` times."""
        for index, prompt in self.layers.items():
            states = (prompt.values, prompt.keys) if prompt.latent else (prompt.keys, prompt.values)
            keys, values = (_repeated(rows, copies) for rows in states)
            cache.update(keys, values, index)
        return cache


@dataclass
class _Recorder:
    """Attends exactly and keeps what it saw."""

    layer: int
    rotation: Rotation | None
    prompts: dict[int, LayerPrompt]

    def attend(self, call: AttentionCall) -> Tensor:
        self.prompts[self.layer] = LayerPrompt(
            keys=_compact(call.keys),
            values=_compact(call.values),
            query=call.query[:, :, -OBSERVED:].clone(),
            scaling=call.scaling,
            rotation=self.rotation,
            latent=call.form is not None,
        )
        met = call.met(call.keys, call.values)
        return exact_attention(call.query, *met, call.scaling, call.mask, call.softcap, call.sinks)


class _Handler:
    def __init__(self, geometry: ModelGeometry) -> None:
        self.prompts: dict[int, LayerPrompt] = {}
        self._layers = {layer.layer: layer for layer in geometry.layers}

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover | None:
        if layer not in self._layers:  # it keeps nothing, and reads what an earlier one was given
            return None
        rotates = self._layers[layer].rotary_dims > 0
        return Takeover(_Recorder(layer, rotation if rotates else None, self.prompts))


@torch.no_grad()
def exact_prompt(model: PreTrainedModel, geometry: ModelGeometry, ids: Tensor) -> ExactPrompt:
    """Prefill ``ids`` (1, tokens) and keep every layer's exact keys and values.

    Raises:
        UnsupportedModelError: layers without attention keep a state that would be missing.
    """
    others = set(range(len(DynamicCache(config=model.config).layers))) - set(geometry.readers)
    others -= {layer.layer for layer in geometry.layers}
    if others:
        raise UnsupportedModelError(
            f"{type(model).__name__}: layer {min(others)} keeps a state instead of keys and values, so a prompt cannot "
            "be computed once for all compressors; attach one with kvbench.compress and generate"
        )
    handler = _Handler(geometry)
    with Interception(model, handler):
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits[:, -1]
    return ExactPrompt(handler.prompts, ids.shape[1], logits)


def _repeated(rows: Tensor, copies: int) -> Tensor:
    """Every row ``copies`` times, really copied unless that is once."""
    return rows if copies == 1 else rows.repeat_interleave(copies, 0)


def _compact(tensor: Tensor) -> Tensor:
    """``tensor``, copied if it is a view: a view into a fused projection would keep all of it alive."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
