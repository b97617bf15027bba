"""``hf-hqq``: transformers' QuantizedCache on HQQ."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.stock import QuantizedStock, rules_of


@dataclass(frozen=True)
class Hqq(QuantizedStock):
    """Hugging Face's quantized cache as it ships, HQQ backend: half-quadratic fit of scales and zeros.

    Stored: packed codes, and scale and zero per ``group`` values in the model's dtype (4 bits at group 64 are 5 in
    fp32, 4.5 in bf16). Needs the extra ``hf-quant``.
    """

    name = "hf-hqq"
    package = "hqq"
    backend = "hqq"
    axis = 1
    rules = rules_of(2, 4, 8)
