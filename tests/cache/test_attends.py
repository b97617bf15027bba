"""What will attend is known before anything is stored, and it is what then attends."""

from __future__ import annotations

import pytest
import torch
from default_specs import ALL_SPECS
from driving import calibrated, feed, subject, token_ids

from kvbench.cache.attach import CompressedModel
from kvbench.cache.attends import attends
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.reads import READS
from kvbench.compressors.compressor import parse
from kvbench.errors import UnsupportedModelError
from kvbench.kernels.reading import Reading

READINGS = ("auto", "reference", "reconstruct")
TOKENS, STEPS = 200, 2


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if parse(spec).stock is None])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_attends_is_known_beforehand(spec: str, family: str) -> None:
    one = subject(family, torch.float32)
    try:
        plan = parse(spec).fit(one.geometry, calibrated(one))
    except UnsupportedModelError as reason:
        pytest.skip(str(reason))
    for text in READINGS:
        reading = Reading.parse(text)
        with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
            cache = compressed.new_cache()
            feed(one.model, cache, token_ids(1, TOKENS), [TOKENS - STEPS] + [1] * STEPS)
            bodies = [layer.body.entries for layer in cache.kv_layers if isinstance(layer, CompressedLayer)]
            emptied = bodies and not any(bodies)  # a window alone is exact, whatever would read a body
            expected = "exact" if emptied else attends(plan, one.geometry, reading)
            assert cache.attended_by.endswith(expected), f"{text}: {cache.attended_by}"
            assert {name.split()[1] for name in cache.attended_by.split(" | ")} <= set(READS)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_sliding_layers_and_capped_scores(family: str) -> None:
    one = subject(family, torch.float32)
    cap = getattr(one.model.config, "attn_logit_softcapping", None)
    plan = parse("int:bits=4").fit(one.geometry)
    with CompressedModel(one.model, plan, one.geometry) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(1, TOKENS), [TOKENS - STEPS] + [1] * STEPS)
        assert cache.attended_by == attends(plan, one.geometry, softcap=cap)


@pytest.mark.parametrize(
    ("spec", "by"),
    [
        ("none", "numba exact"),
        ("int:bits=4", "numba int"),
        ("turboquant:bits=4", "numba levels"),
        ("ftc:bits=4,frame=after", "numba levels"),
        ("pca:rank=0.5,heads=each,frame=after", "numba latents"),
        ("pca:rank=0.5,heads=each,frame=after+kivi:bits=4", "numba int"),
        ("pca:rank=0.5,heads=each,frame=after+kivi:bits=4,group=24", "torch absorbed"),
        ("pca:rank=0.5+kivi:bits=4", "torch rebuilt"),
        ("ftc:bits=4", "numba rebuilt"),
        ("kvtc:bits=4", "numba rebuilt"),
        ("pca:rank=0.5", "torch rebuilt"),
        ("kivi:bits=2", "numba int"),
        ("kivi:bits=2,group=8", "torch decoded"),
        ("shadowkv:rank=0.5", "torch decoded"),
    ],
)
def test_the_words(spec: str, by: str) -> None:
    one = subject("llama", torch.float32)
    assert attends(parse(spec).fit(one.geometry, calibrated(one)), one.geometry) == by
