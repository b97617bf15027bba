"""From how many tokens on a compressed cache and its bases are smaller than an uncompressed 16-bit cache."""

from __future__ import annotations

import math
from collections.abc import Callable

from kvbench.cache.attach import Plan
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.prediction import predict_bytes
from kvbench.hooks.geometry import ModelGeometry

FAR = 1 << 20
"""Tokens by which what a method saves grows evenly: windows and budgets in tokens are filled."""

Saved = Callable[[int], float]
"""Bytes saved at a length in tokens; beyond some length it grows by the same in every period of blocks."""


def break_even_tokens(plan: Plan, geometry: ModelGeometry) -> int | None:
    """The shortest sequence that, like every longer one, takes fewer bytes with ``plan`` than 16-bit keys and values.

    Counted are the predicted bytes of the cache of one sequence, with exact spans in the dtype they are stored in, and
    all model-level bytes. None if it never pays.
    """
    model_bytes = plan.model_level_bytes()
    layers = [
        (layer, CompressedLayer(layer_plan.codec, plan.spans, layer_plan.selector).spans)
        for layer in geometry.compressible
        if (layer_plan := plan.layers.get(layer.layer)) is not None and layer_plan.codec is not None
    ]
    blocks = [spans.block for _, spans in layers] or [1]
    start = max(
        *(spans.sinks + spans.recent + spans.block for _, spans in layers),
        *(layer.sliding_window or 0 for layer in geometry.layers),
        1,
    )
    return paying_from(
        lambda tokens: 2 * geometry.elements(tokens) - predict_bytes(plan, geometry, tokens) - model_bytes,
        math.lcm(*blocks),
        start,
    )


def paying_from(saved: Saved, period: int, start: int) -> int | None:
    """The least length from which on ``saved`` is above zero; None if there is none.

    From ``start`` on ``saved`` is a straight line plus what repeats every ``period``.
    """
    far = start + FAR
    if saved(far + FAR * period) - saved(far) < FAR:  # not a byte in a period: rounding
        return None
    lowest = min(range(period), key=lambda place: saved(far + place))
    first, periods = far + lowest - (far - start) // period * period, 0
    if saved(first) <= 0:
        most = 1
        while saved(first + most * period) <= 0:
            most *= 2
        low = most // 2
        while most - low > 1:
            middle = (low + most) // 2
            low, most = (low, middle) if saved(first + middle * period) > 0 else (middle, most)
        periods = most
    length = first + periods * period
    while length > 1 and saved(length - 1) > 0:
        length -= 1
    return length
