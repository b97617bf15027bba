"""How many bits each component gets: reverse water-filling over measured distortions.

For components of variance λ and an integer-width quantizer with unit distortion D(b), minimise Σ λ·D(b) under a budget
of Σ b. The greedy choice of the next bit with the largest λ·(D(b) − D(b + 1)) is optimal because D is convex (Shannon's
reverse water-filling, Cover & Thomas 10.3.3, on an operational rate-distortion curve); 0 bits truncate a component.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kvbench.codecs.quantizers.lloyd import MAX_BITS, laplace_levels

WORD = 4
"""Components whose codes a kernel unpacks at once."""


def grain(components: int) -> int:
    """How many components of a side with so many in all should share a width.

    A word, so that runs of equal widths are unpacked whole: at 192 components and more no cost could be measured. In a
    side of less than 32 words that is too coarse (at 64 components it raised the error by a quarter).
    """
    return WORD if components >= 32 * WORD else 1


def water_fill(variances: Tensor, bits: int, max_bits: int = MAX_BITS, together: int = 1) -> Tensor:
    """Widths (components,) int64 in 0…max_bits that sum to ``bits`` and minimise the total distortion.

    ``together`` adjacent components get the same width (see :func:`grain`), and a few bits may be left over.

    Raises:
        ValueError: more bits than the components can hold.
    """
    if not 0 <= bits <= max_bits * len(variances):
        raise ValueError(f"{bits} bits do not fit {len(variances)} components of at most {max_bits} bits")
    distortion = torch.tensor([error for _, error in laplace_levels()[: max_bits + 1]], dtype=torch.float64)
    pooled = functional.pad(variances.double().clamp_min(0), (0, -len(variances) % together)).view(-1, together).sum(1)
    gains = pooled.unsqueeze(1) * (distortion[:-1] - distortion[1:])  # (words, max_bits)
    order = gains.flatten().argsort(descending=True, stable=True)[: bits // together]
    chosen = torch.zeros(gains.numel(), dtype=torch.bool)
    chosen[order] = True
    return chosen.view_as(gains).sum(1).repeat_interleave(together)[: len(variances)]
