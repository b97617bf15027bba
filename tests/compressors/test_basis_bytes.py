"""Bytes of bases over a whole plan, and what halving them does to a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from default_specs import LOSSY_SPECS
from driving import Subject, calibrated, feed, subject, token_ids

from kvbench.cache.attach import Plan
from kvbench.compressors.compressor import parse
from kvbench.compressors.draft import Draft
from kvbench.compressors.methods.saved import PLAN
from kvbench.compressors.plan_file import dump_plan

ORTHONORMAL = [
    "pca:rank=0.5",
    "palu:rank=0.5,group=2",
    "kvtc:bits=4",
    "recalkv:rank=0.5,group=2",
    "rope-commuting:rank=0.5",
]
WEIGHTED = ["ftc:bits=4", "latent:rank=0.5", "kqsvd:rank=0.5"]


def model(dtype: torch.dtype = torch.float32) -> Subject:
    return subject("llama", dtype, hidden=64, heads=4, kv_heads=2, head_dim=32)


def fitted(spec: str, dtype: torch.dtype = torch.float32) -> Plan:
    return parse(spec + ",recent=8,block=8").fit(model(dtype).geometry, calibrated(model(dtype)))


def matrices(plan: Plan) -> int:
    """Numbers in all encoders and decoders."""
    sides = [side for layer in plan.layers.values() if layer.codec is not None for side in layer.codec.sides.values()]
    return sum(2 * side.transform.decoder.numel() for side in sides if side.transform is not None)


@pytest.mark.parametrize("spec", ORTHONORMAL)
def test_an_orthonormal_method_keeps_a_quarter_of_two_fp32_bases(spec: str) -> None:
    plan = fitted(spec)
    assert plan.model_level_bytes() < 0.3 * 4 * matrices(plan)


@pytest.mark.parametrize("spec", WEIGHTED)
def test_a_weighted_method_keeps_half_of_two_fp32_bases(spec: str) -> None:
    plan = fitted(spec)
    small = 4 * sum(
        tensor.numel()
        for layer_plan in plan.layers.values()
        for tensor in layer_plan.codec.tensors()
        if tensor.dim() == 1
    )
    assert plan.model_level_bytes() - small < 0.52 * 4 * matrices(plan)


@pytest.mark.parametrize("spec", [*ORTHONORMAL, *WEIGHTED])
def test_an_fp64_model_keeps_fp64_bases(spec: str) -> None:
    for layer_plan in fitted(spec, torch.float64).layers.values():
        assert {tensor.dtype for tensor in layer_plan.codec.values.transform.tensors()} == {torch.float64}


@pytest.mark.parametrize("spec", LOSSY_SPECS)
def test_saved_bases_come_back_in_their_dtype_and_memory(spec: str, tmp_path: Path) -> None:
    one = model()
    plan = parse(spec).fit(one.geometry, calibrated(one))
    (tmp_path / PLAN).write_bytes(dump_plan(plan, one.geometry, "some model", "0" * 64))
    again = parse(f"saved:path={tmp_path}").fit(one.geometry)
    assert again.model_level_bytes() == plan.model_level_bytes()
    for layer, layer_plan in plan.layers.items():
        kept, back = layer_plan.codec.tensors(), again.layers[layer].codec.tensors()
        assert [(tensor.dtype, tensor.stride()) for tensor in kept] == [
            (tensor.dtype, tensor.stride()) for tensor in back
        ]


@pytest.mark.parametrize("spec", [*ORTHONORMAL, *WEIGHTED, "pca:rank=0.5,heads=each,frame=after+int:bits=8,group=16"])
def test_divergence_moves_by_less_than_a_hundredth(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = divergence(spec)
    monkeypatch.setattr(Draft, "basis_dtype", torch.float32)
    wide = divergence(spec)
    assert wide > 0 and narrow == pytest.approx(wide, rel=0.01, abs=2e-7)


@torch.no_grad()
def divergence(spec: str) -> float:
    """KLD of the model's predictions after a compressed prompt."""
    one, ids = model(), token_ids(12, 160)
    first, *rest = spec.split("+")
    plan = parse("+".join([first + ",recent=8,block=8", *rest])).fit(one.geometry, calibrated(one))
    logits = []
    for each in (parse("none").fit(one.geometry), plan):
        with one.attach_untested(each) as attached:
            cache = attached.new_cache()
            feed(one.model, cache, ids, [128])
            logits.append(feed(one.model, cache, ids, [16, 16], start=128).double().log_softmax(-1))
    return float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())
