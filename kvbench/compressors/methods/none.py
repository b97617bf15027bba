"""``none``: kvbench's own uncompressed cache, the strong baseline, in the model's dtype or in 16 bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.cache.spans import ExactDtype, Spans
from kvbench.compressors.part import Part

if TYPE_CHECKING:  # tables name the baselines, and need no torch
    from kvbench.compressors.draft import Draft

IN_16_BIT = "none:dtype=float16"
"""The uncompressed cache in 16 bit that all others are timed against, in models of more than 16 bit.

float16 and not bfloat16: it takes as many bytes and as much time and keeps 11 bits of mantissa, not 8, so that its
divergence is rounding noise; keys and values stay far below 65504, where it ends.
"""


@dataclass(frozen=True)
class Uncompressed(Part):
    """Exact keys after RoPE and values in ``dtype`` (default: the model's), in buffers that grow a sixteenth at a time.

    Decode folds the query heads of a group over their KV head, so K and V are read once, and by a kernel that widens
    16-bit numbers in registers. Quality is compared with ``none``, and speed-ups are quoted against it, against it in
    16 bit and against ``hf``. In a model of that ``dtype`` there is no difference.
    """

    name = "none"
    family = "baseline"
    roles = ("baseline",)

    dtype: ExactDtype = "model"

    @property
    def spans(self) -> Spans:
        """No spans: all of it is exact, in ``dtype``."""
        return Spans(exact=self.dtype)

    def apply(self, draft: Draft) -> None:
        """Nothing to fill in: a layer without a plan stays exact."""
