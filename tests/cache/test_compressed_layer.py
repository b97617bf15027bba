"""One compressed layer alone: what no model family has, and how spans divide a context."""

from __future__ import annotations

import pytest
import torch
from driving import KeepAll
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.quantizers.base import Passthrough, Stored
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.hooks.interception import AttentionCall
from kvbench.kernels.reference import exact_attention
from kvbench.selectors.base import Observed, Selector

HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM = 6, 3, 8, 5
SCALING = 0.4


def codec(block: int = 1, value_dim: int = VALUE_DIM) -> Codec:
    quantizer = Passthrough(torch.float64, block)
    return Codec(SideCodec(KV_HEADS, HEAD_DIM, None, quantizer), SideCodec(KV_HEADS, value_dim, None, quantizer))


def context(rows: int, tokens: int, value_dim: int = VALUE_DIM, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and values of ``tokens`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, value_dim)
    query, keys, values = (
        torch.randn(rows, heads, tokens, dim, generator=generator, dtype=torch.float64) for heads, dim in shapes
    )
    return query, keys, values


def attend(layer: CompressedLayer, query: Tensor, keys: Tensor, values: Tensor, softcap: float | None = None) -> Tensor:
    """One forward pass of a model with this layer alone."""
    layer.expected = True
    layer.update(keys, values)
    return layer.attend(AttentionCall(nn.Identity(), query, keys, values, None, SCALING, softcap, None), None)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.builds(Spans, st.integers(0, 5), st.integers(0, 20), st.integers(1, 20)),
    st.sampled_from([1, 8]),
    st.sampled_from([None, KeepAll()]),
    st.sampled_from([None, 3.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_spans_and_chunks_give_exact_attention(
    chunks: list[int], spans: Spans, block: int, selector: Selector | None, softcap: float | None, as_decoded: bool
) -> None:
    """Values narrower than keys, too."""
    layer = CompressedLayer(codec(block), spans, selector)
    layer.as_decoded = as_decoded
    query, keys, values = context(2, sum(chunks))
    start = 0
    for size in chunks:
        stop = start + size
        output = attend(layer, *(part[:, :, start:stop] for part in (query, keys, values)), softcap)
        expected = exact_attention(
            query[:, :, start:stop], keys[:, :, :stop], values[:, :, :stop], SCALING, None, softcap
        )
        assert output.shape == (2, HEADS, size, VALUE_DIM)
        assert torch.allclose(output, expected, rtol=1e-10, atol=1e-12)
        start = stop
    sinks = layer.spans.sinks if layer.tail_start else 0
    assert sinks + layer.body.entries + layer.tail_keys.length == layer.seen == start


@given(
    st.builds(Spans, st.integers(0, 6), st.integers(0, 40), st.integers(1, 40)), st.integers(0, 300), st.integers(0, 50)
)
def test_where_the_body_ends(spans: Spans, tokens: int, first: int) -> None:
    """The window keeps at least ``recent`` tokens, whole blocks leave, and no row's sinks are split."""
    boundary = spans.boundary(tokens, first)
    if boundary == 0:
        assert tokens < spans.sinks + spans.recent + spans.block + first or (spans.sinks == 0 and tokens < spans.block)
        return
    assert boundary >= first + spans.sinks
    assert spans.recent <= tokens - boundary < spans.recent + spans.block
    assert (boundary - spans.sinks) % spans.block == 0
    assert spans.boundary(tokens + 1, first) >= boundary


@pytest.mark.parametrize(("requested", "used"), [(1, 32), (32, 32), (33, 64)])
def test_a_block_is_what_the_codec_can_encode(requested: int, used: int) -> None:
    keys = SideCodec(KV_HEADS, HEAD_DIM, None, IntegerQuantizer(4, 32, "token"))
    values = SideCodec(KV_HEADS, HEAD_DIM, None, IntegerQuantizer(4, 32))
    assert CompressedLayer(Codec(keys, values), Spans(4, 64, requested)).spans.block == used


def test_what_leaves_the_window_is_really_gone() -> None:
    """A codec that forgets everything leaves only sinks and window to attend to."""

    class Nothing(Passthrough):
        def decode(self, stored: Stored) -> Tensor:
            return torch.full_like(stored["latent"], -1e4)

    sides = [SideCodec(KV_HEADS, dim, None, Nothing(torch.float64)) for dim in (HEAD_DIM, VALUE_DIM)]
    layer = CompressedLayer(Codec(*sides), Spans(sinks=2, recent=6, block=4))
    query, keys, values = context(1, 61)
    query, keys = query.abs(), keys.abs()  # so that the forgotten keys score low
    attend(layer, query[:, :, :60], keys[:, :, :60], values[:, :, :60])
    output = attend(layer, *(part[:, :, 60:] for part in (query, keys, values)))
    seen = [0, 1, *range(54, 61)]
    expected = exact_attention(query[:, :, 60:], keys[:, :, seen], values[:, :, seen], SCALING)
    assert torch.allclose(output, expected, rtol=1e-10, atol=1e-12)


def test_a_loaded_prompt_equals_an_attended_one() -> None:
    query, keys, values = context(2, 80)
    attended, loaded = (CompressedLayer(codec(8), Spans(2, 16, 8)) for _ in range(2))
    lent = keys[:, :, :75].clone(), values[:, :, :75].clone()
    attend(attended, query[:, :, :75], *lent)
    loaded.load(*lent, Observed(query[:, :, :75], SCALING), None)
    for start in range(75, 80):
        new = [part[:, :, start : start + 1] for part in (query, keys, values)]
        assert torch.equal(attend(attended, *new), attend(loaded, *new))
    assert torch.equal(lent[0], keys[:, :, :75]), "what was lent is unchanged"


def test_encoding_costs_what_the_codec_says() -> None:
    sides = [SideCodec(KV_HEADS, dim, None, IntegerQuantizer(3, 4)) for dim in (HEAD_DIM, VALUE_DIM)]
    one = Codec(*sides)
    _, keys, values = context(2, 64)
    stored = one.encode(keys, values)
    cost = one.cost(torch.float64)
    payload = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith("codes"))
    scales = sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith("codes"))
    assert payload * 8 == 2 * 64 * cost.payload == 2 * 64 * KV_HEADS * (HEAD_DIM + VALUE_DIM) * 3
    assert scales * 8 == 2 * 64 * cost.scales == 2 * 64 * KV_HEADS * (2 + 2) * 32
