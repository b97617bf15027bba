"""Codes of latent attention are attended to by the CPU kernels as they are stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from driving import SMALL_SPANS, Subject, calibrated, feed, left_padding, subject, token_ids, worst
from torch import Tensor

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.attends import attends
from kvbench.compressors.compressor import parse
from kvbench.kernels.choice import kernels_for
from kvbench.kernels.reading import Reading

TOKENS, STEPS = 90, 10
CLOSE = 2e-3
"""Of logits in fp32, against codes decoded in plain torch."""


def small(one: Subject, spec: str) -> Plan:
    """``spec`` fitted, with spans that a few dozen tokens fill."""
    with torch.enable_grad():
        return replace(parse(spec), spans=SMALL_SPANS).fit(one.geometry, lambda: calibrated(one))


def steps(one: Subject, plan: Plan, reading: Reading, mask: Tensor | None = None) -> tuple[Tensor, str]:
    """Logits of tokens that were decoded one by one, and what attended."""
    with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, token_ids(2, TOKENS), [TOKENS - STEPS] + [1] * STEPS, mask)
    return logits[:, -STEPS:], cache.attended_by


@pytest.mark.parametrize(
    ("spec", "by"),
    [
        ("int:bits=8", "numba int"),
        ("int:bits=4,group=16", "numba int"),
        ("fp8", "numba levels"),
        ("fp8:scale=float32,side=values", "numba levels"),
        ("pca:rank=0.75,frame=after+int:bits=8", "numba int"),
        ("pca:rank=0.75+int:bits=8", "numba int"),
        ("kvtc:bits=6", "numba levels"),
        ("kvtc:bits=6,frame=bands", "torch absorbed"),
        ("pca:rank=0.75", "torch absorbed"),
        ("none", "numba latents"),
    ],
)
@pytest.mark.parametrize("family", ["deepseek_v3", "minicpm3"])
def test_a_kernel_reads_codes_of_latents(family: str, spec: str, by: str) -> None:
    check(family, spec, by)


@pytest.mark.parametrize(
    ("spec", "by"),
    [
        ("mla:latent=32,rope_dims=8+int:bits=8", "numba int"),
        ("mla:latent=32,rope_dims=8+fp8", "numba levels"),
        ("mla:latent=32,rope_dims=8", "torch decoded"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_kernel_reads_decoupled_keys_that_were_made(family: str, spec: str, by: str) -> None:
    check(family, spec, by)


@pytest.mark.parametrize(
    ("family", "spec", "by"),
    [
        ("deepseek_v3", "int:bits=8", "torch absorbed"),
        ("llama", "mla:latent=32,rope_dims=8+int:bits=8", "torch decoded"),
    ],
)
def test_kernels_of_one_query_a_row_are_not_given_two(
    family: str, spec: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's rebuild keys, but would have taken both halves of a query for one."""
    numba = kernels_for(torch.device("cpu"))
    assert numba is not None
    monkeypatch.setattr("kvbench.cache.way.kernels_taking", lambda dtype, device: replace(numba, decouples=False))
    one = subject(family, torch.float32)
    assert attends(small(one, spec), one.geometry) == by


def check(family: str, spec: str, by: str) -> None:
    """It says the same as plain torch, is known beforehand, and left padding is not attended to."""
    one = subject(family, torch.float32)
    plan = small(one, spec)
    assert attends(plan, one.geometry) == by
    for mask in (None, left_padding(2, TOKENS, (7, 0))):
        expected, _ = steps(one, plan, Reading("reference"), mask)
        logits, attended = steps(one, plan, Reading(), mask)
        assert attended == by
        assert worst(logits, expected) < CLOSE * expected.abs().max()
