"""``random-projection``: a random subspace of every head."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.transforms.rotations import random_orthogonal
from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part
from kvbench.compressors.rules import at_least, share


@dataclass(frozen=True)
class RandomProjection(Part):
    """Coordinates in a random orthonormal basis of ``rank`` · head_dim vectors: what a fitted basis must beat.

    Stored: ``rank`` of the values, keys after RoPE.
    """

    name = "random-projection"
    family = "low rank"
    roles = ("transform",)
    rules = (share("rank"), at_least("seed", 0))

    rank: float
    seed: int = 0

    def apply(self, draft: Draft) -> None:
        """The same basis for all heads of a width."""
        use_fixed_basis(draft, lambda size: random_orthogonal(size, self.seed)[:, : max(1, round(self.rank * size))])
