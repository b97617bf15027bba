"""``svdq``: keys in the principal axes of their own prompt, with fewer bits from axis to axis."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.sections import Sections
from kvbench.compressors.draft import Draft
from kvbench.compressors.methods.integer import BITS
from kvbench.compressors.online import prompt_basis
from kvbench.compressors.part import Part
from kvbench.compressors.rules import Bounds, OneOf, at_least


@dataclass(frozen=True)
class SvdQ(Part):
    """SVDq: an SVD of the prompt's keys around their mean, with 8, 4, 2 and 0 bits down the singular directions.

    Based on Hong et al. 2025, SVDq (arXiv 2502.15304). ``bits`` is the mean over the keys' channels, by the paper's
    schedule: of the directions kept, a quarter has 8 bits, a quarter 4 and half of them 2, so 2 bits keep half of all
    directions (8, 4, 2, 2, 0, 0, 0, 0 by eighths) and 1 bit a quarter; above 4 bits all are kept and more of them get
    8. Values are group-wise integers of the nearest width, or ``values``. Stored: packed codes; fp16 scale and zero per
    ``group`` tokens of a key direction, and per ``group`` channels of a value; per sequence and layer the fp16 basis
    and mean, which weigh on short prompts. Differences: keys before RoPE, scales per ``group`` tokens instead of one
    per direction, decoded tokens join the prompt's basis, and no sparse attention on top. The paper leaves values in 16
    bit (``values=8`` is nearest); the basis is fitted to all tokens that leave the window after the prefill, or to the
    first chunk of a prompt that comes in chunks.
    """

    name = "svdq"
    family = "transform coding"
    roles = ("transform", "quantizer")
    paper = "arXiv 2502.15304"
    rules = (Bounds("bits", 0, 8, above=True), OneOf("values", BITS), at_least("group", 1, "value"))

    bits: float
    values: int | None = None
    group: int = 64

    def apply(self, draft: Draft) -> None:
        """An online basis and descending widths for the keys, integers for the values."""
        draft.store_keys_before_rope()
        values = IntegerQuantizer(self.values or min(BITS, key=lambda width: abs(width - self.bits)), self.group)
        for layer in draft:
            width = layer.geometry.kv_heads * layer.keys.head_dim
            runs = [(count, bits) for bits, count in directions(self.bits, width).items() if count]
            layer.keys.online = prompt_basis(width, sum(count for count, _ in runs), draft)
            layer.keys.quantizer = Sections(
                tuple((count, IntegerQuantizer(bits, self.group, "token")) for count, bits in runs)
            )
            layer.values.quantizer = values


def directions(bits: float, width: int) -> dict[int, int]:
    """How many of ``width`` directions get 8, 4 and 2 bits, the strongest first, for a mean of ``bits``."""
    kept = max(1, round(width * min(bits / 4, 1)))
    # A quarter, a quarter and a half have 4 bits on average; beyond, 8 bits spread and the rest stay 1 : 2.
    eight = kept / 4 if bits <= 4 else width * (bits - 8 / 3) / (8 - 8 / 3)
    stops = round(eight), round(eight + (kept - eight) / 3)
    return {8: stops[0], 4: stops[1] - stops[0], 2: kept - stops[1]}
