"""``hadamard``: a random rotation of what is stored."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import rotate_latents
from kvbench.compressors.part import Part
from kvbench.compressors.rules import at_least


@dataclass(frozen=True)
class Hadamard(Part):
    """A random-sign Hadamard rotation of what is stored: loses nothing and helps the quantizer after it.

    The rotation of QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), as in ``hadamard+int:bits=4``: outlier channels are
    spread over all components. Behind a transform it rotates the latents, which differ by orders of magnitude, and is
    absorbed into the basis (``pca:rank=0.5+hadamard+int:bits=4``); without one it rotates every head, keys after
    RoPE. Stored: as many values as before. Differences: one rotation for all, inside the cache alone; QuaRot rotates
    the whole model. Where a width is no power of two the matrix is a random orthogonal one.
    """

    name = "hadamard"
    family = "quantization"
    roles = ("rotation",)
    paper = "arXiv 2404.00456"
    published = ("hadamard+int",)
    rules = (at_least("seed", 0),)

    seed: int = 0

    def apply(self, draft: Draft) -> None:
        """The same rotation for all latents of a width."""
        rotate_latents(draft, self.seed)
