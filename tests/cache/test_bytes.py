"""Bytes are walked from storages, equal hand arithmetic, and equal what was predicted before anything was allocated."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from dataclasses import dataclass

import pytest
import torch
from default_specs import ALL_SPECS
from driving import calibrated, feed, left_padding, subject, token_ids
from torch import Tensor

from kvbench.cache.attach import _LayerContext
from kvbench.cache.cache import CacheBytes, reachable_tensors
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse

pytestmark = pytest.mark.usefixtures("no_grad")
TOKENS = 1024
WIDE = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 3, "head_dim": 32}
SPANS = Spans(sinks=4, recent=64, block=32)


def prefilled(
    spec: str, tokens: int, rows: int = 1, dtype: torch.dtype = torch.float32, family: str = "llama", **geometry: int
):
    """The cache after a prefill, its bytes, and the plan."""
    one, compressor = subject(family, dtype, **(geometry or WIDE)), parse(spec)
    plan = compressor.fit(one.geometry, lambda: calibrated(one))
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(rows, tokens), [tokens])
    return cache, cache.nbytes(), plan


def test_identity_by_hand() -> None:
    """1,024 tokens: 4 sinks, 928 in the body (29 blocks of 32), a buffer of 64 + 32 for the rest; 2 · 3 · 32 values."""
    per_token = 2 * 3 * 32 * 4
    for rows in (1, 3):
        _, size, _ = prefilled("identity:frame=before", TOKENS, rows)
        body = (TOKENS - 4 - 64) // 32 * 32
        assert body == 928
        assert size == CacheBytes(
            payload=2 * rows * body * per_token, exact=2 * rows * (4 + 96) * per_token, positions=4 * TOKENS
        )


def test_integers_by_hand() -> None:
    """4 bits a value; groups of 32 channels with an fp16 scale and zero each: 5 bits."""
    _, size, plan = prefilled("int:bits=4,group=32", TOKENS, rows=2)
    values = 2 * 2 * 928 * 2 * 3 * 32
    assert size.payload == values / 2
    assert size.scales == values / 32 * 4
    assert body_bits_per_element(plan, subject("llama", torch.float32, **WIDE).geometry) == 5


def test_per_channel_keys_by_hand() -> None:
    """kivi at group 32 stores a scale and zero per 32 tokens and channel for keys, per token for values."""
    _, size, _ = prefilled("kivi:bits=2", TOKENS)
    side = 2 * 928 * 3 * 32
    assert size.payload == 2 * side * 2 / 8
    assert size.scales == side / 32 * 4 + side / 32 * 4


def test_latents_by_hand() -> None:
    _, size, _ = prefilled("pca:rank=0.25", TOKENS, dtype=torch.bfloat16)
    assert size.payload == 2 * 928 * 2 * (3 * 32 // 4) * 2
    assert size.exact == 2 * 100 * 2 * 3 * 32 * 2


def test_mixed_widths_by_hand() -> None:
    """kvtc at 4 bits: Σ widths of keys and values is 4 bits a value."""
    _, size, plan = prefilled("kvtc:bits=4", TOKENS)
    assert size.payload == 2 * 928 * 2 * 3 * 32 * 4 / 8
    assert size.scales == 0
    assert body_bits_per_element(plan, subject("llama", torch.float32, **WIDE).geometry) == 4


def test_uncompressed_by_hand() -> None:
    cache, size, plan = prefilled("none", 100, rows=2)
    assert size == CacheBytes(exact=2 * 2 * 100 * 2 * 3 * 32 * 4)
    assert plan.model_level_bytes() == 0
    assert body_bits_per_element(plan, subject("llama", torch.float32, **WIDE).geometry) is None
    assert cache.get_seq_length() == 100


def test_left_padding_adds_positions_per_row() -> None:
    one = subject("llama", torch.float32, **WIDE)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(2, 40), [40], left_padding(2, 40, (5, 0)))
    first_slots = 2 * 2 * 8
    assert cache.nbytes().positions == 2 * 40 * 4 + first_slots


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_predicted_equals_allocated(spec: str) -> None:
    one = subject("llama", torch.float32, **WIDE)
    _, size, plan = prefilled(spec, TOKENS, rows=2)
    assert size.workspace == 0
    assert predict_bytes(plan, one.geometry, TOKENS, batch=2) == pytest.approx(size.total, rel=0.01)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "gpt2", "gemma3", "qwen2_swa", "opt"])
@pytest.mark.parametrize("spec", ["none", "identity:frame=before", "kivi:bits=2", "kvtc:bits=3"])
def test_predicted_equals_allocated_in_other_families(family: str, spec: str) -> None:
    """Fused projections (gpt_neox, phi3, gpt2) hand over views; a view must not keep the whole of it alive."""
    one = subject(family, torch.float32, layers=2)
    _, size, plan = prefilled(spec, TOKENS, family=family, layers=2)
    assert predict_bytes(plan, one.geometry, TOKENS) == pytest.approx(size.total, rel=0.01)


@pytest.mark.parametrize("tokens", [1, 5, 67, 68, 69, 99, 100, 101, 163, 164, 200])
@pytest.mark.parametrize(
    "spec", ["identity:frame=before", "kivi:bits=2", "knorm:budget=0.3+int:bits=4", "pca:rank=0.3"]
)
def test_prediction_is_exact_at_every_boundary(spec: str, tokens: int) -> None:
    one = subject("llama", torch.float32, **WIDE)
    _, size, plan = prefilled(spec, tokens)
    assert predict_bytes(plan, one.geometry, tokens) == size.total


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "gpt2"])
@pytest.mark.parametrize("tokens", [12, 300])
def test_no_view_keeps_a_larger_storage_alive(family: str, tokens: int) -> None:
    one = subject(family, torch.float32, layers=2)
    with one.attach_untested(one.identity("before", Spans(2, 16, 8))) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(2, tokens + 3), [tokens, 1, 1, 1])
    for layer in cache.kv_layers:
        for kind, stored in layer.tensors_by_kind():
            tensor = stored if isinstance(stored, Tensor) else stored.data
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize, kind


def test_slack_is_counted_and_bounded() -> None:
    one = subject("llama", torch.float32, **WIDE)
    with one.attach_untested(one.identity("before", Spans(2, 4, 4))) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, 400), [300, *[1] * 100])
    size = cache.nbytes()
    walked = sum(tensor.untyped_storage().nbytes() for tensor in set_of_storages(cache))
    assert size.total == walked
    assert 0 < size.slack <= 0.07 * size.payload


def set_of_storages(cache: object) -> list[Tensor]:
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in reachable_tensors(cache)}.values())


@dataclass(slots=True)
class _Slotted:
    tensor: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensor: tensor,
        lambda tensor: {"a": [(tensor,)]},
        lambda tensor: {tensor},
        lambda tensor: deque([tensor]),
        lambda tensor: _Slotted(tensor),
        lambda tensor: lambda: tensor,
    ],
    ids=["attribute", "containers", "set", "deque", "slots", "closure"],
)
def test_a_tensor_hidden_on_a_layer_is_found(wrap) -> None:
    cache, before, _ = prefilled("int:bits=4", 200)
    assert before.workspace == 0
    cache.layers[1].forgotten = wrap(torch.zeros(1000))
    assert cache.nbytes() == CacheBytes(**vars(before) | {"workspace": 4000})


def test_a_storage_shared_by_two_tensors_counts_once() -> None:
    cache, before, _ = prefilled("int:bits=4", 200)
    hidden = torch.zeros(1000)
    cache.layers[0].twice = [hidden, hidden[10:20], hidden.view(10, 100)]
    cache.layers[1].again = cache.layers[0].tail_keys.data[..., :1]
    assert cache.nbytes().workspace == 4000
    assert cache.nbytes().total == before.total + 4000


def test_model_level_tensors_are_not_the_caches() -> None:
    """Bases and codebooks are shared by all caches and have a column of their own."""
    cache, size, plan = prefilled("kvtc:bits=4", 200)
    assert size.workspace == 0
    wanted = {tensor.untyped_storage().data_ptr() for layer in plan.layers.values() for tensor in layer.codec.tensors()}
    assert wanted.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in reachable_tensors(cache))
    layers, sides, channels, itemsize = 2, 2, 96, 2  # one matrix serves both ways
    assert plan.model_level_bytes() >= layers * sides * channels * channels * itemsize * 0.5


def test_one_layers_exact_prompt_is_alive_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefilling never holds more than one layer's exact keys and values beside what is compressed."""
    one, tokens = subject("llama", torch.float32, layers=6), 512
    alive: list[tuple[int, weakref.ref[Tensor]]] = []
    most = 0
    attend = _LayerContext.attend

    def watch(context, call):
        nonlocal most
        alive.extend((layer_of(call), weakref.ref(tensor)) for tensor in (call.keys, call.values))
        gc.collect()
        most = max(most, len({layer for layer, tensor in alive if tensor() is not None}))
        return attend(context, call)

    def layer_of(call) -> int:
        return call.module.layer_idx

    monkeypatch.setattr(_LayerContext, "attend", watch)
    with one.attach_untested(parse("int:bits=2").fit(one.geometry)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, tokens), [tokens])
    assert len(alive) == 12
    assert most == 1
    assert [tensor() for _, tensor in alive] == [None] * 12
    exact = 2 * 2 * 16 * 4 * (4 + 96)
    assert cache.nbytes().exact == 6 * exact
