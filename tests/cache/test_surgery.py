"""What transformers does to a cache between forward passes: rows picked and repeated, tokens taken back, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driving import FRAMES, VARIANTS, Subject, feed, left_padding, position_ids, subject, token_ids, worst
from torch import Tensor

from kvbench.cache.cache import CompressedCache
from kvbench.codecs.frame import Frame
from kvbench.errors import KvbenchError

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
TOKENS, MORE = 30, 14
ROWS: dict[str, tuple[Callable[[Any], None], Callable[[Tensor], Tensor]]] = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), lambda rows: rows[[2, 0, 0]]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), lambda rows: rows.repeat_interleave(2, 0)),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), lambda rows: rows[[1, 2]]),
    "select one": (lambda cache: cache.batch_select_indices(torch.tensor([1])), lambda rows: rows[[1]]),
    "deepcopy": (lambda cache: None, lambda rows: rows),
}
variants = pytest.mark.parametrize("variant", VARIANTS)
frames = pytest.mark.parametrize("frame", FRAMES)


@pytest.mark.parametrize("operation", ROWS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "opt", "phi"])
@frames
def test_rows(family: str, frame: Frame, operation: str) -> None:
    check_rows(subject(family), operation, "plain", frame, padding=(7, 0, 2))


@pytest.mark.parametrize("operation", ROWS)
@variants
@pytest.mark.parametrize("padding", [(0, 0, 0), (7, 0, 2)], ids=["unpadded", "padded"])
def test_rows_in_every_way_of_storing(variant: str, operation: str, padding: tuple[int, ...]) -> None:
    check_rows(subject("llama"), operation, variant, True, padding)


def check_rows(one: Subject, operation: str, variant: str, frame: Frame, padding: tuple[int, ...]) -> None:
    """Feed, operate, feed on: as if the rows had been arranged so from the start."""
    act, arrange = ROWS[operation]
    ids, mask = token_ids(3, TOKENS), left_padding(3, TOKENS + MORE, padding)
    rows, kept = arrange(ids), arrange(mask)
    rows = torch.cat([rows, token_ids(len(rows), MORE, seed=4)], 1)
    stock = one.model(rows, attention_mask=kept, position_ids=position_ids(kept), use_cache=False).logits
    with one.attach_untested(one.lossless(frame, variant)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS], mask[:, :TOKENS])
        if operation == "deepcopy":
            cache = copied_and_disturbed(one, cache, ids)
        act(cache)
        logits = feed(one.model, cache, rows, (1, 1, MORE - 2), kept, start=TOKENS)
    assert worst(logits, stock[:, TOKENS:]) < EXACT


def copied_and_disturbed(one: Subject, cache: CompressedCache, ids: Tensor) -> CompressedCache:
    """A copy of ``cache``; the original then goes on with other tokens."""
    twin = copy.deepcopy(cache)
    feed(one.model, cache, token_ids(len(ids), TOKENS + 9, seed=8), [9], start=TOKENS)
    return twin


def test_a_copy_shares_codecs_but_no_tokens() -> None:
    one = subject("llama")
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(2, TOKENS), [TOKENS])
        twin = copy.deepcopy(cache)
    assert twin.nbytes() == cache.nbytes()
    for ours, theirs in zip(cache.layers, twin.layers, strict=True):
        assert ours.codec is theirs.codec
        addresses = {tensor.data.data_ptr() for _, tensor in ours.tensors_by_kind()}
        assert addresses.isdisjoint(tensor.data.data_ptr() for _, tensor in theirs.tensors_by_kind())
    assert twin.owner is cache.owner


def test_selecting_fewer_rows_frees_the_others() -> None:
    one = subject("llama")
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(4, TOKENS), [TOKENS])
        four = cache.nbytes()
        cache.batch_select_indices(torch.tensor([3]))
        one_row = cache.nbytes()
    assert one_row.payload * 4 == four.payload
    assert one_row.exact * 4 == four.exact


@variants
def test_crop_frees_what_it_takes_back(variant: str) -> None:
    one = subject("llama")
    with one.attach_untested(one.lossless("after", variant)) as compressed:
        cache, short = compressed.new_cache(), compressed.new_cache()
        feed(one.model, cache, token_ids(1, 400), [400])
        feed(one.model, short, token_ids(1, 48), [48])
        cache.crop(-360)
    assert cache.nbytes().total <= short.nbytes().total


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_crop_everything_is_a_reset(family: str) -> None:
    one, ids = subject(family), token_ids(2, 6)
    stock = one.model(ids).logits
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [5])
        cache.crop(-5)
        assert cache.get_seq_length() == 0 and cache.nbytes().total == 0
        assert worst(feed(one.model, cache, ids, [6]), stock) < EXACT


def test_crop_by_nothing_and_by_too_much() -> None:
    one = subject("llama")
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, 20), [20])
        cache.crop(0)
        assert cache.get_seq_length() == 20
        with pytest.raises(KvbenchError, match="cannot crop 21 tokens from a cache of 20"):
            cache.crop(-21)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "qwen2_swa"])
@pytest.mark.parametrize("drafted", [1, 5, 12])
def test_drafts_taken_back_from_a_sliding_window(family: str, drafted: int) -> None:
    one, ids = subject(family), token_ids(2, TOKENS + MORE)
    wrong = torch.cat([ids[:, :TOKENS], token_ids(2, drafted, seed=6)], 1)
    stock = one.model(ids).logits
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS])
        cache.activate_past_recording()
        feed(one.model, cache, wrong, [drafted], start=TOKENS)
        cache.crop(-drafted)
        logits = feed(one.model, cache, ids, (1, 3, MORE - 4), start=TOKENS)
    assert worst(logits, stock[:, TOKENS:]) < EXACT


@pytest.mark.parametrize("recording", [False, True], ids=["never", "too late"])
def test_a_sliding_window_that_lost_its_tokens_cannot_be_cropped(recording: bool) -> None:
    one, ids = subject("mistral"), token_ids(1, TOKENS)
    with one.attach_untested(one.identity()) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS])
        if recording:
            cache.activate_past_recording()
        with pytest.raises(KvbenchError, match="sliding-window layer has already dropped"):
            cache.crop(-3)


def test_a_window_that_is_not_full_yet_can_be_cropped() -> None:
    one, ids = subject("mistral"), token_ids(2, TOKENS)
    stock = one.model(ids).logits
    with one.attach_untested(one.identity()) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [7])
        cache.crop(-3)
        assert worst(feed(one.model, cache, ids, [20, 6], start=4), stock[:, 4:]) < EXACT


def test_a_sliding_layer_holds_its_window_and_no_more() -> None:
    one, ids = subject("mistral"), token_ids(1, 60)
    with one.attach_untested(one.identity()) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [20, 20, *[1] * 20])
        layer = cache.layers[0]
        assert layer.tail_keys.length == 7
        assert layer.tail_keys.data.untyped_storage().nbytes() == 8 * 2 * 16 * 8
    assert layer.get_mask_sizes(3) == (10, 53)
    assert layer.get_max_length() == 8 and layer.is_sliding
