"""Keys in bands: what a cache stores relative to its blocks is read by kernels as plain torch reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from driving import calibrated, feed, left_padding, subject, token_ids, worst

from kvbench.cache.attach import CompressedModel
from kvbench.cache.spans import Spans
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
TOKENS = 330


def decoded(
    spec: str, reading: Reading, family: str = "llama", padding: tuple[int, ...] = ()
) -> tuple[torch.Tensor, str]:
    """Logits of some steps on a prompt of several blocks, and what attended."""
    one, rows = subject(family, torch.float32), max(1, len(padding))
    ids = token_ids(rows, TOKENS)
    mask = left_padding(rows, TOKENS, padding) if padding else None
    plan = replace(parse(spec), spans=Spans(sinks=2, recent=8, block=8)).fit(one.geometry, calibrated(one))
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
