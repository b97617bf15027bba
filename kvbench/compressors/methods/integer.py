"""``int``: group-wise integers per token, the plain quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.draft import Draft
from kvbench.compressors.part import Part
from kvbench.compressors.rules import OneOf, at_least

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Integer(Part):
    """Round-to-nearest integers with one fp16 scale and zero per ``group`` channels of a token, bits really packed.

    Stored: ``bits`` per value and 32 bits per group, so ``int:bits=4,group=64`` is 4.5 bits per value. As a second
    part it quantizes the latents of the transform before it (``pca:rank=0.5+int:bits=4``).
    """

    name = "int"
    family = "quantization"
    roles = ("quantizer",)
    rules = (OneOf("bits", BITS), at_least("group", 1, "value"))

    bits: int
    group: int = 64
    side: Literal["both", "keys", "values"] = "both"

    def apply(self, draft: Draft) -> None:
        """One quantizer for the requested sides."""
        quantizer = IntegerQuantizer(self.bits, self.group)
        for layer in draft:
            if self.side != "values":
                layer.keys.quantizer = quantizer
            if self.side != "keys":
                layer.values.quantizer = quantizer
