"""Decoding one by one: through the kernels, over the tokens that blocks score, and in agreement with them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from fp64 import one_thread

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.kernels.choice import Kernels, kernels_for
from kvbench.kernels.reference import Partial
from kvbench.measure.arms import Arm
from kvbench.measure.parts.quality import DecodedResult, QualityWorkload
from kvbench.measure.quality import QualityBench

__all__ = ["one_thread"]

LENGTH, PREFIX, DECODE = 120, 24, 40
IDS = token_ids(2, LENGTH)
SMALL = "sinks=2,recent=8,block=8"


def arm_of(one: Subject, spec: str) -> Arm:
    parsed = parse(spec)
    if parsed.stock is not None:
        return Arm.of(spec, one.model, one.geometry, None, parsed.stock)
    return Arm.of(spec, one.model, one.geometry, parsed.fit(one.geometry, calibrated(one)))


def decoded(one: Subject, spec: str, decode: int = DECODE, block: int = 32) -> DecodedResult:
    with torch.no_grad():
        result = QualityBench(arm_of(one, "none"), IDS, PREFIX, block, decode=decode).score(arm_of(one, spec)).decoded
    assert result is not None
    return result


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    "spec", [f"int:bits=4,{SMALL}", f"fp8:{SMALL}", f"ftc:bits=3,frame=after,{SMALL}", f"kvtc:bits=3,{SMALL}"]
)
def test_decoding_agrees_with_blocks(family: str, spec: str):
    result = decoded(subject(family, torch.float32), spec)
    assert result.tokens == 2 * DECODE
    assert result.block_kld_mean > 1e-9, "otherwise there is nothing to agree on"
    assert result.kld_mean == pytest.approx(result.block_kld_mean, rel=0.01)
    assert 0 <= result.from_blocks_kld < 1e-3 * result.block_kld_mean


@pytest.mark.parametrize("spec", ["none", "hf"])
def test_lossless_arms_differ_from_blocks_by_rounding(spec: str):
    result = decoded(subject("llama", torch.float32), spec)
    assert result.block_kld_mean == 0 and 0 < result.kld_mean == result.from_blocks_kld < 1e-11


def test_the_tokens_are_the_first_that_are_scored():
    one = subject("llama", torch.float32)
    spec = f"int:bits=2,{SMALL}"
    with torch.no_grad():
        whole = QualityBench(arm_of(one, "none"), IDS, PREFIX, 32, decode=LENGTH - 1 - PREFIX).score(arm_of(one, spec))
    assert whole.decoded is not None
    assert whole.decoded.tokens == whole.tokens
    assert whole.decoded.block_kld_mean == pytest.approx(whole.kld_mean, rel=1e-9)


def test_the_block_size_of_scoring_is_no_knob():
    one = subject("llama", torch.float32)
    spec = f"int:bits=2,{SMALL}"
    small, large = decoded(one, spec, block=16), decoded(one, spec, block=96)
    assert small.kld_mean == pytest.approx(large.kld_mean, rel=1e-4)
    assert small.tokens == large.tokens


def test_what_attended_is_read_back():
    one = subject("llama", torch.float32)
    kernels = kernels_for(torch.device("cpu"))
    assert kernels is not None
    assert decoded(one, f"int:bits=4,{SMALL}").attention == "numba int"
    assert decoded(one, "hf").attention == "stock"


def scaled(kernels: Kernels, factor: float, *prepared: Any) -> Callable[..., Partial]:
    """Kernels whose outputs over codes are multiplied by ``factor``."""
    attention = kernels.prepare(*prepared)

    def attend(*rest: Any) -> Partial:
        part = attention(*rest)
        return Partial(part.output * factor, part.lse, part.by)

    return attend


def test_a_kernel_that_returns_zeros_is_seen(monkeypatch: pytest.MonkeyPatch):
    """Scoring in blocks never runs one: it alone said that nothing had changed."""
    one = subject("llama", torch.float32)
    kernels = kernels_for(torch.device("cpu"))
    assert kernels is not None

    broken = dataclasses.replace(kernels, prepare=partial(scaled, kernels, 0.0))
    monkeypatch.setattr("kvbench.kernels.decode.kernels_for", lambda device: broken)
    result = decoded(one, f"int:bits=4,{SMALL}")
    assert result.from_blocks_kld > 10 * result.block_kld_mean


def test_logits_that_are_not_finite_are_the_kernels_doing(monkeypatch: pytest.MonkeyPatch):
    one = subject("llama", torch.float32)
    kernels = kernels_for(torch.device("cpu"))
    assert kernels is not None

    broken = dataclasses.replace(kernels, prepare=partial(scaled, kernels, float("nan")))
    monkeypatch.setattr("kvbench.kernels.decode.kernels_for", lambda device: broken)
    with pytest.raises(KvbenchError, match="decoded tokens are not finite; check the decode kernels"):
        decoded(one, f"int:bits=4,{SMALL}", decode=1)  # later a codec refuses to store what came of it


def test_no_more_tokens_are_decoded_than_are_scored():
    QualityWorkload(length=100, prefix=40, decode=59)
    with pytest.raises(ValueError, match=r"decode \(60\) must be at most the 59 scored tokens"):
        QualityWorkload(length=100, prefix=40, decode=60)
