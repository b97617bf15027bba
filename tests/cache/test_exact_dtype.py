"""Sinks and window stored in 16 bit: their bytes, what is seen of them, and every way a cache is handled."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving import FRAMES, Subject, calibrated, feed, left_padding, position_ids, subject, token_ids, worst
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.cache.attach import Plan
from kvbench.cache.compiled import compiled_decode
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.prediction import predict_bytes
from kvbench.cache.rounding import stored_as
from kvbench.cache.spans import Spans
from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import parse
from kvbench.compressors.plan_file import dump_plan, open_plan
from kvbench.errors import KvbenchError
from kvbench.measure.prompt import exact_prompt
from kvbench.selectors.base import Observed

pytestmark = pytest.mark.usefixtures("no_grad")
WIDE = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 3, "head_dim": 32}
SPANS = Spans(sinks=2, recent=9, block=8, exact="float16")
ROUNDED, EXACT = 2e-3, 1e-10
"""Logits are about 0.5 to 2: 16-bit spans move them by roundings of 2^-11; the same numbers read twice, by nothing."""
dtypes = pytest.mark.parametrize("exact", ["float16", "bfloat16"])


def fitted(one: Subject, spec: str, spans: Spans = SPANS) -> Plan:
    compressor = parse(spec)
    plan = compressor.fit(one.geometry, lambda: calibrated(one))
    return replace(plan, spans=spans)


@dtypes
@pytest.mark.parametrize("tokens", [40, 1000])
@pytest.mark.parametrize(
    "spec", ["int:bits=4", "pca:rank=0.5", "snapkv:budget=0.5+int:bits=8", "xkv:rank=0.5,layers=2"]
)
def test_half_the_exact_bytes_as_predicted(spec: str, tokens: int, exact: str) -> None:
    """40 tokens all fit the exact spans; of 1,000 these are 4 sinks and a buffer of 64 + the block."""
    one = subject("llama", torch.float32, **WIDE)
    sizes = []
    for spans in (Spans(), Spans(exact=exact)):
        plan = fitted(one, spec, spans)
        with one.attach_untested(plan) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, token_ids(2, tokens), [tokens])
        sizes.append(cache.nbytes())
        assert sizes[-1].total == pytest.approx(predict_bytes(plan, one.geometry, tokens, 2), rel=1e-3)
    wide, narrow = sizes
    assert narrow.exact * 2 == wide.exact
    assert (narrow.payload, narrow.scales) == (wide.payload, wide.scales)


@pytest.mark.parametrize("spec", ["none", "hf", "int:bits=4", "mla:latent=24,rope_dims=8", "snapkv:budget=0.5"])
def test_every_method_stores_exact_tokens_in_16_bit(spec: str) -> None:
    one = subject("llama", torch.float32, **WIDE)
    if parse(spec).baseline:
        with pytest.raises(KvbenchError, match="no spans"):
            parse(f"{spec}:exact=float16")
        return
    plan = fitted(one, spec)
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, 200), [150, *[1] * 50])
    exact = [tensor for layer in cache.kv_layers for kind, tensor in layer.tensors_by_kind() if kind == "exact"]
    assert exact and all(getattr(tensor, "data", tensor).dtype == torch.float16 for tensor in exact)


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("padding", [(0, 0), (21, 0, 3)])
@pytest.mark.parametrize("spec", ["kivi:bits=2", "xkv:rank=0.5,layers=1", "snapkv:budget=0.5", "pca:rank=0.5"])
def test_blocks_as_decoded_see_what_single_tokens_see(spec: str, padding: tuple[int, ...]) -> None:
    """Were tokens rounded only once they had been attended to, this would fail at 1e-4."""
    one, ids = subject("llama", layers=1), token_ids(len(padding), 130)
    mask = left_padding(len(padding), 130, padding) if any(padding) else None
    logits = []
    with one.attach_untested(fitted(one, spec)) as compressed:
        for as_decoded, blocks in ((True, (1, 7, 40, 32)), (False, [1] * 80)):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [50], mask)
            cache.as_decoded = as_decoded
            logits.append(feed(one.model, cache, ids, blocks, mask, start=50))
    assert worst(*logits) < EXACT


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("frame", FRAMES)
def test_the_prompt_itself_is_attended_exactly_and_later_tokens_see_it_rounded(frame: Frame) -> None:
    one, ids = subject("llama"), token_ids(2, 50)
    stock = one.model(ids).logits
    with one.attach_untested(one.identity(frame, SPANS)) as compressed:
        cache = compressed.new_cache()
        assert worst(feed(one.model, cache, ids, [40]), stock[:, :40]) < EXACT
        later = worst(feed(one.model, cache, ids, [1] * 10, start=40), stock[:, 40:])
    assert 1e-7 < later < ROUNDED


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spec", ["int:bits=8", "pca:rank=0.5", "xkv:rank=0.5,layers=2", "snapkv:budget=0.5"])
def test_a_loaded_prompt_equals_one_that_was_attended(spec: str) -> None:
    one, ids = subject("llama"), token_ids(1, 60)
    with one.attach_untested(fitted(one, spec)) as compressed:
        attended = compressed.new_cache()
        feed(one.model, attended, ids, [50])
        expected = feed(one.model, attended, ids, [1] * 10, start=50)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :50])
    with one.attach_untested(fitted(one, spec)) as compressed:
        loaded = prompt.fill(compressed)
        assert worst(feed(one.model, loaded, ids, [1] * 10, start=50), expected) < EXACT


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_crop_copy_and_reorder(family: str) -> None:
    """A cache that went back, was copied and had its rows swapped goes on as one that never did."""
    one, ids = subject(family, torch.float64), token_ids(2, 60)
    with one.attach_untested(one.identity("after", SPANS)) as compressed:
        straight = compressed.new_cache()
        feed(one.model, straight, ids, [40])
        expected = feed(one.model, straight, ids, [1] * 5, start=40)
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40])
        for layer in cache.kv_layers:
            layer.activate_past_recording()
        feed(one.model, cache, ids, [1] * 3, start=40)
        cache.crop(-3)
        twin = deepcopy(cache)
        feed(one.model, cache, ids, [1], start=40)
        twin.reorder_cache(torch.tensor([1, 0]))
        logits = feed(one.model, twin, ids.flip(0), [1] * 5, start=40).flip(0)
    assert worst(logits, expected) < EXACT


@pytest.mark.parametrize("length", [1, 5, 17, 30])
def test_crop_into_sinks_and_body(length: int) -> None:
    one, ids = subject("llama", torch.float64), token_ids(2, 60)
    mask = left_padding(2, 60, (6, 0))
    with one.attach_untested(one.identity("before", SPANS)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40], mask)
        cache.crop(length - 40)
        logits = feed(one.model, cache, ids, [1] * (60 - length), mask, start=length)
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits[:, length:]
    assert worst(logits, stock, mask[:, length:]) < ROUNDED
    assert {tail.data.dtype for layer in cache.kv_layers for tail in (layer.tail_keys,) if tail} == {torch.float16}


@dtypes
@pytest.mark.parametrize("frame", FRAMES)
def test_static_caches_do_the_same(frame: Frame, exact: str) -> None:
    one, ids = subject("llama", torch.float64), token_ids(2, 60)
    with one.attach_untested(one.identity(frame, replace(SPANS, recent=4, exact=exact))) as compressed:
        growing = compressed.new_cache()
        feed(one.model, growing, ids, [21])
        expected = feed(one.model, growing, ids, [1] * 39, start=21)
        decode = compiled_decode(compressed, ids[:, :21], 60, backend=None)
        logits = torch.stack([decode(ids[:, at : at + 1]) for at in range(21, 60)], 1)
        assert {layer.exact_keys.dtype for layer in decode.cache.layers} == {getattr(torch, exact)}
    assert worst(logits, expected) < EXACT


def test_values_beyond_float16_are_refused_with_the_way_out() -> None:
    one = subject("llama", torch.float32)
    plan = one.identity("after", SPANS)
    for spans, tokens in ((SPANS, 1), (SPANS, 40), (replace(SPANS, exact="bfloat16"), 40)):
        layer = CompressedLayer(plan.layers[0].codec, spans)
        keys = torch.ones(1, 2, tokens, one.geometry.layers[0].head_dim)
        large = keys * 1e5
        query = keys[:, :1]
        if spans.exact == "bfloat16":
            layer.load(large, keys, Observed(query, 1.0), None)
            continue
        with pytest.raises(KvbenchError, match="beyond 65504, where float16 ends; store them in bfloat16"):
            layer.load(large, keys, Observed(query, 1.0), None)
        layer.reset()
        layer.load(keys, keys, Observed(query, 1.0), None)
        with pytest.raises(KvbenchError, match="exact=bfloat16"):
            layer.append(keys, large)


def test_a_static_cache_refuses_what_overflows() -> None:
    one, ids = subject("llama", torch.float32), token_ids(1, 30)
    with one.attach_untested(one.identity("after", SPANS)) as compressed:
        decode = compiled_decode(compressed, ids, 40, backend=None)
        decode.cache.layers[0].exact_keys[0, 0, 0, 0] = torch.inf
        with pytest.raises(KvbenchError, match="exact=bfloat16"):
            decode(ids[:, :1])


def test_nothing_changes_in_a_model_of_that_dtype() -> None:
    one, ids = subject("llama", torch.float16), token_ids(2, 60)
    logits = []
    for exact in ("model", "float16"):
        with one.attach_untested(one.identity("before", replace(SPANS, exact=exact))) as compressed:
            cache = compressed.new_cache()
            logits.append(feed(one.model, cache, ids, [40, *[1] * 20]))
    assert torch.equal(*logits)


def test_a_saved_plan_keeps_its_dtype(tmp_path: Path) -> None:
    one = subject("llama", torch.float32)
    path = tmp_path / "plan.safetensors"
    path.write_bytes(dump_plan(fitted(one, "kivi:bits=2"), one.geometry, "random:llama", "0" * 64))
    assert open_plan(path).spans == SPANS
    assert open_plan(path).plan(one.geometry).spans == SPANS


@given(
    st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=20),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
@settings(max_examples=50, deadline=None)
def test_rounding_twice_is_rounding_once(values: list[float], dtype: torch.dtype) -> None:
    states = torch.tensor(values)
    once = stored_as(states, dtype)
    assert once.dtype == dtype
    assert torch.equal(stored_as(once.float(), dtype), once)
