"""What the low-rank methods share: a rank that is a fraction of the width, and how it is given out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvbench.compressors.draft import LayerDraft, SideDraft
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.transforms.ranks import Allocation, global_ranks, uniform_ranks


@dataclass(frozen=True)
class LowRank(Part):
    """Base of parts that keep ``rank`` (0…1] of every head group's width; a subclass chooses the coordinates."""

    family = "low rank"
    roles = ("transform",)
    needs_calibration = True

    rank: float

    def __post_init__(self) -> None:
        self.require(0 < self.rank <= 1, f"rank={self.rank} must be in (0, 1], a fraction of the width")

    def components(self, width: int) -> int:
        """Components kept of ``width``, at least 1."""
        return max(1, round(self.rank * width))


def allocate(
    how: Allocation, rank: float, sides: Sequence[tuple[LayerDraft, SideDraft]], spectra: Sequence[Tensor]
) -> list[int]:
    """Ranks of all ``sides`` that keep ``rank`` of everything, from their ``spectra`` (groups, n) of squared errors.

    ``uniform``: every side alike. ``energy``: the largest eigenvalues anywhere win. ``fisher``: the same, every side
    weighted by its mean Fisher information, which makes keys, values and layers comparable.

    Raises:
        KvbenchError: ``fisher``, and the statistics were collected without it.
    """
    if how == "uniform":
        return uniform_ranks(spectra, rank)
    if how == "energy":
        return global_ranks(spectra, rank)
    if not all(layer.calibrated.has_fisher for layer, _ in sides):
        raise KvbenchError("allocate=fisher needs statistics with Fisher information; use allocate=energy")
    weights = [float(layer.calibrated.fisher(side.moment).diagonal().mean()) for layer, side in sides]
    return global_ranks(spectra, rank, weights)
