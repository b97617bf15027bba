"""``truncate``: the first channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class Truncate(Part):
    """The first ``rank`` · head_dim channels of every head, the rest as zeros: the embarrassing baseline of low rank.

    Stored: ``rank`` of the values, keys after RoPE.
    """

    name = "truncate"
    family = "low rank"
    roles = ("transform",)

    rank: float

    def __post_init__(self) -> None:
        self.require(0 < self.rank <= 1, f"rank={self.rank:g} must be in (0, 1], a fraction")

    def apply(self, draft: Draft) -> None:
        """Columns of the identity."""
        use_fixed_basis(draft, lambda size: torch.eye(size, dtype=torch.float64)[:, : max(1, round(self.rank * size))])
