"""``fp8``: 8-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import at_least

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
SCALES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Fp8(Part):
    """8-bit floats (OCP 8-bit formats, Micikevicius et al. 2022), scaled per token and ``group`` channels of a head.

    Stored: 8 bits per value and the group's largest magnitude in ``scale``; without a group that of the whole head:
    8.25 bits at head_dim 64. Serving engines commonly use one static scale per tensor instead; ``cast:to=fp8`` shows
    what no scale at all costs. ``fp8:group=128,scale=float32,side=values`` is how FlashMLA lays out DeepSeek's latents:
    512 values and 4 scales, beside a RoPE key of 64 channels in 16 bit, 656 bytes a token and layer. As a second part
    it stores the latents of the transform before it.
    """

    name = "fp8"
    family = "quantization"
    roles = ("quantizer",)
    paper = "arXiv 2209.05433"
    rules = (at_least("group", 1, "value"),)

    format: Literal["e4m3", "e5m2"] = "e4m3"
    group: int | None = None
    scale: Literal["float16", "float32"] = "float16"
    side: Literal["both", "keys", "values"] = "both"

    def apply(self, draft: Draft) -> None:
        """The requested sides alike."""
        quantizer = FloatQuantizer(FORMATS[self.format], True, self.group, SCALES[self.scale])
        for layer in draft:
            if self.side != "values":
                layer.keys.quantizer = quantizer
            if self.side != "keys":
                layer.values.quantizer = quantizer
