"""Memory: what a cache allocates, against what arithmetic predicts; and peaks in a process of its own.

Bytes are walked from tensor storages after a real prefill through the attached model. Ratios and bits per element are
against 16-bit keys and values, whatever dtype the run used.
"""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, QuantizedCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from kvbench.cache.break_even import break_even_tokens
from kvbench.cache.cache import CacheBytes, CompressedCache, bytes_of_layers, reachable_tensors, unused_bytes
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.errors import KvbenchError
from kvbench.hardware.process_memory import Peak, peak_memory
from kvbench.measure.arms import Arm
from kvbench.measure.parts.memory import MemoryResult
from kvbench.measure.prompt import ExactPrompt
from kvbench.measure.results import Bytes
from kvbench.measure.weights import expert_parameters, weight_bytes

FLAG = 0.01
"""Predicted and allocated bytes may differ by this share before a result is flagged."""

WARM_UP = 512
"""Tokens of the prompt that run once before anything is measured: enough for every layer to encode blocks."""


def measure_memory(arm: Arm, ids: Tensor, steps: int, chunk: int | None = None) -> MemoryResult:
    """Prefill ``ids`` (batch, tokens) through ``arm``, walk the cache, then decode ``steps`` tokens, with peaks.

    Before that, the prompt is prefilled ``chunk`` tokens at a time, which are compressed before the next come, for the
    peak of that; not where the prompt is no longer. Peaks repeat only in a process that has done nothing else: see
    :mod:`kvbench.measure.memory_probe`.

    Raises:
        KvbenchError: a peak below the bytes that the cache itself had written.
    """
    batch, tokens = ids.shape
    with arm.entered():
        # What the first passes load and build is not the cache's: several tokens on none, and on some.
        _prefill(arm, arm.new_cache(), ids[:, :WARM_UP], WARM_UP // 2)
        chunked = None
        if chunk is not None and chunk < tokens:
            chunked = _peak_of_prefill(arm, ids, chunk).peak_bytes
        whole = _peak_of_prefill(arm, ids, None)
        allocated, where = walk(whole.cache), _where(arm, whole.cache)
        with peak_memory(str(arm.model.device)) as decode:
            largest, most_written = _decode(arm, whole.cache, whole.logits, steps)
    return _summary(
        arm,
        allocated,
        batch,
        tokens,
        largest_bytes=largest if steps else None,
        peak_prefill_bytes=whole.peak_bytes,
        peak_prefill_chunked_bytes=chunked,
        peak_decode_bytes=_possible("decoding", decode, whole.baseline_bytes, most_written),
        baseline_rss_bytes=whole.baseline_bytes,
        **where,
    )


class _Prefilled(NamedTuple):
    cache: Cache
    logits: Tensor
    baseline_bytes: int
    peak_bytes: int


def _peak_of_prefill(arm: Arm, ids: Tensor, chunk: int | None) -> _Prefilled:
    """A new cache with ``ids`` in it, and the peak over the memory before it."""
    cache = arm.new_cache()
    with peak_memory(str(arm.model.device)) as peak:
        logits = _prefill(arm, cache, ids, chunk)
    phase = "prefill" if chunk is None else f"prefill in chunks of {chunk}"
    return _Prefilled(
        cache, logits, peak.baseline_bytes, _possible(phase, peak, peak.baseline_bytes, _cache_bytes(cache)[1])
    )


def measure_filled(arm: Arm, prompt: ExactPrompt, steps: int) -> MemoryResult:
    """Walk the bytes of a cache that has taken ``prompt`` in, and of ``steps`` decoded tokens; no peaks."""
    with arm.entered():
        return _walked(arm, arm.fill(prompt), prompt.logits, prompt.length, steps)


def measure_prefilled(arm: Arm, ids: Tensor, steps: int, chunk: int) -> MemoryResult:
    """The same of ``ids`` (batch, tokens), prefilled ``chunk`` tokens at a time through ``arm``.

    Beside the weights only its cache is in memory, and the model's work on a chunk.
    """
    with arm.entered():
        cache = arm.new_cache()
        return _walked(arm, cache, _prefill(arm, cache, ids, chunk), ids.shape[1], steps)


def _walked(arm: Arm, cache: Cache, logits: Tensor, tokens: int, steps: int) -> MemoryResult:
    allocated, where = walk(cache), _where(arm, cache)
    largest, _ = _decode(arm, cache, logits, steps)
    largest_bytes = largest if steps else None
    return _summary(arm, allocated, logits.shape[0], tokens, largest_bytes=largest_bytes, **where)


def _prefill(arm: Arm, cache: Cache, ids: Tensor, chunk: int | None) -> Tensor:
    """Logits (batch, vocabulary) after the last token."""
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(arm.model.forward).parameters else {}
    seen = 0
    for piece in ids.split(chunk or ids.shape[1], 1):
        seen += piece.shape[1]
        mask = torch.ones(ids.shape[0], seen, dtype=torch.long, device=ids.device)
        logits = arm.forward(piece, cache, attention_mask=mask, **last_only)[:, -1]
    return logits


def _decode(arm: Arm, cache: Cache, logits: Tensor, steps: int) -> tuple[int, int]:
    """Decode ``steps`` tokens, the likeliest each time; the most bytes allocated, and written, from the prompt on.

    Blocks of tokens leave the recent window all at once, so the bytes rise and fall within a cycle.
    """
    sizes = [_cache_bytes(cache)]
    for _ in range(steps):
        logits = arm.forward(logits.argmax(-1, keepdim=True), cache)[:, -1]
        sizes.append(_cache_bytes(cache))
    return max(allocated for allocated, _ in sizes), max(written for _, written in sizes)


def _cache_bytes(cache: Cache) -> tuple[int, int]:
    """Bytes allocated, and those of them that were written: buffer space for later tokens may not be resident yet."""
    total = walk(cache).total
    return total, total - (unused_bytes(cache) if isinstance(cache, CompressedCache) else 0)


def _possible(phase: str, peak: Peak, baseline: int, written: int) -> int:
    """Bytes of ``peak`` above ``baseline``; never less than what the cache had ``written`` by then."""
    above = peak.bytes - baseline
    if above + peak.resolution_bytes < written:
        raise KvbenchError(
            f"the peak of {phase} came out at {above / 2**20:.1f} MiB above the baseline, and the cache itself holds "
            f"{written / 2**20:.1f}: the system swaps, or counts memory in its own way; free memory and run again, or "
            "set peaks = false under [workload.memory]"
        )
    return max(above, written)


def walk(cache: Cache) -> CacheBytes:
    """Allocated bytes of any cache, each storage once.

    Of a stock cache integers are payload and floats are exact, or scales if the cache quantizes: right after a prompt
    it holds nothing exact.
    """
    if isinstance(cache, CompressedCache):
        return cache.nbytes()
    floats = "scales" if isinstance(cache, QuantizedCache) else "exact"
    sizes: dict[str, dict[int, int]] = {"payload": {}, floats: {}}
    for tensor in reachable_tensors(cache):
        storage = tensor.untyped_storage()
        sizes[floats if tensor.is_floating_point() else "payload"][storage.data_ptr()] = storage.nbytes()
    return CacheBytes(**{name: sum(storages.values()) for name, storages in sizes.items()})


def _summary(arm: Arm, allocated: CacheBytes, batch: int, tokens: int, **measured: Any) -> MemoryResult:
    elements = arm.geometry.elements(tokens) * batch
    # A stock sliding layer is a view that keeps the whole prompt's storage alive until the next step.
    every = arm.stock.elements_per_token(arm.model, arm.geometry) * tokens * batch
    stock = round(every * arm.stock.bits_per_element(arm.geometry.dtype) / 8)
    predicted = stock if arm.plan is None else predict_bytes(arm.plan, arm.geometry, tokens, batch)
    body = None if arm.plan is None else body_bits_per_element(arm.plan, arm.geometry)
    error = (allocated.total - predicted) / allocated.total
    bases = 0 if arm.plan is None else arm.plan.model_level_bytes()
    return MemoryResult(
        tokens=tokens,
        batch=batch,
        dtype=str(arm.geometry.dtype).removeprefix("torch."),
        allocated=Bytes.of(allocated),
        predicted_bytes=predicted,
        prediction_error=error,
        model_level_bytes=bases,
        rope_table_bytes=0 if arm.attachment is None else arm.attachment.rope_table_bytes,
        weight_bytes=weight_bytes(arm.model.parameters()),
        expert_bytes=weight_bytes(expert_parameters(arm.model)),
        bytes_per_token=allocated.total / (tokens * batch),
        ratio_allocated=2 * elements / allocated.total,
        ratio_predicted=2 * elements / predicted,
        ratio_claimed=16 / body if body else None,
        bits_per_element=8 * allocated.total / elements,
        bits_with_bases=8 * (allocated.total + bases) / elements,
        break_even_tokens=_break_even(arm),
        body_bits_per_element=body,
        layers=len(arm.geometry.layers),
        **_compressed(arm, tokens),
        flagged=abs(error) > FLAG,
        **measured,
    )


def _compressed(arm: Arm, tokens: int) -> dict[str, Any]:
    """How many layers are compressed, and what share of the uncompressed cache they hold; nothing for baselines."""
    if arm.plan is None or not arm.plan.layers:
        return {}
    compressed = [layer for layer in arm.geometry.layers if arm.plan.compresses(layer.layer)]
    share = sum(layer.elements_per_token for layer in compressed) * tokens / arm.geometry.elements(tokens)
    return {"compressed_layers": len(compressed), "compressed_share": share}


def _where(arm: Arm, cache: Cache) -> dict[str, Any]:
    """Which layers are compressed, what they hold in ``cache``, and what the others are; nothing for baselines."""
    if arm.plan is None or not arm.plan.layers or not isinstance(cache, CompressedCache):
        return {}
    compressed = tuple(layer.layer for layer in arm.geometry.layers if arm.plan.compresses(layer.layer))
    attention = {layer.layer: layer for layer in arm.geometry.layers}
    kept = Counter(
        "exact" if layer.sliding_window is None else "sliding_window"
        for index, layer in attention.items()
        if index not in compressed
    )
    others = [layer for index, layer in enumerate(cache.layers) if index not in attention]
    kept["linear_attention"] = sum(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in others)
    return {
        "compressed_at": compressed,
        "compressed_bytes": bytes_of_layers(cache, compressed),
        "kept_layers": {kind: count for kind, count in kept.items() if count},
    }


def _break_even(arm: Arm) -> int | None:
    """A stock cache has no bases, and keeps every token alike."""
    if arm.plan is None:
        return 1 if arm.stock.bits_per_element(arm.geometry.dtype) < 16 else None
    return break_even_tokens(arm.plan, arm.geometry)
