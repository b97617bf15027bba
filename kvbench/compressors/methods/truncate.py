"""``truncate``: the first channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvbench.compressors.draft import Draft
from kvbench.compressors.fixed_basis import use_fixed_basis
from kvbench.compressors.part import Part
from kvbench.compressors.rules import share


@dataclass(frozen=True)
class Truncate(Part):
    """The first ``rank`` · head_dim channels of every head, the rest as zeros: the embarrassing baseline of low rank.

    Stored: ``rank`` of the values, keys after RoPE.
    """

    name = "truncate"
    family = "low rank"
    roles = ("transform",)
    rules = (share("rank"),)

    rank: float

    def apply(self, draft: Draft) -> None:
        """Columns of the identity."""
        use_fixed_basis(draft, lambda size: torch.eye(size, dtype=torch.float64)[:, : max(1, round(self.rank * size))])
