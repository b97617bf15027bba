"""What a compressor takes on a model, by arithmetic: bases, bits by length, from where it pays; and who reads it."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.cache.attends import attends
from kvbench.cache.break_even import break_even_tokens
from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import Compressor
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench

LENGTHS = (1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class Sizes:
    """``bits`` and ``bits_with_bases`` per element of one sequence, by its length in tokens.

    ``attends``: what reads the cache while decoding on this machine (:mod:`kvbench.cache.reads`).
    """

    spec: str
    model: str
    dtype: str
    attends: str
    model_level_bytes: int
    break_even_tokens: int | None
    bits: dict[int, float]
    bits_with_bases: dict[int, float]


def predicted_sizes(bench: ModelBench, compressor: Compressor, source: CalibrationSource) -> Sizes:
    """The sizes of ``compressor`` on the model of ``bench``; fits it, and collects statistics if it needs them.

    Raises:
        KvbenchError: the compressor is a cache of transformers, whose bytes are not kvbench's to predict.
    """
    if compressor.stock is not None:
        raise KvbenchError(f"{compressor} is transformers' own cache: its bytes are measured, not predicted; run it")
    plan = bench.fit(compressor, source)
    bases = plan.model_level_bytes()
    sizes = {tokens: predict_bytes(plan, bench.geometry, tokens) for tokens in LENGTHS}
    return Sizes(
        str(compressor),
        bench.name,
        bench.dtype,
        attends(plan, bench.geometry, softcap=_softcap(bench)),
        bases,
        break_even_tokens(plan, bench.geometry),
        {tokens: 8 * size / bench.geometry.elements(tokens) for tokens, size in sizes.items()},
        {tokens: 8 * (size + bases) / bench.geometry.elements(tokens) for tokens, size in sizes.items()},
    )


def _softcap(bench: ModelBench) -> float | None:
    """What the model caps its scores at, as Gemma 2 does; no kernel reads such a cache."""
    return getattr(bench.loaded.model.config.get_text_config(), "attn_logit_softcapping", None)
