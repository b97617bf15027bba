"""How many bits each component gets: reverse water-filling over measured distortions.

For components of variance λ and an integer-width quantizer with unit distortion D(b), minimise Σ λ·D(b) under a budget
of Σ b. The greedy choice of the next bit with the largest λ·(D(b) − D(b + 1)) is optimal because D is convex (Shannon's
reverse water-filling, Cover & Thomas 10.3.3, on an operational rate-distortion curve); 0 bits truncate a component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.quantizers.lloyd import MAX_BITS, laplace_levels


def water_fill(variances: Tensor, bits: int, max_bits: int = MAX_BITS) -> Tensor:
    """Widths (components,) int64 in 0…max_bits that sum to ``bits`` and minimise the total distortion.

    Raises:
        ValueError: more bits than the components can hold.
    """
    if not 0 <= bits <= max_bits * len(variances):
        raise ValueError(f"{bits} bits do not fit {len(variances)} components of at most {max_bits} bits")
    distortion = torch.tensor([error for _, error in laplace_levels()[: max_bits + 1]], dtype=torch.float64)
    gains = variances.double().clamp_min(0).unsqueeze(1) * (distortion[:-1] - distortion[1:])  # (components, max_bits)
    order = gains.flatten().argsort(descending=True, stable=True)[:bits]
    chosen = torch.zeros(gains.numel(), dtype=torch.bool)
    chosen[order] = True
    return chosen.view_as(gains).sum(1)
