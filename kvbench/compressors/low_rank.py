"""What the low-rank methods share: a rank that is a fraction of the width, and how it is given out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.codecs.transforms.ranks import Allocation, global_ranks, uniform_ranks
from kvbench.compressors.allocation import Side, side_weights
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Rule, share


@dataclass(frozen=True)
class LowRank(Part):
    """Base of parts that keep ``rank`` (0…1] of every head group's width; a subclass chooses the coordinates."""

    family = "low rank"
    roles = ("transform",)
    needs_calibration = True
    rules: ClassVar[tuple[Rule, ...]] = (share("rank", "a fraction of the width"),)

    rank: float

    def components(self, width: int) -> int:
        """Components kept of ``width``, at least 1."""
        return max(1, round(self.rank * width))


def allocate(how: Allocation, rank: float, draft: Draft, sides: Sequence[Side], spectra: Sequence[Tensor]) -> list[int]:
    """Ranks of all ``sides`` that keep ``rank`` of everything, from their ``spectra`` (groups, n) of squared errors.

    ``uniform``: every side alike. ``energy``: the largest eigenvalues anywhere win. ``fisher`` and ``sensitivity``: the
    same, every side weighted as in :func:`kvbench.compressors.allocation.side_weights`.

    Raises:
        KvbenchError: the statistics do not hold what ``how`` needs.
    """
    if how == "uniform":
        return uniform_ranks(spectra, rank)
    return global_ranks(spectra, rank, side_weights(how, draft, sides))
