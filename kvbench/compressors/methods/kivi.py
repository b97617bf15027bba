"""``kivi``: keys per channel, values per token."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.draft import Draft
from kvbench.compressors.methods.integer import BITS
from kvbench.compressors.part import Part
from kvbench.compressors.rules import OneOf, at_least


@dataclass(frozen=True)
class Kivi(Part):
    """KIVI: asymmetric integers, keys grouped along tokens within a channel, values along channels within a token.

    Based on Liu et al. 2024, KIVI (arXiv 2402.02750). Stored: ``bits`` per value, fp16 scale and zero per ``group``
    values, so 2 bits at group 32 are 3 bits. Groups of 32 and keys after RoPE as in the paper; its residual of 128
    tokens is ``recent=128`` (default 64). Differences: the prompt's first ``sinks`` tokens stay exact too, and the
    values' window is the keys', where the paper counts both apart.
    """

    name = "kivi"
    family = "quantization"
    roles = ("quantizer",)
    paper = "arXiv 2402.02750"
    rules = (OneOf("bits", BITS), at_least("group", 1, "value"))

    bits: int
    group: int = 32

    def apply(self, draft: Draft) -> None:
        """Per-channel keys, per-token values."""
        for layer in draft:
            layer.keys.quantizer = IntegerQuantizer(self.bits, self.group, "token")
            layer.values.quantizer = IntegerQuantizer(self.bits, self.group, "channel")
