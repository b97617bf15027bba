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
    rotary = plan.rotates and any(layer.rotary_dims for layer in geometry.compressible)
    return round(total) + (4 * tokens if rotary else 0)  # one int32 position per token, shared by rows and layers


def body_bits_per_element(plan: Plan, geometry: ModelGeometry) -> float | None:
    """Bits per K or V element of the compressed body, scales included; None when nothing is compressed.

    None too with a budget in tokens, whose share depends on the length; what a row keeps whatever its length (bases
    fitted online) is left out.
    """
    bits = elements = 0.0
    for layer in geometry.compressible:
        layer_plan = plan.layers.get(layer.layer)
        if layer_plan is None or layer_plan.codec is None:
            continue
        cost = layer_plan.codec.cost(geometry.dtype)
        if layer_plan.selector is not None and layer_plan.selector.budget.most is not None:
            return None
        kept = 1.0 if layer_plan.selector is None else layer_plan.selector.budget.share
        bits += kept * (cost.payload + cost.scales + (32 * layer.kv_heads if layer_plan.selector is not None else 0))
        elements += layer.elements_per_token
    return bits / elements if elements else None


def split(layer_plan: LayerPlan | None, spans: Spans, tokens: int) -> tuple[int, int]:
    """Of one row's ``tokens`` after a prefill: those a full-attention layer keeps exactly, and its body's entries."""
    if layer_plan is None or layer_plan.codec is None:
        return tokens, 0
    spans = CompressedLayer(layer_plan.codec, spans, layer_plan.selector).spans
    boundary = spans.boundary(tokens)
    body = max(0, boundary - spans.sinks)
    kept = body if layer_plan.selector is None else layer_plan.selector.budget.kept(body, layer_plan.codec.block)
    return tokens - body, kept


def _layer_bytes(plan: Plan, layer: LayerGeometry, dtype: torch.dtype, tokens: int) -> float:
    exact = layer.elements_per_token * exact_dtype(plan.spans.exact, dtype).itemsize
    layer_plan = plan.layers.get(layer.layer)
    if layer.sliding_window is not None:
        return exact * (layer.sliding_window if tokens >= layer.sliding_window else tokens)
    if layer_plan is None or layer_plan.codec is None:
        return exact * tokens
    spans = CompressedLayer(layer_plan.codec, plan.spans, layer_plan.selector).spans
    boundary = spans.boundary(tokens)
    if boundary == 0:
        return exact * tokens
    return exact * (spans.sinks + spans.recent + spans.block) + _body_bytes(
        layer_plan, layer, dtype, boundary - spans.sinks, spans
    )


def _body_bytes(layer_plan: LayerPlan, layer: LayerGeometry, dtype: torch.dtype, tokens: int, spans: Spans) -> float:
    assert layer_plan.codec is not None
    cost = layer_plan.codec.cost(dtype)
    bits, row = cost.payload + cost.scales, layer_plan.codec.row_bits / 8 if tokens else 0.0
    if layer_plan.selector is None:
        return row + tokens * bits / 8
    kept = layer_plan.selector.budget.kept(tokens, layer_plan.codec.block)
    return (row if kept else 0.0) + kept * (bits / 8 + 4 * layer.kv_heads)
