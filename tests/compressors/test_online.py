"""Methods fitted on the prompt: exact at full rank, optimal on their prompt, and every row with a basis of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from default_specs import DEFAULT_SPECS
from driving import Subject, calibrated, feed, left_padding, position_ids, subject, token_ids, worst
from torch import Tensor

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.cache import CompressedCache
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.compressors.equal_bytes import Solver
from kvbench.compressors.methods.svdq import directions
from kvbench.errors import KvbenchError
from kvbench.measure.prompt import exact_prompt

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
SPANS = Spans(sinks=2, recent=9, block=8)
PROMPT, NEW = 91, 40
"""After the prompt 7 more tokens fit before the next block leaves."""
RANKED = ("shadowkv:rank={}", "xkv:rank={},layers=2", "xkv:rank={},layers=3", "xkv:rank={},layers=2+hadamard")
LOSSY = ("shadowkv:rank=0.25", "svdq:bits=3,group=8", "xkv:rank=0.25,layers=2", "xkv:rank=0.3,layers=2+int:bits=8")
lossy = pytest.mark.parametrize("spec", LOSSY)


def model() -> Subject:
    """Three layers: groups of two leave one over."""
    return subject("llama", layers=3)


def attached(spec: str, spans: Spans = SPANS) -> CompressedModel:
    plan = parse(spec).fit(model().geometry)
    return model().attach_untested(Plan(plan.layers, spans))


def loss(spec: str) -> float:
    """Mean squared error of the logits after a compressed prompt, token by token, against the stock model."""
    one, ids = model(), token_ids(3, PROMPT + NEW)
    stock = one.model(ids, use_cache=False).logits
    with attached(spec) as compressed:
        return float((feed(one.model, compressed.new_cache(), ids, [PROMPT, *[1] * NEW]) - stock).square().mean())


@pytest.mark.parametrize("spec", RANKED)
def test_full_rank_is_the_stock_model(spec: str) -> None:
    """Also for tokens that leave the window long after the basis was fitted."""
    assert loss(spec.format(1)) < EXACT**2


@pytest.mark.parametrize(
    "specs",
    [tuple(spec.format(rank) for rank in (0.1, 0.4, 0.8)) for spec in RANKED]
    + [tuple(f"svdq:bits={bits},group=8" for bits in (1, 2, 4, 8))],
    ids=lambda specs: specs[0],
)
def test_error_falls_with_what_is_kept(specs: tuple[str, ...]) -> None:
    errors = [loss(spec) for spec in specs]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1] > 0


def test_a_rank_above_one_is_a_count() -> None:
    width = 2 * 16
    share, count = (parse(f"shadowkv:rank={rank}").fit(model().geometry).layers[0].codec for rank in (0.25, width // 4))
    assert share is not None and count is not None
    assert share.keys.rank == count.keys.rank == 8
    assert str(parse("xkv:rank=160")) == "xkv:rank=160"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shadowkv:rank=0", "rank=0 must be a fraction"),
        ("shadowkv:rank=1.5", "rank=1.5 must be a fraction"),
        ("shadowkv:rank=33", "rank=33, but there are 32 channels"),
        ("xkv:rank=97", "rank=97, but there are 96 channels"),
        ("xkv:rank=0.5,layers=0", "layers=0 must be at least 1"),
        ("xkv:rank=0.5+snapkv:budget=0.5", "leave the selector out"),
        ("svdq:bits=0", "bits=0 must be in"),
        ("svdq:bits=9", "bits=9 must be in"),
        ("svdq:bits=3,values=5", "values=5 is not one of 2, 3, 4, 8"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(KvbenchError, match=message) as refusal:
        parse(spec).fit(model().geometry)
    assert "\n" not in str(refusal.value)


# ---- the basis -----------------------------------------------------------------------------------------------------


def states(rows: int = 2, heads: int = 3, tokens: int = 50, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(heads * dim, heads * dim, generator=generator, dtype=torch.float64)
    flat = torch.randn(rows, tokens, heads * dim, generator=generator, dtype=torch.float64) @ mix + 3
    return flat.unflatten(2, (heads, dim)).transpose(1, 2)


def rebuilt(spec: str, keys: Tensor, real: Tensor | None = None) -> Tensor:
    one = subject("llama", heads=3, kv_heads=3, head_dim=8, hidden=24, layers=1)
    codec = parse(spec).fit(one.geometry, calibrated(one) if spec.startswith("pca") else None).layers[0].codec
    assert codec is not None
    codec = codec.bound(codec.fit(keys, keys, real))
    return codec.decode(codec.encode(keys, keys))[0]


def test_keys_are_projected_as_the_truncated_svd_does() -> None:
    keys = states()
    flat = keys.transpose(1, 2).flatten(2)
    mean = flat.mean(1, keepdim=True)
    left, sigma, right = torch.linalg.svd(flat - mean, full_matrices=False)
    best = (left[..., :6] * sigma[:, None, :6]) @ right[:, :6] + mean
    decoded = rebuilt("shadowkv:rank=0.25", keys)
    torch.testing.assert_close(decoded.transpose(1, 2).flatten(2), best)
    assert (decoded - keys).norm() < (rebuilt("pca:rank=0.25", keys) - keys).norm()


def test_padding_has_no_say_in_the_basis() -> None:
    keys, noise = states(rows=1), 100 * states(rows=1, tokens=20, seed=5)
    real = torch.cat([torch.zeros(1, 1, 20), torch.ones(1, 1, 50)], 2).bool()
    decoded = rebuilt("shadowkv:rank=0.25", torch.cat([noise, keys], 2), real)
    torch.testing.assert_close(decoded[:, :, 20:], rebuilt("shadowkv:rank=0.25", keys))


@pytest.mark.parametrize("bits", [0.1, 0.5, 1, 1.25, 2, 3, 4, 5.5, 8])
@pytest.mark.parametrize("width", [64, 192, 1024])
def test_widths_descend_and_have_the_mean_asked_for(bits: float, width: int) -> None:
    counts = directions(bits, width)
    assert sum(counts.values()) == pytest.approx(width * min(bits / 4, 1), abs=1)
    assert sum(bits * count for bits, count in counts.items()) / width == pytest.approx(bits, abs=8 / width)


def test_two_bits_are_the_schedule_of_the_paper() -> None:
    """By eighths: 8, 4, 2, 2, 0, 0, 0, 0."""
    assert directions(2, 1024) == {8: 128, 4: 128, 2: 256}


# ---- surgery -------------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Callable[[Any], None], Callable[[Tensor], Tensor]]] = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), lambda rows: rows[[2, 0, 0]]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), lambda rows: rows.repeat_interleave(2, 0)),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1])), lambda rows: rows[[1]]),
    "deepcopy": (lambda cache: None, lambda rows: rows),
}


@lossy
@pytest.mark.parametrize("operation", ROWS)
@pytest.mark.parametrize("padding", [(0, 0, 0), (17, 0, 4)], ids=["unpadded", "padded"])
def test_rows_take_their_bases_along(spec: str, operation: str, padding: tuple[int, ...]) -> None:
    act, arrange = ROWS[operation]
    one, ids, mask = model(), token_ids(3, PROMPT), left_padding(3, PROMPT + NEW, padding)
    rows = torch.cat([arrange(ids), token_ids(len(arrange(ids)), NEW, seed=4)], 1)
    with attached(spec) as compressed:
        straight = feed(one.model, compressed.new_cache(), rows, [PROMPT, *[1] * NEW], arrange(mask))[:, PROMPT:]
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [PROMPT], mask[:, :PROMPT])
        if operation == "deepcopy":
            cache, disturbed = copy.deepcopy(cache), cache
            feed(one.model, disturbed, token_ids(3, PROMPT + 30, seed=8), [30], start=PROMPT)
            disturbed.crop(-60)
        act(cache)
        logits = feed(one.model, cache, rows, [1] * NEW, arrange(mask), start=PROMPT)
    assert worst(logits, straight) < 1e-8


@lossy
def test_a_padded_row_is_compressed_as_if_it_were_alone(spec: str) -> None:
    """16 slots of padding are whole blocks, so that the same tokens leave at the same time."""
    one, ids, mask = model(), token_ids(2, PROMPT + NEW), left_padding(2, PROMPT + NEW, (16, 0))
    chunks = [PROMPT, *[1] * NEW]
    with attached(spec) as compressed:
        padded = feed(one.model, compressed.new_cache(), ids, chunks, mask)[:1, 16:]
        alone = feed(one.model, compressed.new_cache(), ids[:1, 16:], [PROMPT - 16, *[1] * NEW])
    grouped = spec.startswith("svdq")  # scales over groups of tokens reach into padding and sinks
    assert worst(padded, alone) < (0.5 if grouped else 1e-8)


@lossy
@pytest.mark.parametrize("length", [PROMPT - 1, 60, 11, 2, 0])
def test_after_a_crop_the_basis_stays_until_nothing_is_left_of_it(spec: str, length: int) -> None:
    one, ids = model(), token_ids(2, PROMPT + NEW)
    with attached(spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [PROMPT])
        before = [dict(layer.body.fitted) for layer in cache.kv_layers]
        cache.crop(length - PROMPT)
        for layer, fitted in zip(cache.kv_layers, before, strict=True):
            assert bool(layer.body.fitted) == bool(layer.body.entries)
            assert not layer.body.fitted or all(torch.equal(layer.body.fitted[name], fitted[name]) for name in fitted)
        logits = feed(one.model, cache, ids, [PROMPT + NEW - length], start=length)
        assert logits.isfinite().all()
        assert all(layer.body.fitted and layer.body.entries == 120 for layer in cache.kv_layers)


@lossy
def test_crop_and_feed_again(spec: str) -> None:
    one, ids = model(), token_ids(2, PROMPT + 3)
    with attached(spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [PROMPT])
        expected = feed(one.model, copy.deepcopy(cache), ids, [3], start=PROMPT)
        feed(one.model, cache, ids, [3], start=PROMPT)
        cache.crop(-3)
        assert worst(feed(one.model, cache, ids, [3], start=PROMPT), expected) < 1e-8


# ---- teacher forcing -----------------------------------------------------------------------------------------------


FEW = ("shadowkv:rank=5", "svdq:bits=0.5,group=8", "xkv:rank=5,layers=2")
"""Fewer axes than the first block has tokens: what a prompt does not tell about is arbitrary."""


@pytest.mark.parametrize(("prefix", "spec"), [*((PROMPT, spec) for spec in LOSSY), *((5, spec) for spec in FEW)])
def test_blocks_equal_single_tokens(prefix: int, spec: str) -> None:
    """Layers that share a latent take blocks of at most the recent window, here 9 tokens."""
    one, ids, logits = model(), token_ids(2, PROMPT + NEW), []
    rest = ids[:, prefix:]
    with attached(spec) as compressed:
        for as_decoded in (True, False):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [prefix])
            cache.as_decoded = as_decoded
            sizes = [piece.shape[1] for piece in (cache.pieces(rest) if as_decoded else rest.split(1, 1))]
            assert sizes[0] == (1 if not as_decoded else 9 if spec.startswith("xkv") else rest.shape[1])
            logits.append(feed(one.model, cache, ids, sizes, start=prefix))
    assert worst(*logits) < 1e-8


def test_a_block_that_layers_of_a_group_cannot_take_is_refused() -> None:
    one, ids = model(), token_ids(1, PROMPT + NEW)
    with attached("xkv:rank=0.5") as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [PROMPT])
        cache.as_decoded = True
        with pytest.raises(KvbenchError, match="blocks of at most 9 tokens"):
            feed(one.model, cache, ids, [NEW], start=PROMPT)


# ---- bytes ---------------------------------------------------------------------------------------------------------


def prefilled(spec: str, tokens: int, rows: int = 1) -> tuple[CompressedCache, Plan]:
    one = subject("llama", torch.float32, layers=3)
    plan = parse(spec).fit(one.geometry)
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(rows, tokens), [tokens])
    return cache, plan


@pytest.mark.parametrize("tokens", [67, 68, 99, 100, 131, 200])
@pytest.mark.parametrize(
    "spec", ["shadowkv:rank=0.3", "svdq:bits=2,group=32", "xkv:rank=0.3,layers=2", "shadowkv:rank=0.3+knorm:budget=0.3"]
)
def test_bytes_are_predicted_at_every_boundary(spec: str, tokens: int) -> None:
    cache, plan = prefilled(spec, tokens, rows=2)
    assert predict_bytes(plan, subject("llama", torch.float32, layers=3).geometry, tokens, 2) == cache.nbytes().total
    assert cache.nbytes().workspace == 0


def test_shadowkv_by_hand() -> None:
    """Three layers with two heads of 16; rank 8 of 32; 928 of 1,024 tokens in the body; an fp16 basis and mean."""
    cache, plan = prefilled("shadowkv:rank=8", 1024)
    assert cache.nbytes().payload == 3 * 928 * (8 + 32) * 4
    assert cache.nbytes().scales == 3 * (8 + 1) * 32 * 2
    assert body_bits_per_element(plan, subject("llama", torch.float32, layers=3).geometry) == 32 * (8 + 32) / 64


def test_xkv_stores_a_token_once_for_a_group() -> None:
    """Groups of two and one layers, keys and values each 32 wide: rank 0.25 is 16 and 8 coefficients."""
    cache, _ = prefilled("xkv:rank=0.25,layers=2", 1024)
    first, second, third = cache.kv_layers
    assert first.body is second.body and second.body is not third.body
    assert cache.nbytes().payload == 928 * 2 * (16 + 8) * 4
    assert cache.nbytes().scales == 2 * ((16 + 1) * 64 + (8 + 1) * 32) * 2
    whole, _ = prefilled("none", 1024)
    assert cache.nbytes().total < 0.4 * whole.nbytes().total


@pytest.mark.parametrize("method", ["shadowkv+int:bits=4", "svdq", "xkv+int:bits=4"])
def test_equal_bytes_can_be_solved(method: str) -> None:
    geometry = subject("llama", torch.float32, layers=3).geometry
    solver = Solver(geometry, None, 2048)
    assert solver.bits(solver.solve(method, 6)) == pytest.approx(6, rel=0.02)


def test_fitting_leaves_nothing_at_model_level() -> None:
    for name in ("shadowkv", "svdq", "xkv"):
        assert parse(DEFAULT_SPECS[name]).fit(model().geometry).model_level_bytes() == 0
        assert not parse(DEFAULT_SPECS[name]).needs_calibration


def test_positions_are_taken_from_the_mask() -> None:
    """Padding moves positions, and keys are rotated when they are read: full rank must follow the stock model."""
    one, ids, mask = model(), token_ids(2, PROMPT + NEW), left_padding(2, PROMPT + NEW, (11, 0))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    for spec in ("shadowkv:rank=1", "xkv:rank=1,layers=2"):
        with attached(spec) as compressed:
            logits = feed(one.model, compressed.new_cache(), ids, [PROMPT, *[1] * NEW], mask)
        assert worst(logits, stock, mask) < EXACT


@lossy
def test_a_loaded_prompt_equals_an_attended_one(spec: str) -> None:
    one, ids = model(), token_ids(1, PROMPT + NEW)
    with attached(spec) as compressed:
        prompt = exact_prompt(one.model, one.geometry, ids[:, :PROMPT])
        attended = feed(one.model, compressed.new_cache(), ids, [PROMPT, *[1] * NEW])[:, PROMPT:]
        loaded = feed(one.model, prompt.fill(compressed), ids, [1] * NEW, start=PROMPT)
    assert worst(loaded, attended) < 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", ["shadowkv:rank=1", "svdq:bits=8,group=8", "xkv:rank=1,layers=2"])
def test_half_precision_models(spec: str, dtype: torch.dtype) -> None:
    one, ids = subject("llama", dtype, layers=3), token_ids(2, PROMPT + NEW)
    stock = feed(one.model, one.stock_cache(), ids, [PROMPT, NEW])
    with one.attach_untested(Plan(parse(spec).fit(one.geometry).layers, SPANS)) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, [PROMPT, *[1] * NEW])
    assert {tensor.dtype for layer in cache.kv_layers for tensor in layer.body.fitted.values()} == {torch.float16}
    assert (logits - stock).float().square().mean() < 1e-3 * stock.float().var()
