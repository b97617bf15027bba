"""Quantization and eviction peers: what they keep, what they free, and what budget and bits buy."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from driving import Subject, calibrated, feed, left_padding, subject, token_ids, worst
from transformers import DynamicCache

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.prediction import predict_bytes
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
SPANS = Spans(sinks=2, recent=9, block=8)
QUANTIZERS = (
    "fp8",
    "fp8:format=e5m2",
    "fp8:group=6,scale=float32",
    "cast:to=fp8",
    "cast:to=bf16",
    "turboquant:bits=3",
    "kvquant:bits=3",
    "hadamard+int:bits=4",
)
EVICTIONS = (
    "snapkv:budget={}",
    "tova:budget={}",
    "knorm:budget={}",
    "random:budget={}",
    "expected-attention:budget={}",
)
HALVES = tuple(spec.format(0.5) for spec in EVICTIONS)
MIXED = (
    "snapkv:budget=0.25+int:bits=8",
    "expected-attention:budget=0.5+kvquant:bits=3",
    "knorm:budget=0.5+pca:rank=0.5",
)


def fitted(one: Subject, spec: str, spans: Spans | None = SPANS) -> Plan:
    compressor = parse(spec)
    plan = compressor.fit(one.geometry, lambda: calibrated(one))
    return plan if spans is None else Plan(plan.layers, spans)


def attached(one: Subject, spec: str, spans: Spans | None = SPANS) -> CompressedModel:
    return one.attach_untested(fitted(one, spec, spans))


def layers(cache: CompressedCache) -> list[CompressedLayer]:
    return [layer for layer in cache.layers if isinstance(layer, CompressedLayer)]


def loss(spec: str, tokens: int = 160, spans: Spans = SPANS) -> float:
    """Mean squared error of the logits after a compressed prompt, against the stock model."""
    one, ids = subject("llama"), token_ids(4, tokens + 8)
    stock = feed(one.model, one.stock_cache(), ids, [tokens, 8])[:, tokens:]
    with attached(one, spec, spans) as compressed:
        return float((feed(one.model, compressed.new_cache(), ids, [tokens, 8])[:, tokens:] - stock).square().mean())


@pytest.mark.parametrize(
    "specs",
    [
        ("fp8:format=e5m2", "fp8:format=e4m3", "cast:to=bf16", "cast:to=fp16"),
        tuple(f"turboquant:bits={bits}" for bits in (2, 3, 4)),
        tuple(f"kvquant:bits={bits}" for bits in (2, 3, 4, 8)),
        tuple(f"kvquant:bits=2,outliers={share}" for share in (0, 0.1, 0.2)),
        tuple(f"hadamard+int:bits={bits}" for bits in (2, 3, 4, 8)),
        tuple(f"random-projection:rank={rank}" for rank in (0.25, 0.75, 1)),
        tuple(f"truncate:rank={rank}" for rank in (0.25, 0.75, 1)),
        ("streaming", *(f"snapkv:budget={budget}" for budget in (0.3, 0.6, 1))),
        ("streaming", *(f"random:budget={budget}" for budget in (0.3, 0.6, 1))),
    ],
    ids=lambda specs: specs[-1].partition("=")[0],
)
def test_error_falls_with_what_is_kept(specs: tuple[str, ...]) -> None:
    errors = [loss(spec) for spec in specs]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]


@pytest.mark.parametrize("keys", ["before", "after"])
@pytest.mark.parametrize("spec", EVICTIONS)
def test_the_whole_budget_is_the_full_cache(spec: str, keys: str) -> None:
    assert loss(spec.format(1) + f"+identity:frame={keys}") < EXACT**2


def test_a_rotation_alone_loses_nothing() -> None:
    assert loss("hadamard") < EXACT**2
    assert loss("random-projection:rank=1") < EXACT**2
    assert loss("truncate:rank=1") < EXACT**2


def test_streaming_with_a_window_for_everything_is_the_full_cache() -> None:
    assert loss("streaming", spans=Spans(2, 200, 8)) < EXACT**2


# ---- eviction is deletion ------------------------------------------------------------------------------------------


def deleted(one: Subject, whole: DynamicCache, cache: CompressedCache) -> DynamicCache:
    """The stock cache with exactly the tokens that ``cache`` still holds, head by head."""
    for stock, layer in zip(whole.layers, layers(cache), strict=True):
        exact = [*range(SPANS.sinks), *range(layer.tail_start, layer.seen)]
        rows, heads = stock.keys.shape[:2]
        kept = torch.tensor(exact).expand(rows, heads, -1)
        if layer.body.slots is not None:
            kept = torch.cat([kept, layer.body.slots.view], -1)
        index = kept.long().unsqueeze(-1).expand(-1, -1, -1, stock.keys.shape[-1])
        stock.keys, stock.values = stock.keys.gather(2, index), stock.values.gather(2, index)
    return whole


@pytest.mark.parametrize("spec", ["streaming", *HALVES, "snapkv:budget=0.3+identity:frame=before"])
def test_evicting_is_deleting_from_the_stock_cache(spec: str) -> None:
    one, ids = subject("llama"), token_ids(2, 101)
    stock = one.stock_cache()
    feed(one.model, stock, ids, [100])
    with attached(one, spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [100])
        reference = deleted(one, stock, cache)
        logits = feed(one.model, cache, ids, [1], start=100)
    expected = one.model(ids[:, 100:], past_key_values=reference, position_ids=torch.full((2, 1), 100)).logits
    assert worst(logits, expected) < EXACT


@pytest.mark.parametrize("spec", ["knorm:budget=0.3", "snapkv:budget=0.3+int:bits=4", "random:budget=0.9+int:bits=4"])
def test_the_budget_holds_while_decoding(spec: str) -> None:
    """Blocks of the codec and shares of blocks never add up to more or much less."""
    one, ids = subject("llama", layers=1), token_ids(1, 400)
    compressor = parse(spec)
    budget = compressor.parts[0].budget  # type: ignore[attr-defined]
    with attached(one, spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [75])
        for start in range(75, 400):
            feed(one.model, cache, ids, [1], start=start)
            (layer,) = layers(cache)
            body = layer.tail_start - SPANS.sinks
            assert body * budget - layer.codec.block < layer.body.entries <= body * budget + 1e-9


@pytest.mark.parametrize(
    "spec", ["knorm:tokens=48", "snapkv:tokens=50+int:bits=4", "random:tokens=48", "tova:tokens=1000"]
)
def test_a_number_of_tokens_holds_at_every_length(spec: str) -> None:
    """Whole blocks of the codec; all that leaves is kept until the number is reached, then nothing."""
    one, ids = subject("llama", torch.float32, layers=1), token_ids(2, 220)
    most = parse(spec).parts[0].tokens  # type: ignore[attr-defined]
    plan = fitted(one, spec)
    with one.attach_untested(plan) as compressed:
        for prompt in (12, 30, 75, 200):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [prompt])
            (layer,) = layers(cache)
            assert layer.body.entries == max(
                0, min(layer.tail_start - SPANS.sinks, most // layer.codec.block * layer.codec.block)
            )
            assert cache.nbytes().total == predict_bytes(plan, one.geometry, prompt, 2)
            feed(one.model, cache, ids, [1] * 20, start=prompt)
            assert layer.body.entries == min(
                layer.tail_start - SPANS.sinks, most // layer.codec.block * layer.codec.block
            )


def test_a_number_of_tokens_smaller_than_what_can_be_stored_is_refused() -> None:
    with pytest.raises(KvbenchError, match="tokens=7 keeps nothing: what is stored comes in blocks of 8"):
        parse("snapkv:tokens=7+int:bits=4").fit(subject("llama").geometry)
    parse("snapkv:tokens=7").fit(subject("llama").geometry)


@pytest.mark.parametrize("method", ["snapkv", "tova"])
def test_the_question_chooses_only_behind_its_flag(method: str) -> None:
    """Prompts that differ in their exact window alone keep the same tokens, unless query-aware."""
    one, ids = subject("llama", layers=1), token_ids(1, 90)
    other = torch.cat([ids[:, :82], token_ids(1, 8, seed=6)], 1)
    for flag, alike in (("", True), (",query_aware=true", False)):
        with attached(one, f"{method}:budget=0.25{flag}") as compressed:
            kept = []
            for prompt in (ids, other):
                cache = compressed.new_cache()
                feed(one.model, cache, prompt, [90])
                kept.append(layers(cache)[0].body.slots.view)
        assert torch.equal(*kept) == alike


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*HALVES, *MIXED, "turboquant:bits=3", "kvquant:bits=3", "fp8"])
def test_a_row_is_the_same_alone_and_in_a_batch(spec: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # No token twice in a row: in the first layer its values would tie for a place among the outliers.
    one, ids = subject("llama"), torch.stack([3 + torch.randperm(256, generator=generator)[:90] for _ in range(3)])
    with attached(one, spec) as compressed:
        together = feed(one.model, compressed.new_cache(), ids, [60, *[1] * 30])
        for row in range(3):
            alone = feed(one.model, compressed.new_cache(), ids[row : row + 1], [60, *[1] * 30])
            assert worst(alone, together[row : row + 1]) < EXACT


@pytest.mark.parametrize("spec", [*(spec.format(0.25) for spec in EVICTIONS), "snapkv:budget=0.25+int:bits=8"])
def test_padding_is_never_kept(spec: str) -> None:
    one, ids, padding = subject("llama"), token_ids(3, 120), (40, 0, 3)
    mask = left_padding(3, 120, padding)
    with attached(one, spec) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, [100, *[1] * 20], mask)
        other = ids.clone()
        other[mask == 0] = 7
        assert worst(feed(one.model, compressed.new_cache(), other, [100, *[1] * 20], mask), logits, mask) < EXACT
    for layer in layers(cache):
        assert layer.body.slots is not None
        lowest = layer.body.slots.view.amin((1, 2))
        assert (lowest >= torch.tensor(padding) + SPANS.sinks).all()


def test_a_basis_over_heads_sees_one_token_in_all_of_them() -> None:
    one, ids = subject("llama"), token_ids(2, 100)
    for spec, alike in (("knorm:budget=0.5+pca:rank=0.5", True), ("knorm:budget=0.5+pca:rank=0.5,heads=each", False)):
        with attached(one, spec) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [100])
        slots = layers(cache)[0].body.slots
        assert slots is not None
        assert bool((slots.view[:, 0] == slots.view[:, 1]).all()) == alike


# ---- surgery -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*HALVES, *MIXED, "streaming", "kvquant:bits=3", "turboquant:bits=4", "fp8"])
def test_surgery(spec: str) -> None:
    """A copy is independent, a crop within the window costs nothing, rows follow their beams."""
    one, ids = subject("llama"), token_ids(3, 110)
    with attached(one, spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [100])
        expected = feed(one.model, deepcopy(cache), ids, [5], start=100)
        twin = deepcopy(cache)
        feed(one.model, twin, ids, [5], start=100)  # the next block leaves at 107 tokens
        twin.crop(-5)
        assert worst(feed(one.model, twin, ids, [5], start=100), expected) < EXACT
        beams = torch.tensor([2, 0, 0])
        cache.reorder_cache(beams)
        assert worst(feed(one.model, cache, ids[beams], [5], start=100), expected[beams]) < EXACT


@pytest.mark.parametrize("spec", [*HALVES, "streaming", "snapkv:budget=0.25+int:bits=8"])
def test_a_crop_into_an_evicted_body_leaves_a_working_cache(spec: str) -> None:
    """What was evicted before the cut stays evicted; what comes after is new."""
    one, ids = subject("llama"), token_ids(2, 140)
    with attached(one, spec) as compressed:
        for length in (95, 60, 20, 3):
            cache = compressed.new_cache()
            feed(one.model, cache, ids, [120])
            cache.crop(length - 120)
            assert cache.get_seq_length() == length
            assert feed(one.model, cache, ids, [40, 1, 1], start=length).isfinite().all()
            for layer in layers(cache):
                slots = layer.body.slots
                assert slots is None or bool((slots.view.diff(dim=-1) > 0).all())


# ---- stored bytes are what attention reads -------------------------------------------------------------------------


def flipped(cache: CompressedCache, name: str, share: float) -> CompressedCache:
    """A copy of ``cache`` with one bit of its first layer's stored tensor ``name`` flipped, ``share`` of the way in."""
    twin = deepcopy(cache)
    data = layers(twin)[0].body.buffers()[name].data
    size = data.itemsize  # of little-endian numbers: a float's exponent side, an integer's lowest bit
    byte = int(data.numel() * share) * size + (size - 1 if data.is_floating_point() else 0)
    data.view(torch.uint8).view(-1)[byte] ^= 1
    return twin


def changes(spec: str) -> dict[str, float]:
    """How much the next logits change with a bit of every stored tensor, by its name."""
    one, ids = subject("llama", layers=1), token_ids(1, 121)
    with attached(one, spec) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [120])
        before = feed(one.model, deepcopy(cache), ids, [1], start=120)
        return {
            name: max(  # two places: the code under an outlier is not read
                worst(feed(one.model, flipped(cache, name, share), ids, [1], start=120), before) for share in (0.3, 0.7)
            )
            for name in layers(cache)[0].body.buffers()
        }


@pytest.mark.parametrize("spec", [*QUANTIZERS, *HALVES, *MIXED])
def test_every_stored_byte_counts(spec: str) -> None:
    changed = changes(spec)
    rotates = parse(spec).fit(*_geometry(spec)).rotates
    assert changed
    for name, change in changed.items():
        if name != "slots" or rotates:  # slots only rotate keys and mask them
            assert change > 1e-12, f"{name} is stored and never read"


def _geometry(spec: str) -> tuple:  # type: ignore[type-arg]
    one = subject("llama", layers=1)
    return one.geometry, calibrated(one) if parse(spec).needs_calibration else None


# ---- model level ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["turboquant:bits=4", "hadamard+int:bits=8"])
def test_head_dims_that_are_no_power_of_two(spec: str) -> None:
    one, ids = subject("llama", head_dim=24), token_ids(2, 101)
    stock = feed(one.model, one.stock_cache(), ids, [100, 1])[:, 100:]
    with attached(one, spec) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, [100, 1])[:, 100:]
    assert float((logits - stock).square().mean() / stock.var()) < 0.05


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("snapkv:budget=0", r"budget=0 must be in \(0, 1\]"),
        ("snapkv", "give either budget or tokens, as in snapkv:budget=0.5 or snapkv:tokens=512"),
        ("tova:budget=0.5,tokens=64", "give either budget or tokens"),
        ("knorm:tokens=0", "tokens=0 must be at least 1 token"),
        ("knorm:tokens=-5", "tokens=-5 must be at least 1 token"),
        ("random:tokens=0.5", "random:tokens='0.5' is not a whole number"),
        ("knorm:budget=1.5", r"budget=1.5 must be in \(0, 1\]"),
        ("snapkv:budget=0.5,window=65", r"window=65 must be in \[1, 64\]"),
        ("snapkv:budget=0.5,kernel=4", "kernel=4 must be odd"),
        ("turboquant:bits=8", "bits=8 is not one of 2, 3, 4"),
        ("kvquant:bits=3,outliers=0.6", r"outliers=0.6 must be in \[0, 0.5\]"),
        ("fp8:format=e3m4", "unknown value for fp8:format"),
        ("truncate:rank=0", r"rank=0 must be in \(0, 1\]"),
        ("snapkv:budget=0.5+tova:budget=0.5", "both bring a selector"),
        ("turboquant:bits=3+int:bits=4", "both bring a quantizer"),
        ("pca:rank=0.5+kvquant:bits=3", "both bring a transform"),
    ],
)
def test_nonsense_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(KvbenchError, match=message) as refusal:
        parse(spec)
    assert "\n" not in str(refusal.value)


def test_expected_attention_needs_statistics_that_know_queries() -> None:
    one = subject("llama")
    with pytest.raises(KvbenchError, match="needs calibration"):
        parse("expected-attention:budget=0.5").fit(one.geometry)
    old = deepcopy(calibrated(one))
    for layer in old.layers.values():
        layer.query_sum = torch.zeros(0)
    with pytest.raises(KvbenchError, match="calibrate again"):
        parse("expected-attention:budget=0.5").fit(one.geometry, old)
