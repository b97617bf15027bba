"""Memory: what a cache allocates, against what arithmetic predicts; and peaks in a process of its own.

Bytes are walked from tensor storages after a real prefill through the attached model. Ratios and bits per element are
against 16-bit keys and values, whatever dtype the run used.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, QuantizedCache

from kvbench.cache.break_even import break_even_tokens
from kvbench.cache.cache import CacheBytes, CompressedCache, reachable_tensors
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.hardware.process_memory import peak_memory
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import ExactPrompt

FLAG = 0.01
"""Predicted and allocated bytes may differ by this share before a result is flagged."""


@dataclass(frozen=True)
class Memory:
    """Bytes after the prefill of ``tokens`` tokens per row; peaks are over the process' resident memory before it."""

    tokens: int
    batch: int
    dtype: str
    allocated: CacheBytes
    predicted_bytes: int
    prediction_error: float
    model_level_bytes: int
    rope_table_bytes: int
    bytes_per_token: float
    ratio_allocated: float
    ratio_predicted: float
    ratio_claimed: float | None
    bits_per_element: float
    bits_with_bases: float
    break_even_tokens: int | None
    body_bits_per_element: float | None
    flagged: bool
    peak_prefill_bytes: int | None = None
    peak_decode_bytes: int | None = None
    baseline_rss_bytes: int | None = None


def measure_memory(arm: Arm, ids: Tensor, steps: int) -> Memory:
    """Prefill ``ids`` (batch, tokens) through ``arm``, walk the cache, then decode ``steps`` tokens.

    Peaks mean something only in a fresh process: see :mod:`kvbench.measure.memory_probe`.
    """
    batch, tokens = ids.shape
    ones = torch.ones_like(ids)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(arm.model.forward).parameters else {}
    with arm.entered():
        cache = arm.new_cache()
        with peak_memory(str(arm.model.device)) as prefill:
            arm.forward(ids, cache, attention_mask=ones, **last_only)
        allocated = walk(cache)
        with peak_memory(str(arm.model.device)) as decode:
            for step in range(steps):
                arm.forward(ids[:, step % tokens : step % tokens + 1], cache)
    held = {
        "peak_prefill_bytes": prefill.bytes - prefill.baseline_bytes,
        "peak_decode_bytes": decode.bytes - prefill.baseline_bytes,
        "baseline_rss_bytes": prefill.baseline_bytes,
    }
    return _summary(arm, allocated, batch, tokens, held)


def measure_filled(arm: Arm, prompt: ExactPrompt) -> Memory:
    """Walk the bytes of a cache that has taken ``prompt`` in; no peaks."""
    with arm.entered():
        allocated = walk(arm.fill(prompt))
    return _summary(arm, allocated, prompt.logits.shape[0], prompt.length, {})


def walk(cache: Cache) -> CacheBytes:
    """Allocated bytes of any cache, each storage once.

    Of a stock cache integers are payload and floats are exact, or scales if the cache quantizes: right after a prompt
    it holds nothing exact.
    """
    if isinstance(cache, CompressedCache):
        return cache.nbytes()
    floats = "scales" if isinstance(cache, QuantizedCache) else "exact"
    found: dict[str, dict[int, int]] = {"payload": {}, floats: {}}
    for tensor in reachable_tensors(cache):
        storage = tensor.untyped_storage()
        found[floats if tensor.is_floating_point() else "payload"][storage.data_ptr()] = storage.nbytes()
    return CacheBytes(**{name: sum(storages.values()) for name, storages in found.items()})


def _summary(arm: Arm, allocated: CacheBytes, batch: int, tokens: int, held: dict[str, int]) -> Memory:
    elements = arm.geometry.elements(tokens) * batch
    # A stock sliding layer is a view that keeps the whole prompt's storage alive until the next step.
    every = sum(layer.elements_per_token for layer in arm.geometry.layers) * tokens * batch
    stock = round(every * arm.stock.bits_per_element(arm.geometry.dtype) / 8)
    predicted = stock if arm.plan is None else predict_bytes(arm.plan, arm.geometry, tokens, batch)
    body = None if arm.plan is None else body_bits_per_element(arm.plan, arm.geometry)
    error = (allocated.total - predicted) / allocated.total
    bases = 0 if arm.plan is None else arm.plan.model_level_bytes()
    return Memory(
        tokens=tokens,
        batch=batch,
        dtype=str(arm.geometry.dtype).removeprefix("torch."),
        allocated=allocated,
        predicted_bytes=predicted,
        prediction_error=error,
        model_level_bytes=bases,
        rope_table_bytes=0 if arm.attachment is None else arm.attachment.rope_table_bytes,
        bytes_per_token=allocated.total / (tokens * batch),
        ratio_allocated=2 * elements / allocated.total,
        ratio_predicted=2 * elements / predicted,
        ratio_claimed=16 / body if body else None,
        bits_per_element=8 * allocated.total / elements,
        bits_with_bases=8 * (allocated.total + bases) / elements,
        break_even_tokens=_break_even(arm),
        body_bits_per_element=body,
        flagged=abs(error) > FLAG,
        **held,
    )


def _break_even(arm: Arm) -> int | None:
    """A stock cache has no bases, and keeps every token alike."""
    if arm.plan is None:
        return 1 if arm.stock.bits_per_element(arm.geometry.dtype) < 16 else None
    return break_even_tokens(arm.plan, arm.geometry)


def as_plain(memory: Memory) -> dict[str, Any]:
    """Plain JSON values."""
    return asdict(memory)
