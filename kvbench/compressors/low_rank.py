"""What the low-rank methods share: a rank that is a fraction of the width."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.part import Part


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
