"""What a kernel is told of a body is kept from step to step, and only as long as it is true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from driving import calibrated, subject, token_ids
from fp64 import one_thread

from kvbench.cache.body_attention import BodyAttention, BodyReader
from kvbench.cache.compressed import CompressedLayer
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.compressor import parse
from kvbench.kernels.choice import kernels_for
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import exact_prompt

__all__ = ["one_thread"]

SPANS = "sinks=2,recent=8,block=8"
PROMPT, STEPS = 60, 20


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of entries that attention was prepared for."""
    entries: list[int] = []
    real = BodyAttention.prepare

    def counted(self: BodyAttention, *rest: Any) -> Any:
        entries.append(rest[2])
        return real(self, *rest)

    monkeypatch.setattr(BodyAttention, "prepare", counted)
    return entries


def decoded(spec: str, keep: bool = True) -> torch.Tensor:
    """Logits of some steps after a prompt; without ``keep`` nothing is kept between steps."""
    one, ids = subject("llama", torch.float32), token_ids(2, PROMPT + STEPS)
    plan = parse(spec).fit(one.geometry, lambda: calibrated(one))
    arm, logits = Arm.of(spec, one.model, one.geometry, plan), []
    with torch.no_grad(), arm.entered():
        cache = arm.fill(exact_prompt(one.model, one.geometry, ids[:, :PROMPT]))
        for step in range(PROMPT, PROMPT + STEPS):
            if not keep:
                for layer in cache.layers:
                    assert isinstance(layer, CompressedLayer)
                    layer.reader = BodyReader()
            logits.append(arm.forward(ids[:, step : step + 1], cache))
    return torch.cat(logits, 1)


@pytest.mark.skipif(kernels_for(torch.device("cpu")) is None, reason="no decode kernels on this machine")
@pytest.mark.parametrize("spec", ["int:bits=4", "kvtc:bits=4", "ftc:bits=4,frame=bands,rope_block=64"])
def test_it_is_worked_out_once_per_body(prepared: list[int], spec: str) -> None:
    layers = len(subject("llama", torch.float32).geometry.layers)
    kept = decoded(f"{spec},{SPANS}")
    assert len(prepared) == layers * len(set(prepared)), "a body of the same length was prepared for twice"
    assert len(set(prepared)) > 2, "blocks should have left the window meanwhile"
    assert torch.equal(kept, decoded(f"{spec},{SPANS}", keep=False))


@pytest.mark.skipif(kernels_for(torch.device("cpu")) is None, reason="no decode kernels on this machine")
def test_what_was_made_for_the_view_is_not_known_by_address_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer may hand in scales that nobody else holds."""
    real = IntegerQuantizer.coded

    def copied(self: IntegerQuantizer, stored: Any) -> Coded:
        coded = real(self, stored)
        assert coded.scale is not None
        scale = torch.empty_strided(coded.scale.shape, coded.scale.stride(), dtype=coded.scale.dtype)
        return replace(coded, scale=scale.copy_(coded.scale))

    expected = decoded(f"int:bits=4,{SPANS}")
    monkeypatch.setattr(IntegerQuantizer, "coded", copied)
    assert torch.allclose(decoded(f"int:bits=4,{SPANS}"), expected, atol=1e-5)
