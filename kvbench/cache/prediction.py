"""What a cache will take, from arithmetic alone, before anything is allocated."""

from __future__ import annotations

import torch

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.rounding import exact_dtype
from kvbench.cache.spans import Spans
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry


def predict_bytes(plan: Plan, geometry: ModelGeometry, tokens: int, batch: int = 1) -> int:
    """Bytes that a cache holds right after a prefill of ``tokens`` unpadded tokens, all layers."""
    total = sum(_layer_bytes(plan, layer, geometry.dtype, tokens) for layer in geometry.layers) * batch
    rotary = plan.keys_before_rope and any(layer.rotary_dims for layer in geometry.compressible)
    return round(total) + (4 * tokens if rotary else 0)  # one int32 position per token, shared by rows and layers


def body_bits_per_element(plan: Plan, geometry: ModelGeometry) -> float | None:
    """Bits per K or V element of the compressed body, scales included; None when nothing is compressed.

    None too with a budget in tokens, whose share depends on the length; what a row keeps whatever its length (bases
    fitted online) is left out.
    """
    bits = elements = 0.0
    for layer in geometry.compressible:
        own = plan.layers.get(layer.layer)
        if own is None or own.codec is None:
            continue
        cost = own.codec.cost(geometry.dtype)
        if own.selector is not None and own.selector.budget.most is not None:
            return None
        kept = 1.0 if own.selector is None else own.selector.budget.share
        bits += kept * (cost.payload + cost.scales + (32 * layer.kv_heads if own.selector is not None else 0))
        elements += layer.elements_per_token
    return bits / elements if elements else None


def _layer_bytes(plan: Plan, layer: LayerGeometry, dtype: torch.dtype, tokens: int) -> float:
    uncompressed = layer.elements_per_token * dtype.itemsize
    own = plan.layers.get(layer.layer)
    if layer.sliding_window is not None:
        return uncompressed * (layer.sliding_window if tokens >= layer.sliding_window else tokens)
    if own is None or own.codec is None:
        return uncompressed * tokens
    spans = CompressedLayer(own.codec, plan.spans, own.selector).spans
    exact, boundary = layer.elements_per_token * exact_dtype(spans, dtype).itemsize, spans.boundary(tokens)
    if boundary == 0:
        return exact * tokens
    return exact * (spans.sinks + spans.recent + spans.block) + _body_bytes(
        own, layer, dtype, boundary - spans.sinks, spans
    )


def _body_bytes(own: LayerPlan, layer: LayerGeometry, dtype: torch.dtype, tokens: int, spans: Spans) -> float:
    assert own.codec is not None
    cost = own.codec.cost(dtype)
    bits, row = cost.payload + cost.scales, own.codec.row_bits / 8 if tokens else 0.0
    if own.selector is None:
        return row + tokens * bits / 8
    kept = own.selector.budget.kept(tokens, own.codec.block)
    return (row if kept else 0.0) + kept * (bits / 8 + 4 * layer.kv_heads)
