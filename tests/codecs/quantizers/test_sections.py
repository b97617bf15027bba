"""Quantizers side by side do what each of them does alone."""

from __future__ import annotations

import torch

from kvbench.codecs.quantizers.base import Passthrough
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.codecs.quantizers.sections import Sections

PARTS = ((5, IntegerQuantizer(8, 16, "token")), (3, IntegerQuantizer(2, 4)), (2, Passthrough(torch.float32)))


def test_every_run_is_coded_by_its_own_quantizer() -> None:
    sections, latents = Sections(PARTS), torch.randn(2, 3, 32, 10)
    stored = sections.encode(latents)
    alone = [
        quantizer.decode(quantizer.encode(part))
        for part, (_, quantizer) in zip(latents.split([5, 3, 2], -1), PARTS, strict=True)
    ]
    assert torch.equal(sections.decode(stored), torch.cat(alone, -1))
    assert sections.block == 16


def test_bits_are_what_is_stored() -> None:
    sections = Sections(PARTS)
    stored = sections.encode(torch.randn(2, 3, 32, 10))
    cost = sections.cost(3, 10, torch.float32)
    payload = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(("codes", "latent")))
    assert payload * 8 == 2 * 32 * cost.payload
    assert sum(tensor.nbytes for tensor in stored.values()) * 8 == 2 * 32 * (cost.payload + cost.scales)
    assert sections.tensors() == []
