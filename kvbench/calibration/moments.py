"""Second moments of keys and values over tokens."""

from __future__ import annotations

import torch
from torch import Tensor

SINKS = 4
"""Leading tokens of every window that stay out of the statistics."""


def token_rows(states: Tensor, sinks: int = SINKS) -> Tensor:
    """(batch, kv heads, tokens, d) → (batch · tokens without sinks, kv heads · d) in at least fp32."""
    kept = states[:, :, sinks:].transpose(1, 2).flatten(2).flatten(0, 1)
    return kept.to(torch.promote_types(kept.dtype, torch.float32))


def second_moment(left: Tensor, right: Tensor) -> Tensor:
    """Σ l rᵀ over rows, fp64 from products in the tensors' own dtype.

    Around the means: key biases hundreds of times the spread would leave only rounding of an fp32 product.
    """
    means = left.double().mean(0), right.double().mean(0)
    centred = [(states.double() - mean).to(states.dtype) for states, mean in zip((left, right), means, strict=True)]
    return (centred[0].T @ centred[1]).double() + torch.outer(*means) * len(left)
