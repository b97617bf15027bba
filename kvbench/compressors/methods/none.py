"""``none``: kvbench's own uncompressed cache, the strong baseline."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part


@dataclass(frozen=True)
class Uncompressed(Part):
    """Exact keys after RoPE and values in the model's dtype, in buffers that grow a sixteenth at a time.

    Decode folds the query heads of a group over their KV head, so K and V are read once. Quality is compared with this
    cache, and speed-ups are quoted against it and against ``hf``.
    """

    name = "none"
    family = "baseline"
    roles = ("baseline",)

    def apply(self, draft: Draft) -> None:
        """Nothing to fill in: a layer without a plan stays exact."""
