"""Identity codecs through the whole machinery equal the stock model, in fp64, for every family and frame of keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from driving import (
    ALL_FAMILIES,
    FRAMES,
    SMALL_SPANS,
    VARIANTS,
    Subject,
    as_decoded,
    feed,
    in_frame,
    left_padding,
    position_ids,
    subject,
    token_ids,
    worst,
)
from torch import Tensor

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import Frame
from kvbench.codecs.quantizers.base import Passthrough, Stored
from kvbench.errors import KvbenchError

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
TOKENS = 34
CHUNKS = (13, 11, *[1] * 10)
PADDING = (9, 2, 0)
families = pytest.mark.parametrize("family", ALL_FAMILIES)
variants = pytest.mark.parametrize("variant", VARIANTS)
frames = pytest.mark.parametrize("frame", FRAMES)


def bodies(cache) -> list[int]:
    return [layer.body.entries for layer in cache.layers if isinstance(layer, CompressedLayer)]


@frames
@families
def test_prefill_in_chunks_and_decode(family: str, frame: Frame) -> None:
    one, ids = subject(family), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach(one.identity(frame)) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, CHUNKS)
    assert worst(logits, stock) < EXACT
    assert all(entries >= 24 for entries in bodies(cache)), "most tokens must have gone through encode and decode"


@frames
@families
def test_left_padded_batch(family: str, frame: Frame) -> None:
    one, ids, mask = subject(family), token_ids(3, TOKENS), left_padding(3, TOKENS, PADDING)
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach(one.identity(frame)) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, CHUNKS, mask)
    assert worst(logits, stock, mask) < EXACT
    assert logits.isfinite().all(), "padding rows must stay finite"


@frames
@families
def test_blocks_as_decoded(family: str, frame: Frame) -> None:
    one, ids = subject(family), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    assert worst(as_decoded(one, frame, ids), stock) < EXACT


@frames
@variants
@pytest.mark.parametrize("removed", [1, 6, 7, 16, 28, 31, 32, 33, 34])
def test_crop_at_every_depth(removed: int, variant: str, frame: Frame) -> None:
    """34 tokens are 2 sinks, 24 in the body and 8 exact ones: the cuts fall in the tail, the body and the sinks."""
    one, ids = subject("llama"), token_ids(2, 2 * TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(one.lossless(frame, variant)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS])
        cache.crop(-removed)
        left = TOKENS - removed
        assert cache.get_seq_length() == left
        logits = feed(one.model, cache, ids, (9, 1, 1, TOKENS + removed - 11), start=left)
    assert worst(logits, stock[:, left:]) < EXACT


@frames
@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if not subject(name).has_window])
def test_crop_in_every_family(family: str, frame: Frame) -> None:
    one, ids = subject(family), token_ids(2, 2 * TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(one.identity(frame)) as compressed:
        for removed in (3, 17, 33):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [TOKENS])
            cache.crop(-removed)
            logits = feed(one.model, cache, ids, (9, 1, TOKENS + removed - 10), start=TOKENS - removed)
            assert worst(logits, stock[:, TOKENS - removed :]) < EXACT


@frames
@variants
@pytest.mark.parametrize("removed", [2, 14, 16, 20, 22, 23, 27, 31])
def test_crop_a_left_padded_batch(removed: int, variant: str, frame: Frame) -> None:
    """Rows start at different slots, so one row's sinks are another row's body."""
    one, tokens = subject("llama"), 2 * TOKENS
    ids, mask = token_ids(3, tokens), left_padding(3, tokens, PADDING)
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach_untested(one.lossless(frame, variant)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS], mask)
        cache.crop(-removed)
        left = TOKENS - removed
        logits = feed(one.model, cache, ids, (1, 8, 1, TOKENS + removed - 10), mask, start=left)
    assert worst(logits, stock[:, left:], mask[:, left:]) < EXACT


@variants
@pytest.mark.parametrize("removed", [1, 6, 15, 31, 33])
def test_crop_and_go_on_as_decoded(removed: int, variant: str) -> None:
    """After a crop into the body more is encoded than has left the window; no query may lose those tokens."""
    one, ids = subject("llama"), token_ids(2, 2 * TOKENS)
    stock = one.model(ids, use_cache=False).logits
    spans = Spans(sinks=2, recent=8, block=8)
    with one.attach_untested(one.lossless("before", variant, spans)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS])
        cache.crop(-removed)
        cache.as_decoded = True
        left = TOKENS - removed
        logits = feed(one.model, cache, ids, (3, 11, TOKENS + removed - 14), start=left)
    assert worst(logits, stock[:, left:]) < EXACT


@variants
@frames
def test_every_way_of_storing_a_padded_batch(variant: str, frame: Frame) -> None:
    one, ids, mask = subject("qwen3"), token_ids(3, TOKENS), left_padding(3, TOKENS, PADDING)
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach_untested(one.lossless(frame, variant)) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, CHUNKS, mask)
        cache = compressed.new_cache()
        start = feed(one.model, cache, ids, [15], mask)
        cache.as_decoded = True
        rest = feed(one.model, cache, ids, [9, 10], mask, start=15)
    assert worst(logits, stock, mask) < EXACT
    assert worst(torch.cat([start, rest], 1), stock, mask) < EXACT


@pytest.mark.parametrize("spans", [Spans(0, 0, 1), Spans(0, 4, 8), Spans(3, 0, 5), Spans(1, 7, 3)])
def test_spans_may_be_empty_or_odd(spans: Spans) -> None:
    one, ids = subject("qwen3"), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(one.identity("before", spans)) as compressed:
        assert worst(feed(one.model, compressed.new_cache(), ids, CHUNKS), stock) < EXACT


@pytest.mark.parametrize("heads, kv_heads", [(4, 1), (4, 2), (4, 4), (6, 3)], ids=["mqa", "gqa", "mha", "gqa of 2"])
@frames
def test_head_counts(heads: int, kv_heads: int, frame: Frame) -> None:
    one, ids = subject("llama", heads=heads, kv_heads=kv_heads, hidden=96, layers=2), token_ids(2, TOKENS)
    assert (one.geometry.layers[0].heads, one.geometry.layers[0].kv_heads) == (heads, kv_heads)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(one.identity(frame)) as compressed:
        assert worst(feed(one.model, compressed.new_cache(), ids, CHUNKS), stock) < EXACT


def test_padding_longer_than_the_first_chunk() -> None:
    """A row may start with chunks that are nothing but padding; its sinks are still its own first tokens."""
    one, ids, mask = subject("llama"), token_ids(2, TOKENS), left_padding(2, TOKENS, (0, 11))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, (5, 5, 8, *[1] * 16), mask)
        layer = cache.layers[0]
        assert layer.first.tolist() == [0, 11]
    assert worst(logits, stock, mask) < EXACT


def test_prefill_whose_first_chunk_would_settle_while_a_row_is_all_padding() -> None:
    one, ids, mask = subject("llama"), token_ids(2, TOKENS), left_padding(2, TOKENS, (0, 20))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach_untested(one.identity("before")) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, (16, 18), mask)
    assert worst(logits, stock, mask) < EXACT


@dataclass(frozen=True)
class _Perturbed(Passthrough):
    """Off by a thousandth: what the tests above must be able to see."""

    def decode(self, stored: Stored) -> Tensor:
        return stored["latent"] * 1.001


def perturbed_plan(one: Subject, frame: Frame, keys: bool) -> Plan:
    plans = {}
    for layer in one.geometry.compressible:
        quantizers = [_Perturbed(torch.float64), Passthrough(torch.float64)]
        key, value = quantizers if keys else reversed(quantizers)
        key_side = SideCodec(layer.kv_heads, layer.head_dim, None, key)
        value_side = SideCodec(layer.kv_heads, layer.value_dim, None, value)
        plans[layer.layer] = LayerPlan(Codec(key_side, value_side, *in_frame(layer, frame)))
    return Plan(plans, SMALL_SPANS)


@frames
@pytest.mark.parametrize("keys", [True, False], ids=["keys", "values"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gpt2", "qwen3_moe"])
def test_control_an_error_of_a_thousandth_is_seen(family: str, frame: Frame, keys: bool) -> None:
    one, ids = subject(family), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(perturbed_plan(one, frame, keys)) as compressed:
        error = worst(feed(one.model, compressed.new_cache(), ids, [TOKENS - 1, 1]), stock)
    assert 1e4 * EXACT < error < 0.1


@frames
@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox", "gemma3"])
def test_control_rotating_at_wrong_positions_is_seen(family: str, frame: Frame, monkeypatch) -> None:
    one, ids = subject(family), token_ids(2, TOKENS)
    stock = one.model(ids, use_cache=False).logits
    with one.attach_untested(one.identity(frame)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS - 1])
        if frame != "after":
            cache.positions.index += torch.arange(TOKENS - 1, dtype=torch.int32) % 2
        logits = feed(one.model, cache, ids, [1], start=TOKENS - 1)
    assert (worst(logits, stock[:, -1:]) > 1e4 * EXACT) == (frame != "after")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["k_proj", "v_proj"])
def test_keys_or_values_that_are_not_finite_are_refused_when_they_would_be_encoded(value: float, where: str) -> None:
    """In the exact window they do what they do in the stock model; a codebook would hide them."""
    one, ids = subject("llama", layers=1), token_ids(1, TOKENS)
    weight = getattr(one.model.model.layers[0].self_attn, where).weight
    before = weight[0, 0].item()
    with one.attach_untested(one.identity()) as compressed:
        weight[0, 0] = value
        try:
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [5])
            with pytest.raises(KvbenchError, match=r"hold NaN or infinite values in torch\.float64"):
                feed(one.model, cache, ids, [20], start=5)
        finally:
            weight[0, 0] = before
