"""``gear``: integers whose error is approximated by a low-rank matrix and outliers."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.quantizers.gear import ResidualQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.outliers import Outliers
from kvbench.compressors.draft import Draft
from kvbench.compressors.methods.integer import BITS
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Bounds, OneOf, at_least


@dataclass(frozen=True)
class Gear(Part):
    """GEAR: KIVI's integers, plus rank-``rank`` factors of the residual and the ``outliers`` share of values exactly.

    Based on Kang et al. 2024, GEAR (arXiv 2403.05527). Stored: ``bits`` per value and fp16 scale and zero per ``group``
    values (keys along tokens, values along channels); per ``chunk`` tokens and head two fp16 factors of the residual,
    16 · rank · (1 / head_dim + 1 / chunk) bits per value; 32 bits per outlier. All of it is fitted to the tokens
    themselves, nothing is calibrated. 2 % of outliers as in the paper; ``rank=4`` is its rank for prompts, 2 that for
    decoded tokens; ``outliers=0`` is GEAR-L. Differences: one chunk size instead of a whole prompt and 20 tokens of
    decoding, so that factors cost more; exact factors instead of power iteration; outliers by distance from the
    channel's mean, a count per 32 tokens.
    """

    name = "gear"
    family = "quantization"
    roles = ("quantizer",)
    paper = "arXiv 2403.05527"
    published = ("gear:rank=4",)
    rules = (
        OneOf("bits", BITS),
        at_least("group", 1),
        at_least("rank", 1),
        at_least("chunk", 1),
        Bounds("outliers", 0, 0.5, unit=", a fraction"),
    )

    bits: int
    group: int = 64
    rank: int = 2
    chunk: int = 128
    outliers: float = 0.02

    def apply(self, draft: Draft) -> None:
        """Per-channel keys, per-token values."""
        outliers = Outliers(self.outliers)
        backbones = IntegerQuantizer(self.bits, self.group, "token"), IntegerQuantizer(self.bits, self.group, "channel")
        for layer in draft:
            for side, backbone in zip(layer.sides, backbones, strict=True):
                side.quantizer = ResidualQuantizer(backbone, outliers, self.rank, self.chunk)
