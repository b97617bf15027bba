"""Learned sinks (gpt-oss): one more score in every softmax, whose value is zero."""

from __future__ import annotations

import pytest
import torch
from driving import SMALL_SPANS, feed, subject, token_ids, worst

from kvbench.cache.compiled import compiled_decode
from kvbench.kernels.decode import kernels_taking
from kvbench.kernels.reference import beside_sinks, exact_attention, merge, partial_attention

pytestmark = pytest.mark.usefixtures("no_grad")


def test_a_sink_is_one_more_column_of_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, heads, 7, 8, generator=generator).double() for heads in (4, 2, 2))
    sinks = torch.tensor([-30.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    scores = query @ keys.repeat_interleave(2, 1).mT * 0.3
    scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(2, 4, 7, 1)], -1)
    expected = scores.softmax(-1)[..., :-1] @ values.repeat_interleave(2, 1)
    halves = [partial_attention(query, keys[:, :, half], values[:, :, half], 0.3) for half in (slice(3), slice(3, 7))]
    assert worst(beside_sinks(merge(halves), sinks), expected) < 1e-12
    everywhere = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    assert worst(exact_attention(query, keys, values, 0.3, everywhere, sinks=sinks), expected) < 1e-12


def test_kernels_and_sinks() -> None:
    """One token at a time in fp32 is what kernels attend."""
    one, ids = subject("gpt_oss", torch.float32), token_ids(2, 40)
    stock = one.model(ids, use_cache=False).logits
    with one.attach(one.identity("after", SMALL_SPANS)) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, [30, *[1] * 10])
    if kernels_taking(torch.float32, torch.device("cpu")) is not None:
        assert "numba" in cache.attended_by
    assert worst(logits, stock) < 1e-4 * float(stock.abs().max())


@pytest.mark.usefixtures("fp64")
def test_caches_of_fixed_shape_and_sinks() -> None:
    one, ids = subject("gpt_oss"), token_ids(2, 40)
    stock = one.model(ids, use_cache=False).logits
    with one.attach(one.identity("before", SMALL_SPANS)) as compressed:
        decode = compiled_decode(compressed, ids[:, :30], max_length=48, backend=None)
        logits = torch.stack([decode.logits, *(decode(ids[:, [at]]) for at in range(30, 40))], 1)
    assert worst(logits, stock[:, 29:]) < 1e-10
