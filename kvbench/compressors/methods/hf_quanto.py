"""``hf-quanto``: transformers' QuantizedCache on optimum-quanto."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.compressors.stock import QuantizedStock, rules_of


@dataclass(frozen=True)
class Quanto(QuantizedStock):
    """Hugging Face's quantized cache as it ships, quanto backend: group-wise asymmetric integers in the spirit of KIVI.

    Stored: packed codes, and scale and zero per ``group`` values in the model's dtype (4 bits at group 64 are 5 in
    fp32, 4.5 in bf16). Needs the extra ``hf-quant``.
    """

    name = "hf-quanto"
    paper = "arXiv 2402.02750"
    package = "optimum-quanto"
    backend = "quanto"
    axis = 0
    rules = rules_of(2, 4)
