"""``identity``: the whole machinery, and no compression."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.frame import Frame
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class Identity(Part):
    """Every token goes through encode, decode, rotation and merge, unchanged: what the compressed path itself costs.

    Differences from ``none`` in quality are rounding of the merge; differences in speed are kvbench's own overhead.
    """

    name = "identity"
    family = "baseline"
    roles = ("transform", "quantizer")

    frame: Frame = "after"

    def apply(self, draft: Draft) -> None:
        """Leave both sides as they are; only the frame of the keys is chosen."""
        draft.store_keys(self.frame)
