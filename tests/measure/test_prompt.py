"""A prompt computed once: a cache filled from it is the cache that sat in the model during the prefill."""

from collections.abc import Iterator

import pytest
import torch
from default_specs import ALL_SPECS
from driving import SMALL_SPANS, Subject, calibrated, feed, subject, token_ids, worst
from fp64 import fp64, one_thread
from torch import Tensor
from transformers import Cache

from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.cache import CompressedCache
from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import parse
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import exact_prompt
from kvbench.selectors.base import OBSERVED

__all__ = ["fp64", "one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS, NEW = 110, 6
EXACT = 1e-10
NEXT = token_ids(1, 3, seed=1)
SPANS = f"sinks={SMALL_SPANS.sinks},recent={SMALL_SPANS.recent},block={SMALL_SPANS.block}"
SPECS = (
    "none",
    f"kivi:bits=2,{SPANS}",
    f"kvtc:bits=3,{SPANS}",
    f"pca:rank=0.5,frame=before,{SPANS}",
    f"snapkv:budget=0.5,{SPANS}",
    f"snapkv:budget=0.5,{SPANS}+int:bits=4",
)
ATTACHED_SPECS = [spec for spec in ALL_SPECS if parse(spec).baseline in (None, "none")]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def arm_of(one: Subject, spec: str) -> Arm:
    """An arm of ``spec`` fitted to a shared random model."""
    parsed = parse(spec)
    if parsed.baseline == "hf":
        return Arm.of("hf", one.model, one.geometry, None)
    statistics = calibrated(one) if parsed.needs_calibration else None
    return Arm.of(spec, one.model, one.geometry, parsed.fit(one.geometry, statistics))


def stored(cache: CompressedCache) -> list[tuple[str, Tensor]]:
    """What every layer holds, without the memory kept for growth."""
    return [
        (name, buffer.view if isinstance(buffer, GrowingTensor) else buffer)
        for layer in cache.kv_layers
        for name, buffer in layer.tensors_by_kind()
    ]


def prefilled(arm: Arm, ids: Tensor) -> Cache:
    """The slow way: the prompt goes through the model with the cache in it."""
    with arm.entered():
        cache = arm.new_cache()
        arm.forward(ids, cache, attention_mask=torch.ones_like(ids))
    return cache


# ---- against a prefill through the attached model ------------------------------------------------------------------


def both_ways(family: str, spec: str, rows: int) -> tuple[float, object, object, int]:
    """Largest difference of the next logits, bytes of both caches, and the predicted bytes."""
    one, compressor = subject(family), parse(spec)
    ids = token_ids(1, TOKENS + NEW)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :TOKENS]).repeat(rows)
    plan = compressor.fit(one.geometry, lambda: calibrated(one))
    many = ids.expand(rows, -1)
    with one.attach_untested(plan) as compressed:
        attended, filled = compressed.new_cache(), prompt.fill(compressed)
        feed(one.model, attended, many, [TOKENS])
        sizes = filled.nbytes(), attended.nbytes()
        logits = [feed(one.model, cache, many, [2, *[1] * (NEW - 2)], start=TOKENS) for cache in (filled, attended)]
    return worst(*logits), *sizes, predict_bytes(plan, one.geometry, TOKENS, rows)


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spec", ATTACHED_SPECS)
def test_filled_equals_attended(spec: str) -> None:
    difference, filled, attended, _ = both_ways("llama", spec, rows=2)
    assert difference < EXACT
    assert filled == attended


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("family", ["gemma3", "qwen2_swa", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("spec", ["none", "kivi:bits=2", "pca:rank=0.5"])
def test_filled_equals_attended_in_other_families(family: str, spec: str) -> None:
    """Sliding windows are trimmed when they are filled, too."""
    difference, filled, attended, predicted = both_ways(family, spec, rows=1)
    assert difference < EXACT
    assert filled == attended
    assert filled.total == pytest.approx(predicted, rel=0.01)


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spec", ["none", "kivi:bits=2,recent=200", "int:bits=4"])
def test_caches_filled_from_one_prompt_leave_it_and_each_other_alone(spec: str) -> None:
    one, ids = subject("llama"), token_ids(1, TOKENS + NEW)
    prompt = exact_prompt(one.model, one.geometry, ids[:, :TOKENS])
    before = {index: (layer.keys.clone(), layer.values.clone()) for index, layer in prompt.layers.items()}
    with one.attach_untested(parse(spec).fit(one.geometry)) as compressed:
        first, second = prompt.fill(compressed), prompt.fill(compressed)
        untouched = feed(one.model, prompt.fill(compressed), ids, [NEW], start=TOKENS)
        first.crop(-3)
        feed(one.model, first, token_ids(1, TOKENS + NEW, seed=5), [3, 1, 1], start=TOKENS - 3)
        assert worst(feed(one.model, second, ids, [NEW], start=TOKENS), untouched) < EXACT
    for index, layer in prompt.layers.items():
        assert torch.equal(layer.keys, before[index][0]) and torch.equal(layer.values, before[index][1])


@pytest.mark.parametrize("spec", SPECS)
def test_every_tensor_is_the_one_of_a_prefill(spec: str):
    one = subject("llama", torch.float32)
    ids, arm = token_ids(1, TOKENS), arm_of(one, spec)
    slow = prefilled(arm, ids)
    fast = arm.fill(exact_prompt(one.model, one.geometry, ids))
    assert isinstance(slow, CompressedCache) and isinstance(fast, CompressedCache)
    assert fast.nbytes() == slow.nbytes() and fast.get_seq_length() == slow.get_seq_length() == TOKENS
    for (name, tensor), (expected_name, expected) in zip(stored(fast), stored(slow), strict=True):
        assert name == expected_name and torch.equal(tensor, expected), name
    with arm.entered():
        assert torch.equal(feed(one.model, fast, NEXT, [1, 1, 1]), feed(one.model, slow, NEXT, [1, 1, 1]))


# ---- against the stock model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi3"])
def test_filling_a_stock_cache_equals_a_stock_prefill(family: str):
    one = subject(family)
    ids, arm = token_ids(1, TOKENS), arm_of(one, "hf")
    slow, fast = prefilled(arm, ids), arm.fill(exact_prompt(one.model, one.geometry, ids))
    assert fast.get_seq_length() == TOKENS
    for layer, expected in zip(fast.layers, slow.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.values, expected.values, atol=1e-5, rtol=1e-5)
    logits, expected = (feed(one.model, cache, NEXT, [1, 2]) for cache in (fast, slow))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_logits_are_those_after_the_last_token():
    one, ids = subject("llama"), token_ids(1, TOKENS)
    stock = one.model(ids).logits[:, -1]
    torch.testing.assert_close(exact_prompt(one.model, one.geometry, ids).logits, stock, atol=1e-6, rtol=1e-6)


def test_one_prompt_serves_many_caches_and_none_of_them_changes_it():
    one = subject("llama", torch.float32)
    prompt = exact_prompt(one.model, one.geometry, token_ids(1, TOKENS))
    before = {index: (layer.keys.clone(), layer.values.clone()) for index, layer in prompt.layers.items()}
    for spec in ("hf", *SPECS):
        arm = arm_of(one, spec)
        with arm.entered():
            feed(one.model, arm.fill(prompt), token_ids(1, 12, seed=2), [1] * 12)
    for index, (keys, values) in before.items():
        assert torch.equal(prompt.layers[index].keys, keys) and torch.equal(prompt.layers[index].values, values)


def test_a_repeated_prompt_has_equal_rows_of_its_own():
    one = subject("llama", torch.float32)
    single = exact_prompt(one.model, one.geometry, token_ids(1, TOKENS))
    assert single.repeat(1) is single
    triple = single.repeat(3)
    for spec in SPECS:
        arm = arm_of(one, spec)
        with arm.entered():
            alone = feed(one.model, arm.fill(single), NEXT, [1] * 3)
            together = feed(one.model, arm.fill(triple), NEXT.expand(3, -1), [1] * 3)
        torch.testing.assert_close(together, alone.expand(3, -1, -1), atol=1e-4, rtol=1e-4)
    keys = triple.layers[0].keys
    assert keys.shape[0] == 3 and keys.stride(0) > 0, "an expanded row would be read from cache memory three times"


def test_only_the_last_queries_are_kept():
    one = subject("llama")
    for tokens in (8, TOKENS):
        prompt = exact_prompt(one.model, one.geometry, token_ids(1, tokens))
        assert prompt.length == tokens and prompt.layers[0].query.shape[2] == min(OBSERVED, tokens)


def test_the_model_is_stock_again_afterwards():
    one, ids = subject("gemma3"), token_ids(1, 20)
    before = one.model(ids).logits
    exact_prompt(one.model, one.geometry, ids)
    assert torch.equal(one.model(ids).logits, before)
