"""The dtypes that models run in: tolerances are a few roundings of the logits, which are about 0.5 to 2 here."""

from __future__ import annotations

import pytest
import torch
from driving import FRAMES, calibrated, feed, left_padding, position_ids, subject, token_ids, worst
from torch import Tensor
from transformers import Cache

from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import parse

pytestmark = pytest.mark.usefixtures("no_grad")
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.06, torch.float16: 0.008}
TOKENS = 34
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
families = pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_neox", "gpt2", "phi3", "qwen3_moe"])


@dtypes
@families
@pytest.mark.parametrize("frame", FRAMES)
def test_identity_in_every_dtype(family: str, frame: Frame, dtype: torch.dtype) -> None:
    one, ids, mask = subject(family, dtype), token_ids(2, TOKENS), left_padding(2, TOKENS, (6, 0))
    stock = one.model(ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    with one.attach(one.identity(frame)) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, (13, 9, *[1] * 12), mask)
    assert logits.dtype == dtype
    assert worst(logits.float(), stock.float(), mask) < TOLERANCE[dtype]
    assert logits.isfinite().all()
    for layer in cache.kv_layers:
        assert all(
            tensor.data.dtype == dtype for kind, tensor in layer.tensors_by_kind() if kind in ("exact", "payload")
        )


@dtypes
@pytest.mark.parametrize("spec", ["none", "int:bits=8", "kivi:bits=8", "pca:rank=1", "kvtc:bits=7"])
def test_fine_codecs_in_every_dtype(spec: str, dtype: torch.dtype) -> None:
    """What codecs compute is at least fp32, whatever the model's dtype: they add no error of their own kind."""
    one, ids, compressor = subject("llama", dtype), token_ids(2, 150), parse(spec)
    statistics = calibrated(subject("llama", torch.float32)) if compressor.needs_calibration else None
    plan = compressor.fit(one.geometry, statistics)
    stock = one.model(ids).logits.float()
    with one.attach(plan) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, (120, *[1] * 30)).float()
    lossless = spec in ("none", "pca:rank=1")
    assert worst(logits, stock) < TOLERANCE[dtype] + (0 if lossless else 0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_padding_stays_finite(dtype: torch.dtype) -> None:
    one, ids, mask = subject("gemma2", dtype), token_ids(2, 600), left_padding(2, 600, (550, 0))
    with one.attach(parse("kivi:bits=4").fit(one.geometry)) as compressed:
        logits = feed(one.model, compressed.new_cache(), ids, (500, 97, 1, 1, 1), mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_lossless_arms_are_as_near_to_stock_as_stock_is_to_itself(dtype: torch.dtype) -> None:
    """Stock against itself: six tokens at a time instead of one; with another batch size it is the same here."""
    one, ids = subject("llama", dtype, hidden=64, heads=4, kv_heads=2, layers=3), token_ids(2, 160)

    def logits(cache: Cache, rows: int, step: int) -> Tensor:
        return feed(one.model, cache, ids[:rows], [40, *[step] * (120 // step)])[:1, 40:]

    stock = logits(one.stock_cache(), 1, 1)
    noise = max(divergence(stock, logits(one.stock_cache(), 1, 6)), divergence(stock, logits(one.stock_cache(), 2, 1)))
    for spec, times in (("none", 1), ("identity:recent=8,block=8", 4)):
        with one.attach(parse(spec).fit(one.geometry)) as compressed:
            assert divergence(stock, logits(compressed.new_cache(), 1, 1)) <= times * noise, spec


def divergence(first: Tensor, second: Tensor) -> float:
    """Mean KL divergence of the second's predictions from the first's, nats."""
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
