"""``cast``: a narrower dtype and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part

DTYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Cast(Part):
    """A plain cast: the embarrassing baseline of quantization. fp8 is e4m3 without any scale, saturating at 448.

    Stored: 8 or 16 bits per value. In a 16-bit model the 16-bit casts save nothing.
    """

    name = "cast"
    family = "quantization"
    roles = ("quantizer",)
    published = ("cast:to=fp8",)

    to: Literal["fp8", "bf16", "fp16"]

    def apply(self, draft: Draft) -> None:
        """Both sides alike."""
        for layer in draft:
            for side in layer.sides:
                side.quantizer = FloatQuantizer(DTYPES[self.to])
