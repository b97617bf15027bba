"""Memory: walked bytes equal predicted ones, over a cycle of blocks too, and no peak lies below them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from fp64 import one_thread

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hardware.process_memory import Peak
from kvbench.measure import memory as memory_module
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_filled, measure_memory, measure_prefilled
from kvbench.measure.parts.memory import MemoryResult
from kvbench.measure.prompt import exact_prompt

__all__ = ["one_thread"]

SPECS = ("none", "hf", "int:bits=4", "kivi:bits=2", "kvtc:bits=3", "pca:rank=0.5", "snapkv:budget=0.25+int:bits=8")
TOKENS = 300


def arm_of(one: Subject, spec: str) -> Arm:
    parsed = parse(spec)
    statistics = calibrated(one) if parsed.needs_calibration else None
    plan = None if parsed.baseline == "hf" else parsed.fit(one.geometry, statistics)
    return Arm.of(spec, one.model, one.geometry, plan)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("batch", [1, 3])
def test_walked_bytes_are_the_predicted_ones(family: str, spec: str, batch: int):
    memory = measure_memory(arm_of(subject(family, torch.float32), spec), token_ids(batch, TOKENS), steps=2)
    assert abs(memory.prediction_error) < 0.01 and not memory.flagged
    assert (memory.tokens, memory.batch, memory.dtype) == (TOKENS, batch, "float32")
    MemoryResult.model_validate_json(memory.model_dump_json())


def ratios(memory: MemoryResult) -> tuple[float, float, float]:
    return memory.ratio_allocated, memory.ratio_predicted, memory.bits_per_element


def test_ratios_are_against_16_bit_keys_and_values():
    one = subject("llama", torch.float32)
    elements = sum(2 * layer.kv_heads * layer.head_dim for layer in one.geometry.layers)
    for spec in ("none", "hf"):
        memory = measure_memory(arm_of(one, spec), token_ids(1, TOKENS), steps=0)
        assert ratios(memory) == pytest.approx((0.5, 0.5, 32)), "fp32 takes twice the reference"
        assert memory.bytes_per_token == 4 * elements and memory.ratio_claimed is None
    half = measure_memory(arm_of(subject("llama", torch.bfloat16), "none"), token_ids(1, TOKENS), steps=0)
    assert ratios(half) == pytest.approx((1, 1, 16)) and half.dtype == "bfloat16"


def test_claimed_ratio_is_the_bodys_and_the_allocated_one_pays_for_everything():
    memory = measure_memory(arm_of(subject("llama", torch.float32), "int:bits=4"), token_ids(1, TOKENS), steps=0)
    assert memory.body_bits_per_element is not None and 4 < memory.body_bits_per_element <= 6
    assert memory.ratio_claimed == pytest.approx(16 / memory.body_bits_per_element)
    assert memory.ratio_allocated < memory.ratio_claimed
    assert memory.allocated.exact > 0 and memory.allocated.payload > 0 and memory.allocated.scales > 0


def test_a_body_that_keeps_nothing_claims_no_ratio():
    memory = measure_memory(arm_of(subject("llama", torch.float32), "streaming"), token_ids(1, TOKENS), steps=0)
    assert memory.ratio_claimed is None and memory.body_bits_per_element == 0


def test_layers_that_stay_exact_are_counted():
    one = subject("gemma3", torch.float32, layers=4)
    arm, ids = arm_of(one, "int:bits=4"), token_ids(1, TOKENS)
    memory = measure_memory(arm, ids, steps=0)
    full, windowed = 2 * TOKENS, 2 * 8
    assert (memory.layers, memory.compressed_layers) == (4, 2)
    assert memory.compressed_share == pytest.approx(full / (full + windowed)), "alike layers, a window of 8 tokens"
    assert (memory.compressed_at, memory.kept_layers) == ((1, 3), {"sliding_window": 2})
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(ids, cache)
    tails = [tail for index in (0, 2) for tail in (cache.layers[index].tail_keys, cache.layers[index].tail_values)]
    exact = sum(tail.data.untyped_storage().nbytes() for tail in tails)
    others = exact + memory.allocated.positions + memory.allocated.workspace
    assert 0 < memory.compressed_bytes == memory.allocated.total - others
    assert measure_memory(arm_of(one, "none"), token_ids(1, TOKENS), steps=0).compressed_layers is None


def test_layers_that_are_all_compressed_hold_all_but_positions():
    one = subject("llama", torch.float32)
    memory = measure_memory(arm_of(one, "kvtc:bits=3"), token_ids(1, TOKENS), steps=0)
    assert (memory.compressed_at, memory.kept_layers) == (tuple(range(len(one.geometry.layers))), {})
    assert memory.compressed_bytes == memory.allocated.total - memory.allocated.positions - memory.allocated.workspace


def test_weights_are_counted_with_those_of_experts():
    one = subject("mixtral", torch.float32)
    memory = measure_memory(arm_of(one, "none"), token_ids(1, TOKENS), steps=0)
    assert memory.weight_bytes == 4 * sum(parameter.numel() for parameter in one.model.parameters())
    hidden, wide, experts = 64, 96, 4
    assert memory.expert_bytes == 4 * 2 * experts * 3 * hidden * wide, "two layers of three matrices each"
    dense = measure_memory(arm_of(subject("gpt2", torch.float32), "none"), token_ids(1, TOKENS), steps=0)
    tied = sum(parameter.numel() for parameter in subject("gpt2").model.parameters())
    assert (dense.expert_bytes, dense.weight_bytes) == (0, 4 * tied)


def test_bases_are_model_level_and_not_in_the_cache():
    one = subject("llama", torch.float32)
    memory = measure_memory(arm_of(one, "pca:rank=0.5,frame=before"), token_ids(1, TOKENS), steps=0)
    assert memory.model_level_bytes > 0 and memory.rope_table_bytes > 0 and memory.allocated.workspace == 0
    assert measure_memory(arm_of(one, "int:bits=4"), token_ids(1, TOKENS), steps=0).model_level_bytes == 0


@pytest.mark.parametrize("spec", SPECS)
def test_a_filled_cache_has_the_same_bytes_as_a_prefilled_one(spec: str):
    one, ids = subject("llama", torch.float32), token_ids(1, TOKENS)
    arm = arm_of(one, spec)
    memory = measure_filled(arm, exact_prompt(one.model, one.geometry, ids), steps=40)
    assert memory.peak_prefill_bytes is None
    prefilled = measure_memory(arm, ids, steps=40)
    assert (memory.allocated, memory.largest_bytes) == (prefilled.allocated, prefilled.largest_bytes)
    assert measure_prefilled(arm, ids, steps=40, chunk=TOKENS) == memory


def test_the_largest_bytes_are_those_of_the_fullest_moment_of_a_cycle():
    one, ids = subject("llama", torch.float32), token_ids(1, TOKENS)
    arm, prompt = arm_of(one, "int:bits=4"), exact_prompt(one.model, one.geometry, ids)
    assert measure_filled(arm, prompt, steps=0).largest_bytes is None, "nothing was decoded"
    walked = []
    with arm.entered():
        cache, token = arm.fill(prompt), prompt.logits.argmax(-1, keepdim=True)
        for _ in range(32):  # a block leaves the window once in them
            walked.append(memory_module.walk(cache).total)
            token = arm.forward(token, cache)[:, -1].argmax(-1, keepdim=True)
        walked.append(memory_module.walk(cache).total)
    assert walked[-1] > walked[0], "the cycle shows"
    assert measure_filled(arm, prompt, steps=32).largest_bytes == max(walked)


def test_a_prompt_in_chunks_fills_a_cache_of_the_same_bytes():
    arm, ids = arm_of(subject("llama", torch.float32), "kvtc:bits=3"), token_ids(2, TOKENS)
    whole, chunked = measure_memory(arm, ids, 0), measure_memory(arm, ids, 0, chunk=70)
    assert chunked.allocated.payload == whole.allocated.payload > 0
    assert chunked.allocated.scales == whole.allocated.scales


def fake_peak(above: int, method: str) -> Peak:
    return Peak(baseline_bytes=1 << 30, method=method, bytes=(1 << 30) + above)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["prefill", "decoding"])
def test_a_peak_below_the_caches_bytes_is_no_result(phase: str, monkeypatch: pytest.MonkeyPatch):
    arm, ids = arm_of(subject("llama", torch.float32), "none"), token_ids(1, TOKENS)
    size = measure_memory(arm, ids, steps=0).allocated.total
    peaks = iter([size, size - 1] if phase == "decoding" else [size - 1, size])

    @contextmanager
    def measured(device: str) -> Iterator[Peak]:
        yield fake_peak(next(peaks), "allocator")

    monkeypatch.setattr(memory_module, "peak_memory", measured)
    with pytest.raises(KvbenchError, match=rf"the peak of {phase} came out at .* and the cache itself holds"):
        measure_memory(arm, ids, steps=0)


def test_within_the_counters_resolution_the_bytes_themselves_are_the_peak(monkeypatch: pytest.MonkeyPatch):
    arm, ids = arm_of(subject("llama", torch.float32), "none"), token_ids(1, TOKENS)

    @contextmanager
    def measured(device: str) -> Iterator[Peak]:
        yield fake_peak(0, "kernel")

    monkeypatch.setattr(memory_module, "peak_memory", measured)
    memory = measure_memory(arm, ids, steps=0)
    assert memory.peak_prefill_bytes == memory.peak_decode_bytes == memory.allocated.total


def test_measuring_leaves_the_model_stock():
    one, ids = subject("llama", torch.float32), token_ids(1, 20)
    before = one.model(ids).logits
    measure_memory(arm_of(one, "int:bits=4"), token_ids(1, TOKENS), steps=2)
    assert torch.equal(one.model(ids).logits, before)
