"""``turboquant``: random rotation, Gaussian codebook, one norm per token."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.quantizers.gaussian import GaussianQuantizer
from kvbench.codecs.transforms.rotations import random_rotation
from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part
from kvbench.compressors.rules import OneOf, at_least

BITS = (2, 3, 4)


@dataclass(frozen=True)
class TurboQuant(Part):
    """TurboQuant: every head is rotated at random, so that its components are close to normal, and coded for that.

    Based on Zandieh et al. 2025, TurboQuant (arXiv 2504.19874). Stored: ``bits`` per value and an fp16 norm per token
    and head, 3.25 bits at 3 bits and head_dim 64. Differences: a random-sign Hadamard matrix instead of a dense random
    rotation where head_dim is a power of two, the codebook of the limiting normal density, and no 1-bit QJL residual,
    which practitioners leave out.
    """

    name = "turboquant"
    family = "quantization"
    roles = ("transform", "quantizer")
    paper = "arXiv 2504.19874"
    rules = (OneOf("bits", BITS), at_least("seed", 0))

    bits: int
    seed: int = 0

    def apply(self, draft: Draft) -> None:
        """Rotation and codebook for both sides of every layer."""
        use_fixed_basis(draft, lambda size: random_rotation(size, self.seed))
        quantizer = GaussianQuantizer.on(draft.geometry.device, self.bits)
        for layer in draft:
            for side in layer.sides:
                side.quantizer = quantizer
