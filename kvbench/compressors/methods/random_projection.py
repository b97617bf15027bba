"""``random-projection``: a random subspace of every head."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.transforms.rotations import random_orthogonal
from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class RandomProjection(Part):
    """Coordinates in a random orthonormal basis of ``rank`` · head_dim vectors: what a fitted basis must beat.

    Stored: ``rank`` of the values, keys after RoPE.
    """

    name = "random-projection"
    family = "low rank"
    roles = ("transform",)

    rank: float
    seed: int = 0

    def __post_init__(self) -> None:
        self.require(0 < self.rank <= 1, f"rank={self.rank:g} must be in (0, 1], a fraction")
        self.require(self.seed >= 0, f"seed={self.seed} must be at least 0")

    def apply(self, draft: Draft) -> None:
        """The same basis for all heads of a width."""
        use_fixed_basis(draft, lambda size: random_orthogonal(size, self.seed)[:, : max(1, round(self.rank * size))])
