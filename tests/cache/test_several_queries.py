"""Several new tokens on a compressed past: a kernel attends for each as for one, and plain torch agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from driving import calibrated, feed, left_padding, subject, token_ids, worst

from kvbench.cache import body_attention
from kvbench.cache.attach import CompressedModel
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.kernels.choice import kernels_for
from kvbench.kernels.reading import Reading

pytestmark = pytest.mark.skipif(kernels_for(torch.device("cpu")) is None, reason="no decode kernels on this machine")

SPECS = ("int:bits=8", "int:bits=4", "kivi:bits=2", "ftc:bits=4,frame=after", "pca:rank=0.5,frame=after+int:bits=8")
TOKENS, CHUNK = 180, 20


def fed(spec: str, reading: Reading, padding: tuple[int, ...], before: list[int]) -> tuple[torch.Tensor, str]:
    """Logits of a chunk after ``before``, and what attended to the body in it.

    Plain torch attends until then: what it rounds otherwise would be stored as other codes.
    """
    one = subject("llama", torch.float32)
    plan = replace(parse(spec), spans=Spans(sinks=2, recent=8, block=8)).fit(one.geometry, lambda: calibrated(one))
    mask = left_padding(len(padding), TOKENS, padding) if any(padding) else None
    with CompressedModel(one.model, plan, one.geometry, Reading("reference")) as compressed:
        cache, ids, done = compressed.new_cache(), token_ids(len(padding), TOKENS), sum(before)
        feed(one.model, cache, ids, before, mask)
        for layer in cache.layers:
            layer.reading = reading
        return feed(one.model, cache, ids, [CHUNK], mask, start=done), cache.attended_by


@pytest.mark.parametrize("padding", [(0, 0), (30, 0, 7)])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("before", [[TOKENS - 2 * CHUNK], [TOKENS - 2 * CHUNK, CHUNK]], ids=["first", "second"])
def test_as_plain_torch(
    spec: str, padding: tuple[int, ...], before: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_attention, "MOST_ROWS", 24)  # several pieces of a chunk
    read, by = fed(spec, Reading(), padding, before)
    expected, slow = fed(spec, Reading("reference"), padding, before)
    assert by.startswith("numba") and slow.startswith("torch")
    assert worst(read, expected) < 1e-3


def test_queries_that_see_different_tokens_are_no_heads() -> None:
    """As decoded, every query of a block sees the body that it would have seen alone."""
    one = subject("llama", torch.float32)
    plan = replace(parse("int:bits=8"), spans=Spans(sinks=2, recent=8, block=8)).fit(one.geometry, None)
    ids = token_ids(1, TOKENS)
    with CompressedModel(one.model, plan, one.geometry) as compressed:
        caches = [compressed.new_cache(), compressed.new_cache()]
        caches[1].as_decoded = True
        alone, together = (
            feed(one.model, cache, ids, chunks)
            for cache, chunks in zip(caches, ([140, *[1] * 40], [140, 40]), strict=True)
        )
    assert worst(together, alone) < 1e-3
