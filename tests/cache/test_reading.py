"""Kernels and plain torch, latents and rebuilt keys: however a cache is read, the model says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from default_specs import COMBINED_SPECS, DEFAULT_SPECS
from driving import Subject, calibrated, feed, left_padding, subject, token_ids
from torch import Tensor

from kvbench.cache.attach import CompressedModel
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.kernels.choice import kernels_for
from kvbench.kernels.reading import Reading

SPANS = Spans(sinks=2, recent=8, block=8)
SPECS = [
    "none",
    "identity",
    "int:bits=8",
    "int:bits=3,group=32",
    "kivi:bits=2",
    "kivi:bits=4,group=16",
    "pca:rank=0.5,heads=each,frame=after+kivi:bits=8,group=16",
    "turboquant:bits=3",
    "pca:rank=0.5,heads=each,frame=after",
    "pca:rank=0.5,frame=after+int:bits=8,group=128",
    "rope-commuting:rank=0.5",
    "ftc:bits=4,frame=after",
    "ftc:bits=4",
    "ftc:bits=3,basis=split",
    "kvtc:bits=4",
    "kvtc:bits=4,layers=2",
    "pca:rank=0.5",
    "pca:rank=0.5+int:bits=8,group=16",
    "palu:rank=0.5+int:bits=8",
    "truncate:rank=0.5+int:bits=4",
]
TOKENS, STEPS = 90, 12


@pytest.fixture(params=["llama", "gpt_neox", "gemma3"])
def one(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param, torch.float32)


def logits(one: Subject, spec: str, reading: Reading, mask: Tensor | None = None) -> tuple[Tensor, str]:
    """Logits of the decoded steps, and what attended."""
    compressor = parse(spec)
    plan = replace(compressor, spans=SPANS).fit(one.geometry, calibrated(one))
    ids = token_ids(2, TOKENS)
    with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
        cache = compressed.new_cache()
        outputs = feed(one.model, cache, ids, [TOKENS - STEPS] + [1] * STEPS, mask)
        bodies = [layer.body.entries for layer in cache.layers if isinstance(layer, CompressedLayer)]
        assert any(bodies) or spec in ("none", "streaming"), "nothing stored was read"
        return outputs[:, -STEPS:], cache.attended_by


def differs(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("padding", [None, [0, 5]], ids=["whole", "padded"])
def test_every_way_of_reading_says_the_same(one: Subject, spec: str, padding: list[int] | None) -> None:
    mask = None if padding is None else left_padding(2, TOKENS, padding)
    plain, by = logits(one, spec, Reading("reference", "reconstruct"), mask)
    assert "numba" not in by
    for reading in (Reading(), Reading("reference", "absorb"), Reading("auto", "reconstruct")):
        actual, _ = logits(one, spec, reading, mask)
        assert differs(actual, plain) < 2e-3, reading


@pytest.mark.parametrize("spec", [*DEFAULT_SPECS.values(), *COMBINED_SPECS])
def test_kernels_change_nothing_for_any_method(spec: str) -> None:
    if spec.startswith("hf"):
        pytest.skip("attends in transformers")
    llama = subject("llama", torch.float32)
    plain, _ = logits(llama, spec, Reading("reference"))
    actual, _ = logits(llama, spec, Reading())
    assert differs(actual, plain) < 2e-3


def test_what_attended_is_told() -> None:
    llama = subject("llama", torch.float32)
    assert kernels_for(torch.device("cpu")) is not None
    assert logits(llama, "int:bits=4", Reading())[1] == "numba int"
    assert logits(llama, "int:bits=4", Reading("reference"))[1] == "torch decoded"
    assert logits(llama, "int:bits=4", Reading(read="reconstruct"))[1] == "torch decoded"
    assert logits(llama, "truncate:rank=0.5+int:bits=4", Reading("reference"))[1] == "torch absorbed"
    assert logits(llama, "pca:rank=0.5", Reading())[1] == "torch rebuilt"
    assert logits(llama, "kivi:bits=2", Reading())[1] == "numba int"
    assert logits(llama, "ftc:bits=4", Reading())[1] == "numba rebuilt"
    assert logits(llama, "ftc:bits=4", Reading("reference"))[1] == "torch rebuilt"
    assert logits(llama, "ftc:bits=4", Reading(read="reconstruct"))[1] == "torch decoded"
    assert logits(llama, "none", Reading())[1] == "numba exact"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scales_per_channel_after_a_crop(family: str) -> None:
    """A crop cuts the body at a block of tokens that share scales, and decoding goes on from there."""
    one = subject(family, torch.float32)
    plan = replace(parse("kivi:bits=4"), spans=SPANS).fit(one.geometry, calibrated(one))
    ids, after = token_ids(2, 300), []
    for reading in (Reading(), Reading("reference")):
        with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, ids[:, :200], [190] + [1] * 10)
            cache.crop(-90)
            after.append(feed(one.model, cache, ids, [60] + [1] * 12, start=110))
    assert "numba int" not in cache.attended_by
    assert differs(after[0], after[1]) < 1e-3


def test_fp64_never_goes_through_a_kernel() -> None:
    actual, by = logits(subject("llama"), "int:bits=4", Reading())
    assert by == "torch decoded"
    assert differs(actual, logits(subject("llama"), "int:bits=4", Reading("reference", "reconstruct"))[0]) < 1e-6


@pytest.mark.parametrize("text", ["auto", "reference", "absorb", "reference+reconstruct"])
def test_a_reading_is_its_name(text: str) -> None:
    assert str(Reading.parse(text)) == text


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(KvbenchError, match="did you mean"):
        Reading.parse("refrence")
