"""A rotation of latents: absorbed into the basis, nothing lost, and fewer bits for the same error."""

from __future__ import annotations

import pytest
import torch
from driving import calibrated, feed, subject, token_ids

from kvbench.cache.attach import Plan
from kvbench.cache.prediction import predict_bytes
from kvbench.cache.spans import Spans
from kvbench.codecs.codec import Codec
from kvbench.compressors.compressor import parse

pytestmark = pytest.mark.usefixtures("fp64")
SPANS = Spans(sinks=2, recent=9, block=8)


def plan(spec: str) -> Plan:
    one, compressor = subject("llama", head_dim=32), parse(spec)
    return Plan(compressor.fit(one.geometry, calibrated(one)).layers, SPANS)


def codec(spec: str) -> Codec:
    fitted = plan(spec).layers[0].codec
    assert fitted is not None
    return fitted


def logits(spec: str) -> torch.Tensor:
    one, ids = subject("llama", head_dim=32), token_ids(2, 100)
    with one.attach_untested(plan(spec)) as compressed:
        return feed(one.model, compressed.new_cache(), ids, [90, 10])[:, 90:]


@pytest.mark.parametrize(
    "method", ["pca:rank=0.5", "palu:rank=0.5,hadamard=false", "kqsvd:rank=0.4", "latent:rank=0.3"]
)
def test_the_same_subspace_and_the_same_bytes(method: str) -> None:
    assert float((logits(method) - logits(f"{method}+hadamard")).abs().max()) < 1e-9
    geometry = subject("llama", head_dim=32).geometry
    sizes = [predict_bytes(plan(method + rest), geometry, 1000) for rest in ("+int:bits=3", "+hadamard+int:bits=3")]
    assert sizes[0] == sizes[1]


def test_latents_of_a_prompts_basis_are_rotated() -> None:
    assert float((logits("shadowkv:rank=0.5") - logits("shadowkv:rank=0.5+hadamard")).abs().max()) < 1e-9


def test_palu_rotates_its_latents_unless_told_not_to() -> None:
    rotated, plain = codec("palu:rank=0.5"), codec("palu:rank=0.5,hadamard=false")
    spread = []
    for each in (rotated, plain):
        states = torch.randn(1, each.keys.kv_heads, 64, each.keys.head_dim, generator=torch.Generator().manual_seed(0))
        assert each.keys.transform is not None
        axes = each.keys.transform
        assert torch.allclose(axes.encoder.transpose(1, 2) @ axes.encoder, torch.eye(axes.rank).double(), atol=1e-9)
        spread.append(axes.forward(states.double()))
    assert spread[0].norm() == pytest.approx(float(spread[1].norm()))  # rotated, not another subspace
    assert not torch.allclose(spread[0], spread[1])


def test_joint_keys_get_no_rotation_of_their_own() -> None:
    assert codec("latent:rank=0.5+hadamard").keys.transform is None
    assert codec("shadowkv:rank=0.5+hadamard").values.transform is not None
