"""``hadamard``: a random rotation of every head."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part
from kvbench.transforms.rotations import random_rotation


@dataclass(frozen=True)
class Hadamard(Part):
    """A random-sign Hadamard rotation of every head, keys after RoPE: loses nothing and helps the quantizer after it.

    The rotation of QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), as in ``hadamard+int:bits=4``: outlier channels are
    spread over all components. Stored: as many values as before. Where head_dim is no power of two the matrix is a
    random orthogonal one.
    """

    name = "hadamard"
    family = "quantization"
    roles = ("transform",)
    paper = "arXiv 2404.00456"

    seed: int = 0

    def __post_init__(self) -> None:
        self.require(self.seed >= 0, f"seed={self.seed} must be at least 0")

    def apply(self, draft: Draft) -> None:
        """The same rotation for all heads of a width."""
        use_fixed_basis(draft, lambda size: random_rotation(size, self.seed))
