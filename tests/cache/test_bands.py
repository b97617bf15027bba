"""Keys in bands: what a cache stores relative to its blocks is read by kernels as plain torch reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from driving import Subject, calibrated, feed, left_padding, subject, token_ids, worst

from kvbench.cache.attach import CompressedModel, LayerPlan, Plan
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import bands_of
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.compressor import parse
from kvbench.kernels.reading import Reading

SPECS = [
    "ftc:bits=4,frame=bands,rope_block=64",
    "ftc:bits=4,frame=bands,rope_block=128,basis=joint",
    "ftc:bits=5,frame=bands,rope_block=64,pairs=1",
    "ftc:bits=4,frame=bands,rope_block=64,pairs=0",
    "kvtc:bits=4,frame=bands",
    "latent:rank=0.75,frame=bands+int:bits=8,group=16",
]
TOKENS, SPANS = 330, Spans(sinks=2, recent=8, block=8)


def decoded(
    spec: str, reading: Reading, family: str = "llama", padding: tuple[int, ...] = ()
) -> tuple[torch.Tensor, str]:
    """Logits of some steps on a prompt of several blocks, and what attended."""
    one = subject(family, torch.float32)
    return fed(one, replace(parse(spec), spans=SPANS).fit(one.geometry, calibrated(one)), reading, padding)


def fed(one: Subject, plan: Plan, reading: Reading, padding: tuple[int, ...] = ()) -> tuple[torch.Tensor, str]:
    rows = max(1, len(padding))
    ids = token_ids(rows, TOKENS)
    mask = left_padding(rows, TOKENS, padding) if padding else None
    with CompressedModel(one.model, plan, one.geometry, reading) as compressed:
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, [TOKENS - 24, *[1] * 24], mask)
        return logits[:, -24:], cache.attended_by


@pytest.mark.parametrize("spec", SPECS)
def test_the_kernel_reads_what_torch_reads(spec: str) -> None:
    read, by = decoded(spec, Reading())
    expected, slow = decoded(spec, Reading("reference"))
    assert (by, slow) == ("numba bands", "torch rebuilt")
    assert worst(read, expected) < 1e-3


@pytest.mark.parametrize("spec", SPECS[:2])
def test_every_row_has_references_of_its_own(spec: str) -> None:
    read, by = decoded(spec, Reading(), padding=(70, 3, 0))
    expected, _ = decoded(spec, Reading("reference"), padding=(70, 3, 0))
    assert by == "numba bands" and worst(read, expected) < 1e-3


def test_keys_that_are_stored_without_a_basis() -> None:
    """They were met by queries that nobody had turned back."""
    one, layers = subject("llama", torch.float32), {}
    for layer in one.geometry.compressible:
        sides = (SideCodec(layer.kv_heads, layer.head_dim, None, IntegerQuantizer(8, 16)) for _ in range(2))
        layers[layer.layer] = LayerPlan(Codec(*sides, bands=bands_of(layer, 64)))
    read, by = fed(one, Plan(layers, SPANS), Reading())
    expected, _ = fed(one, Plan(layers, SPANS), Reading("reference"))
    assert by == "numba bands" and worst(read, expected) < 1e-3
