"""``model.generate`` with an identity cache gives the stock model's tokens and scores, in every mode it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driving import ALL_FAMILIES, FRAMES, Subject, feed, left_padding, subject, token_ids
from torch import Tensor

from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.codecs.frame import Frame

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
NEW = 12
SCORES = {"return_dict_in_generate": True, "output_scores": True}
families = pytest.mark.parametrize("family", ALL_FAMILIES)
frames = pytest.mark.parametrize("frame", FRAMES)
few = pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "qwen2_swa"])


def generate(one: Subject, ids: Tensor, cache: CompressedCache | None = None, **options: Any):
    mask = options.pop("attention_mask", torch.ones_like(ids))
    options = {"do_sample": False, "max_new_tokens": NEW} | SCORES | options
    return one.model.generate(ids, attention_mask=mask, past_key_values=cache, **options)


def assert_same(output: Any, stock: Any) -> None:
    assert torch.equal(output.sequences, stock.sequences)
    for ours, theirs in zip(output.scores, stock.scores, strict=True):
        finite = theirs.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        assert (ours - theirs)[finite].abs().max() < EXACT


@frames
@families
def test_greedy_with_left_padding(family: str, frame: Frame) -> None:
    one, ids, mask = subject(family), token_ids(3, 15), left_padding(3, 15, (6, 0, 1))
    stock = generate(one, ids, attention_mask=mask)
    with one.attach_untested(one.identity(frame)) as compressed:
        output = generate(one, ids, compressed.new_cache(), attention_mask=mask)
    assert_same(output, stock)


@frames
@families
def test_beams(family: str, frame: Frame) -> None:
    one, ids = subject(family), token_ids(2, 11)
    stock = generate(one, ids, num_beams=3)
    with one.attach_untested(one.identity(frame)) as compressed:
        output = generate(one, ids, compressed.new_cache(), num_beams=3)
    assert_same(output, stock)
    assert (output.sequences_scores - stock.sequences_scores).abs().max() < EXACT


@few
def test_beams_with_left_padding_and_several_returned(family: str) -> None:
    one, ids, mask = subject(family), token_ids(2, 11), left_padding(2, 11, (4, 0))
    options = {"num_beams": 4, "num_return_sequences": 2, "attention_mask": mask}
    stock = generate(one, ids, **options)
    with one.attach_untested(one.lossless("before", "blocks")) as compressed:
        assert_same(generate(one, ids, compressed.new_cache(), **options), stock)


@few
def test_sampling_with_a_seed(family: str) -> None:
    one, ids, options = subject(family), token_ids(2, 9), {"do_sample": True, "num_return_sequences": 2, "top_k": 20}
    with torch.random.fork_rng(devices=[]), one.attach_untested(one.identity("before")) as compressed:
        torch.manual_seed(3)
        output = generate(one, ids, compressed.new_cache(), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert_same(output, generate(one, ids, **options))


@few
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_prefill_in_chunks(family: str, chunk: int) -> None:
    one, ids, mask = subject(family), token_ids(2, 21), left_padding(2, 21, (5, 0))
    options = {"attention_mask": mask, "max_new_tokens": 6}
    stock = generate(one, ids, **options)
    with one.attach_untested(one.identity("before")) as compressed:
        assert_same(generate(one, ids, compressed.new_cache(), prefill_chunk_size=chunk, **options), stock)


@few
def test_prompt_lookup(family: str) -> None:
    """Drafts are taken from the prompt and cropped away again when they are wrong."""
    one, ids = subject(family), token_ids(1, 9).repeat(1, 3)
    options = {"prompt_lookup_num_tokens": 4, "max_new_tokens": 24, "return_dict_in_generate": False}
    stock = generate(one, ids, **options | {"output_scores": False})
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        assert torch.equal(generate(one, ids, cache, **options | {"output_scores": False}), stock)


@few
def test_assisted_generation(family: str) -> None:
    one, ids = subject(family), token_ids(1, 13)
    assistant = subject(family, layers=1 if family in ("llama", "gpt_neox") else 2).model
    options = {"assistant_model": assistant, "max_new_tokens": 24}
    stock = generate(one, ids, **options)
    with one.attach_untested(one.identity("before")) as compressed:
        assert_same(generate(one, ids, compressed.new_cache(), **options), stock)


@few
def test_going_on_from_a_prefix(family: str) -> None:
    one, ids = subject(family), token_ids(1, 33)
    stock = generate(one, ids)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [20])
        assert_same(generate(one, ids, cache), stock)


def test_one_prefix_for_many_rows() -> None:
    one, ids = subject("llama"), token_ids(1, 33)
    many = torch.cat([ids[:, :20].expand(3, -1), token_ids(3, 5, seed=9)], 1)
    stock = generate(one, many)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [20])
        cache.batch_repeat_interleave(3)
        assert_same(generate(one, many, cache), stock)


def test_the_cache_is_full_afterwards_and_can_be_reset() -> None:
    one, ids = subject("llama"), token_ids(2, 15)
    stock = generate(one, ids)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        for _ in range(2):
            assert_same(generate(one, ids, cache), stock)
            assert cache.get_seq_length() == 15 + NEW - 1  # the last token was never fed
            assert all(layer.body.entries == 20 for layer in cache.layers if isinstance(layer, CompressedLayer))
            cache.reset()
            assert cache.get_seq_length() == 0
            assert cache.nbytes().total == 0


def test_without_a_cache_generate_makes_a_stock_one() -> None:
    one, ids = subject("llama"), token_ids(2, 15)
    stock = generate(one, ids)
    with one.attach_untested(one.identity("before")):
        assert_same(generate(one, ids), stock)
        assert_same(generate(one, ids, use_cache=False), stock)
