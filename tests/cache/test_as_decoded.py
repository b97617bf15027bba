"""Teacher forcing in blocks equals decoding token by token, also where codecs lose and selectors drop."""

from __future__ import annotations

import pytest
from default_specs import LOSSY_SPECS
from driving import Subject, calibrated, feed, left_padding, subject, token_ids, worst

from kvbench.cache.attach import Plan
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
SPANS = Spans(sinks=2, recent=9, block=8)
PREFIX, TOKENS = 50, 130
BLOCKS = (1, 7, 40, 32)


def small(family: str) -> Subject:
    """As few layers as have a compressed one."""
    return subject(family, layers=2 if family == "gemma3" else 1)


def fitted(one: Subject, spec: str) -> Plan:
    compressor = parse(spec)
    plan = compressor.fit(one.geometry, lambda: calibrated(one))
    return Plan(plan.layers, SPANS)


def both_ways(family: str, spec: str, padding: tuple[int, ...], prefix: int = PREFIX) -> tuple[float, float]:
    """Largest difference between blocks and single tokens, and between single tokens and the stock model."""
    one, ids = small(family), token_ids(len(padding), TOKENS)
    mask = left_padding(len(padding), TOKENS, padding) if any(padding) else None
    rest, logits = TOKENS - prefix, []
    with one.attach_untested(fitted(one, spec)) as compressed:
        for as_decoded, blocks in ((True, BLOCKS), (False, [1] * rest)):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [prefix], mask)
            cache.as_decoded = as_decoded
            assert cache.as_decoded == as_decoded
            logits.append(feed(one.model, cache, ids, blocks, mask, start=prefix))
    stock = feed(one.model, one.stock_cache(), ids, [prefix, rest], mask)[:, prefix:]
    return worst(logits[0], logits[1]), worst(logits[1], stock)


@pytest.mark.parametrize("spec", LOSSY_SPECS)
def test_blocks_equal_single_tokens(spec: str) -> None:
    difference, loss = both_ways("llama", spec, (0, 0))
    assert difference < EXACT
    assert loss > 1e-6, "a lossy compressor must be seen to lose"


@pytest.mark.parametrize(
    "spec",
    [
        "kivi:bits=2",
        "kvtc:bits=2",
        "int:bits=3",
        "pca:rank=0.5",
        "snapkv:budget=0.5",
        "knorm:budget=0.3,keep_decoded=true",
    ],
)
def test_blocks_equal_single_tokens_with_left_padding(spec: str) -> None:
    difference, loss = both_ways("llama", spec, (21, 0, 3))
    assert difference < EXACT
    assert loss > 1e-6


@pytest.mark.parametrize("spec", ["kivi:bits=2", "kvtc:bits=2"])
@pytest.mark.parametrize("family", ["gemma3", "gpt_neox", "gpt2"])
def test_blocks_equal_single_tokens_in_other_families(family: str, spec: str) -> None:
    assert both_ways(family, spec, (0, 5))[0] < EXACT


@pytest.mark.parametrize("spec", ["knorm:budget=0.25", "snapkv:budget=0.25,query_aware=true"])
def test_what_comes_after_the_prompt_is_evicted_unless_it_is_to_stay(spec: str) -> None:
    one, ids, entries = small("llama"), token_ids(2, TOKENS), {}
    for more in ("", ",keep_decoded=true"):
        with one.attach_untested(fitted(one, f"{spec}{more}")) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [76])
            after_prompt = cache.kv_layers[0].body.entries
            assert after_prompt == 16, "a quarter of the 64 tokens that left the window"
            feed(one.model, cache, ids, [1] * 32, start=76)
            entries[more] = cache.kv_layers[0].body.entries - after_prompt
    assert entries == {"": 8, ",keep_decoded=true": 32}


def test_blocks_that_begin_before_anything_has_left_the_window() -> None:
    one, ids, logits = small("llama"), token_ids(2, TOKENS), []
    with one.attach_untested(fitted(one, "kivi:bits=2")) as compressed:
        for as_decoded, blocks in ((True, (60, 65)), (False, [1] * 125)):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [5])
            cache.as_decoded = as_decoded
            logits.append(feed(one.model, cache, ids, blocks, start=5))
    assert worst(*logits) < EXACT


def test_control_blocks_that_do_not_attend_as_decoded_differ() -> None:
    """Otherwise the block size would be a hidden knob of every quality number."""
    one, ids = small("llama"), token_ids(2, TOKENS)
    with one.attach_untested(fitted(one, "kivi:bits=2")) as compressed:
        logits = []
        for blocks in ((80,), [1] * 80):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [PREFIX])
            logits.append(feed(one.model, cache, ids, blocks, start=PREFIX))
    assert worst(*logits) > 1e-6


def test_the_prompt_is_attended_exactly_whatever_the_codec() -> None:
    one, ids = small("llama"), token_ids(2, PREFIX)
    with one.attach_untested(fitted(one, "kivi:bits=2")) as compressed:
        for as_decoded in (False, True):
            cache = compressed.new_cache()
            cache.as_decoded = as_decoded
            assert worst(feed(one.model, cache, ids, [PREFIX]), one.model(ids).logits) < EXACT


def test_switching_a_copy_leaves_the_original() -> None:
    one = small("llama")
    with one.attach_untested(one.identity()) as compressed:
        cache, other = compressed.new_cache(), compressed.new_cache()
        cache.as_decoded = True
        assert not other.as_decoded
        assert all(layer.as_decoded for layer in cache.layers)
        cache.reset()
        assert cache.as_decoded, "a reset forgets tokens, not the mode"
