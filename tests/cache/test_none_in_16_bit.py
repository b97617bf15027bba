"""The uncompressed cache in 16 bit: half the bytes, the same numbers but for rounding, read where it lies."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from driving import Subject, calibrated, feed, left_padding, position_ids, subject, token_ids, worst
from torch import nn

from kvbench.cache.attach import CompressedModel
from kvbench.cache.compiled import compiled_decode
from kvbench.cache.layer import ExactLayer
from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hooks.interception import AttentionCall
from kvbench.kernels.reading import Reading
from kvbench.kernels.reference import partial_attention
from kvbench.measure.divergence import divergence
from kvbench.measure.prompt import exact_prompt
from kvbench.selectors.base import Observed

pytestmark = pytest.mark.usefixtures("no_grad")
dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mistral"])
EXACT = 1e-10


def attached(one: Subject, spec: str, reading: str = "auto") -> CompressedModel:
    return CompressedModel(one.model, parse(spec).fit(one.geometry), one.geometry, Reading.parse(reading))


def logits_of(one: Subject, spec: str, reading: str = "auto", rows: int = 2, tokens: int = 60) -> tuple[Any, Any]:
    """Logits of decoded tokens behind a prompt, and the cache."""
    with attached(one, spec, reading) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(rows, tokens), [40])
        return feed(one.model, cache, token_ids(rows, tokens), [1] * (tokens - 40), start=40), cache


@dtypes
@families
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_half_the_bytes_as_predicted(family: str, dtype: str, tokens: int) -> None:
    """Layers with a sliding window among them."""
    one, sizes = subject(family, torch.float32), []
    for spec in ("none", f"none:dtype={dtype}"):
        plan = parse(spec).fit(one.geometry)
        with CompressedModel(one.model, plan, one.geometry) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, token_ids(2, tokens), [tokens])
        sizes.append(cache.nbytes())
        assert sizes[-1].total == sizes[-1].exact == predict_bytes(plan, one.geometry, tokens, 2)
    assert 2 * sizes[1].total == sizes[0].total


@dtypes
@families
def test_the_kernel_reads_it_as_plain_torch_does(family: str, dtype: str) -> None:
    one = subject(family, torch.float32)
    by_kernel, cache = logits_of(one, f"none:dtype={dtype}")
    in_torch, reference = logits_of(one, f"none:dtype={dtype}", "reference")
    assert cache.attended_by == "numba exact" and reference.attended_by == "torch exact"
    assert {tail.data.dtype for layer in cache.kv_layers for tail in (layer.tail_keys,)} == {getattr(torch, dtype)}
    assert worst(by_kernel, in_torch) < 1e-5


def test_one_layer_attends_to_what_it_holds() -> None:
    one = subject("llama", torch.float32)
    _, cache = logits_of(one, "none:dtype=float16", tokens=41)
    layer = cache.layers[0]
    query = torch.randn(2, one.geometry.layers[0].heads, 1, one.geometry.layers[0].head_dim)
    keys, values = layer.tail_keys.view.clone(), layer.tail_values.view.clone()
    layer.crop(-1)
    newest = keys[:, :, -1:].float(), values[:, :, -1:].float()
    output = layer.attend(AttentionCall(nn.Identity(), query, *newest, None, 0.2, None, None), None)
    assert worst(output, partial_attention(query.double(), keys.double(), values.double(), 0.2).output) < 1e-5


@families
@pytest.mark.usefixtures("fp64")
def test_the_prompt_attends_exactly_and_later_tokens_see_it_rounded(family: str) -> None:
    one, ids = subject(family), token_ids(2, 60)
    stock = one.model(ids).logits
    with attached(one, "none:dtype=float16") as compressed:
        cache = compressed.new_cache()
        assert worst(feed(one.model, cache, ids, [40]), stock[:, :40]) < EXACT
        later = worst(feed(one.model, cache, ids, [1] * 20, start=40), stock[:, 40:])
    assert 1e-7 < later < 2e-3


@families
@pytest.mark.usefixtures("fp64")
def test_blocks_single_tokens_and_a_loaded_prompt_see_the_same(family: str) -> None:
    one, ids = subject(family), token_ids(1, 60)
    with attached(one, "none:dtype=float16") as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40])
        expected = feed(one.model, cache, ids, [1] * 20, start=40)
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40])
        assert worst(feed(one.model, cache, ids, [7, 13], start=40), expected) < EXACT
    prompt = exact_prompt(one.model, one.geometry, ids[:, :40])
    with attached(one, "none:dtype=float16") as compressed:
        assert worst(feed(one.model, prompt.fill(compressed), ids, [1] * 20, start=40), expected) < EXACT


@families
def test_crop_copy_beams_and_batches(family: str) -> None:
    one, ids = subject(family, torch.float64), token_ids(2, 60)
    with attached(one, "none:dtype=float16") as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40])
        twin = deepcopy(cache)
        expected = feed(one.model, cache, ids, [1] * 5, start=40)
        for layer in twin.kv_layers:
            layer.activate_past_recording()
        feed(one.model, twin, ids, [1] * 3, start=40)
        twin.crop(-3)
        twin.reorder_cache(torch.tensor([1, 0]))
        assert worst(feed(one.model, twin, ids.flip(0), [1], start=40).flip(0), expected[:, :1]) < EXACT
        twin.batch_repeat_interleave(2)
        twin.batch_select_indices(torch.tensor([0, 2]))
        assert worst(feed(one.model, twin, ids.flip(0), [1] * 4, start=41).flip(0), expected[:, 1:]) < EXACT


def test_a_padded_batch() -> None:
    one, ids, mask = subject("llama", torch.float32), token_ids(2, 50), left_padding(2, 50, (6, 0))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask)).logits
    with attached(one, "none:dtype=float16") as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, [40, *[1] * 10], mask)
    assert worst(logits, stock, mask) < 2e-3


@dtypes
def test_the_divergence_is_rounding(dtype: str) -> None:
    one = subject("llama", torch.float32)
    none, narrow = (logits_of(one, spec)[0].log_softmax(-1) for spec in ("none", f"none:dtype={dtype}"))
    kld = divergence(none.flatten(0, 1), narrow.flatten(0, 1)).mean()
    assert 0 < kld < (1e-7 if dtype == "float16" else 1e-5)


@dtypes
def test_a_model_of_that_dtype_keeps_its_cache(dtype: str) -> None:
    one = subject("llama", getattr(torch, dtype))
    assert torch.equal(logits_of(one, "none")[0], logits_of(one, f"none:dtype={dtype}")[0])


@dtypes
def test_a_static_cache_does_the_same(dtype: str) -> None:
    one, ids = subject("llama", torch.float64), token_ids(2, 50)
    with attached(one, f"none:dtype={dtype}") as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [30])
        expected = feed(one.model, cache, ids, [1] * 20, start=30)
        decode = compiled_decode(compressed, ids[:, :30], 50, backend=None)
        logits = torch.stack([decode(ids[:, at : at + 1]) for at in range(30, 50)], 1)
        assert {layer.exact_keys.dtype for layer in decode.cache.layers} == {getattr(torch, dtype)}
        assert worst(logits, expected) < EXACT
        decode.cache.layers[0].exact_keys[0, 0, 0, 0] = torch.inf
        if dtype == "float16":
            with pytest.raises(KvbenchError, match="in bfloat16"):
                decode.cache.layers[0].settle(50)


def test_values_beyond_float16_are_refused_in_one_line() -> None:
    keys = torch.ones(1, 2, 5, 16)
    for exact, large in (("float16", True), ("bfloat16", False)):
        layer = ExactLayer(exact=exact)
        if large:
            with pytest.raises(KvbenchError, match="lie beyond 65504, where float16 ends; store them in bfloat16"):
                layer.load(1e5 * keys, keys, Observed(keys[:, :1], 1.0), None)
            layer.reset()
            layer.load(keys, keys, Observed(keys[:, :1], 1.0), None)
            with pytest.raises(KvbenchError, match="bfloat16"):
                layer.append(keys, 1e5 * keys)
            assert layer.seen == 5
        else:
            layer.load(1e5 * keys, keys, Observed(keys[:, :1], 1.0), None)


@pytest.mark.parametrize("spec", ["int:bits=4,recent=9", "pca:rank=0.5,recent=9", "snapkv:budget=0.5,recent=9"])
def test_exact_spans_of_compressors_are_read_as_they_lie(spec: str) -> None:
    """Before any body too: a window alone is read by the kernel in 16 bit."""
    one, ids = subject("llama", torch.float32), token_ids(2, 100)
    plan = parse(f"{spec},exact=float16,block=8").fit(one.geometry, lambda: calibrated(one))
    for prompt in (5, 60):
        logits = []
        for reading in ("auto", "reference"):
            with CompressedModel(one.model, plan, one.geometry, Reading.parse(reading)) as compressed:
                cache = compressed.new_cache()
                feed(one.model, cache, ids, [prompt])
                logits.append(feed(one.model, cache, ids, [1], start=prompt))
                if reading == "auto" and prompt == 5:
                    assert cache.attended_by == "numba exact"
        # Codes of the body are multiplied as integers, which rounds more than reading the spans does.
        assert worst(*logits) < (1e-5 if prompt == 5 or "int" not in spec else 1e-3)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_a_cast_body_is_read_as_it_lies(to: str) -> None:
    one, ids = subject("llama", torch.float32), token_ids(2, 130)
    logits = []
    for reading in ("auto", "reference"):
        plan = parse(f"cast:to={to},recent=9,block=8").fit(one.geometry)
        with CompressedModel(one.model, plan, one.geometry, Reading.parse(reading)) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [100])
            logits.append(feed(one.model, cache, ids, [1] * 30, start=100))
            assert cache.attended_by == ("numba exact" if reading == "auto" else cache.attended_by)
    assert worst(*logits) < 1e-5
