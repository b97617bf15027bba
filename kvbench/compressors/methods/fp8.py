"""``fp8``: 8-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Fp8(Part):
    """8-bit floats (OCP 8-bit formats, Micikevicius et al. 2022), scaled per token and head group.

    Stored: 8 bits per value and the token's largest magnitude in fp16 per head group: 8.25 bits at head_dim 64. Serving
    engines commonly use one static scale per tensor instead; ``cast:to=fp8`` shows what no scale at all costs. As a
    second part it stores the latents of the transform before it.
    """

    name = "fp8"
    family = "quantization"
    roles = ("quantizer",)
    paper = "arXiv 2209.05433"

    format: Literal["e4m3", "e5m2"] = "e4m3"

    def apply(self, draft: Draft) -> None:
        """Both sides alike."""
        for layer in draft:
            for side in layer.sides:
                side.quantizer = FloatQuantizer(FORMATS[self.format], scaled=True)
