"""The roofline: what a step must read and do, on peaks that the test sets."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, subject, token_ids

from kvbench.compressors.compressor import parse
from kvbench.hardware.peaks import Peaks, peaks
from kvbench.measure import roofline as floor
from kvbench.measure.arms import Arm
from kvbench.measure.memory import walk
from kvbench.measure.parts.speed import RooflineResult
from kvbench.measure.prompt import exact_prompt
from kvbench.measure.roofline import roofline, weights_read

TOKENS, BATCH, STEP_S = 200, 2, 1.0
INT4 = "int:bits=4,sinks=2,recent=4,block=4"


def roofline_of(
    monkeypatch: pytest.MonkeyPatch, spec: str, limits: Peaks, family: str = "llama"
) -> RooflineResult | None:
    monkeypatch.setattr(floor, "peaks", lambda device, dtype: limits)
    one = subject(family, torch.float32)
    arm = Arm.of(spec, one.model, one.geometry, None if spec == "hf" else parse(spec).fit(one.geometry))
    prompt = exact_prompt(one.model, one.geometry, token_ids(1, TOKENS)).repeat(BATCH)
    with arm.entered():
        return roofline(arm, arm.fill(prompt), BATCH, STEP_S)


@pytest.mark.parametrize("spec", ["none", "hf"])
def test_an_uncompressed_cache_has_no_ceiling_above_one(monkeypatch, spec):
    bounds = roofline_of(monkeypatch, spec, Peaks(read=1e9, operations=1e15))
    geometry = subject("llama", torch.float32).geometry
    assert bounds is not None and bounds.cache_bytes == bounds.none_cache_bytes == BATCH * 4 * geometry.elements(TOKENS)
    assert bounds.operations == bounds.none_operations and bounds.ceiling == 1
    assert bounds.bound_s == pytest.approx((bounds.weight_bytes + bounds.cache_bytes) / 1e9)
    assert bounds.achieved == pytest.approx(bounds.bound_s / STEP_S)


def test_unused_capacity_is_not_read():
    one = subject("llama", torch.float32)
    arm = Arm.of("none", one.model, one.geometry, parse("none").fit(one.geometry))
    with arm.entered():
        cache = arm.fill(exact_prompt(one.model, one.geometry, token_ids(1, TOKENS)))
        arm.forward(token_ids(1, 1), cache)
    assert floor.bytes_read(cache) == 4 * one.geometry.elements(TOKENS + 1) < walk(cache).total


def test_fewer_bytes_raise_the_ceiling_where_reading_is_the_limit(monkeypatch):
    bounds = roofline_of(monkeypatch, INT4, Peaks(read=1e9, operations=1e15))
    assert bounds is not None and bounds.cache_bytes < bounds.none_cache_bytes / 4
    whole, less = bounds.weight_bytes + bounds.none_cache_bytes, bounds.weight_bytes + bounds.cache_bytes
    assert bounds.ceiling == pytest.approx(whole / less) and bounds.ceiling > 1


def test_fewer_bytes_are_no_faster_where_arithmetic_is_the_limit(monkeypatch):
    bounds = roofline_of(monkeypatch, INT4, Peaks(read=1e15, operations=1e6))
    assert bounds is not None and bounds.bound_s == bounds.operations / 1e6 and bounds.ceiling == 1


def test_operations_are_two_for_every_weight_and_every_dimension_of_every_token(monkeypatch):
    bounds, one = roofline_of(monkeypatch, "none", Peaks(1e9, 1e9)), subject("llama", torch.float32)
    attention = sum(layer.heads * TOKENS * (layer.head_dim + layer.value_dim) for layer in one.geometry.layers)
    assert bounds is not None and bounds.operations == 2 * BATCH * (weights_read(one.model)[0] + attention)


@pytest.mark.parametrize(("spec", "rebuilds"), [("pca:rank=0.5,heads=each,frame=after", False), ("pca:rank=0.5", True)])
def test_rebuilding_keys_and_values_is_counted(monkeypatch, spec, rebuilds):
    one, exact = subject("llama", torch.float32), roofline_of(monkeypatch, "none", Peaks(1e9, 1e9))
    monkeypatch.setattr(floor, "peaks", lambda device, dtype: Peaks(1e9, 1e9))
    arm = Arm.of(spec, one.model, one.geometry, parse(spec).fit(one.geometry, calibrated(one)))
    prompt = exact_prompt(one.model, one.geometry, token_ids(1, TOKENS)).repeat(BATCH)
    with arm.entered():
        bounds = roofline(arm, arm.fill(prompt), BATCH, STEP_S)
    assert exact is not None and bounds is not None
    assert (bounds.operations > exact.operations) == rebuilds, "half the rank is half the work, unless it is rebuilt"


def test_in_bands_only_fast_pairs_are_rebuilt_and_queries_go_into_the_latents_once_a_block(monkeypatch):
    one, rows = subject("llama", torch.float32), BATCH
    monkeypatch.setattr(floor, "peaks", lambda device, dtype: Peaks(1e9, 1e9))
    plan = parse("ftc:bits=4,frame=bands,rope_block=64,sinks=4,recent=8,block=8").fit(one.geometry, calibrated(one))
    arm = Arm.of("ftc", one.model, one.geometry, plan)
    prompt = exact_prompt(one.model, one.geometry, token_ids(1, TOKENS)).repeat(rows)
    with arm.entered():
        cache = arm.fill(prompt)
        bounds = roofline(arm, cache, rows, STEP_S)
    operations = weights_read(one.model)[0]
    for layer in one.geometry.layers:
        cached, codec = cache.layers[layer.layer], plan.layers[layer.layer].codec
        entries, rank, fast = cached.body.entries, codec.values.rank, len(codec.bands.fast)
        assert entries > 64 and 0 < codec.values.leading < rank
        exact = layer.heads * (TOKENS - entries) * (layer.head_dim + layer.value_dim)
        rebuilt = entries * layer.kv_heads * fast * (codec.values.leading + 2)
        scored = entries * layer.heads * (fast + 2 * rank)
        projected = layer.heads * rank * (-(-entries // 64) * (layer.head_dim - fast) + layer.value_dim)
        operations += exact + rebuilt + scored + projected
    assert bounds is not None and bounds.operations == 2 * rows * operations


def test_looked_up_tables_are_not_read():
    one = subject("llama", torch.float32)
    elements, size = weights_read(one.model)
    table = one.model.get_input_embeddings().weight
    tied = one.model.get_output_embeddings().weight is table
    everything = sum(parameter.numel() for parameter in one.model.parameters())
    assert elements == everything - (0 if tied else table.numel()) and size == 4 * elements


def test_experts_have_no_roofline(monkeypatch):
    assert roofline_of(monkeypatch, "none", Peaks(1e9, 1e9), family="mixtral") is None


def test_peaks_are_measured_once(monkeypatch):
    from kvbench.hardware import peaks as measured

    monkeypatch.setattr(measured, "ARRAY_BYTES", 2**22)
    monkeypatch.setattr(measured, "SIDE", {"cpu": 64})
    measured._measured.cache_clear()
    first = peaks(torch.device("cpu"), torch.float32)
    assert first is peaks(torch.device("cpu"), torch.float32) and min(first.read, first.operations) > 1e6
    measured._measured.cache_clear()


@pytest.mark.parametrize("spec", ["hadamard+int:bits=4", "random-projection:rank=0.5", "int:bits=4"])
def test_bases_are_read_once_a_step(monkeypatch, spec):
    """Decoder and mean in fp16, whatever the batch; one storage for all heads and layers here."""
    bounds = roofline_of(monkeypatch, spec, Peaks(read=1e9, operations=1e15))
    dim = subject("llama", torch.float32).geometry.layers[0].head_dim
    rank = {"hadamard+int:bits=4": dim, "random-projection:rank=0.5": dim // 2, "int:bits=4": None}[spec]
    assert bounds is not None and bounds.basis_bytes == (0 if rank is None else 2 * dim * rank + 2 * dim)
    assert bounds.bound_s == pytest.approx((bounds.weight_bytes + bounds.cache_bytes + bounds.basis_bytes) / 1e9)


def test_encoders_are_not_read_while_decoding():
    one = subject("llama", torch.float32)
    plan = parse("ftc:bits=4,recent=4,block=8").fit(one.geometry, calibrated(one))
    arm = Arm.of("ftc", one.model, one.geometry, plan)
    with arm.entered():
        cache = arm.fill(exact_prompt(one.model, one.geometry, token_ids(1, TOKENS)))
        read = floor.bases_read(floor.codecs_in_use(cache))
        assert floor.bases_read(floor.codecs_in_use(arm.new_cache())) == 0, "nothing is stored yet"
    assert 0.4 < read / plan.model_level_bytes() < 0.7
