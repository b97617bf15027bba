"""Bases as parameters: what comes back, cut and whole, and which plans have none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from driving import Subject, calibrated, feed, subject, token_ids

from kvbench.cache.attach import Plan
from kvbench.cache.cache import CacheBytes
from kvbench.codecs.codec import SideCodec
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.healing.bases import Bases
from kvbench.healing.healable import require_healable
from kvbench.healing.sides import healed_sides


@pytest.fixture
def model() -> Subject:
    return subject("llama", torch.float32)


def fitted(one: Subject, spec: str) -> Plan:
    return parse(spec).fit(one.geometry, lambda: calibrated(one))


def sides(plan: Plan) -> list[SideCodec]:
    return [side for layer in plan.layers.values() for side in healed_sides(layer.codec).values()]


def cache_bytes(one: Subject, plan: Plan) -> CacheBytes:
    with one.attach_untested(plan) as attached:
        cache = attached.new_cache()
        feed(one.model, cache, token_ids(1, 160), [160])
        return cache.nbytes()


def tensors(plan: Plan) -> list[torch.Tensor]:
    return [tensor for side in sides(plan) for tensor in side.transform.tensors()]


@pytest.mark.parametrize("spec", ["pca:rank=0.5", "kqsvd:rank=0.5", "mla:latent=24,rope_dims=8", "matryoshka:rank=0.4"])
def test_untrained_bases_come_back_as_they_were(model: Subject, spec: str) -> None:
    plan = fitted(model, spec)
    kept = Bases(plan).kept()
    pairs = list(zip(tensors(kept), tensors(plan), strict=True))
    assert pairs and all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs)
    assert kept.spans == plan.spans and kept.frame == plan.frame
    assert kept.model_level_bytes() <= 2 * plan.model_level_bytes()


@pytest.mark.parametrize("quantizer", ["", "+int:bits=4", "+fp8"])
def test_a_cut_is_the_plan_of_that_rank(model: Subject, quantizer: str) -> None:
    whole, half = fitted(model, f"pca:rank=1{quantizer}"), fitted(model, f"pca:rank=0.5{quantizer}")
    cut = Bases(whole).kept(0.5)
    for some, others in zip(tensors(cut), tensors(half), strict=True):  # rounded to 16 bit by way of 32
        assert some.dtype == torch.float16
        torch.testing.assert_close(some, others, rtol=1e-3, atol=1e-6)
    assert half.model_level_bytes() < cut.model_level_bytes() < 2 * half.model_level_bytes(), "encoders are kept, too"
    assert cache_bytes(model, cut) == cache_bytes(model, half)


def test_codebooks_are_cut_with_their_components(model: Subject) -> None:
    plan = fitted(model, "kvtc:bits=3")
    cut = Bases(plan).kept(0.5)
    for side, whole in zip(sides(cut), sides(plan), strict=True):
        assert side.rank == max(1, round(0.5 * whole.rank))
        assert side.quantizer.widths == whole.quantizer.widths[: side.rank]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("int:bits=4", "int:bits=4 cannot be healed: it has no bases; heal a transform, such as pca:rank=0.5"),
        ("snapkv:budget=0.5+pca:rank=0.5", "drops tokens, which no basis brings back"),
        ("streaming", "drops tokens"),
        ("shadowkv:rank=0.5", "fits its bases to every prompt anew"),
        ("xkv:rank=0.5,layers=2", "cannot be healed: it"),
        ("kvtc:bits=4,layers=2", "stores layers together"),
        ("pca:rank=0.5,frame=bands", "stores keys in bands; give frame=before"),
    ],
)
def test_what_has_no_bases_of_its_own_is_refused(model: Subject, spec: str, reason: str) -> None:
    with pytest.raises(KvbenchError, match=r"^[^\n]*$") as refused:
        require_healable(spec, fitted(model, spec), model.geometry)
    assert reason in str(refused.value)


def test_ranks_are_cut_where_the_quantizer_can_be(model: Subject) -> None:
    for spec in ("pca:rank=1", "pca:rank=1+int:bits=4", "kvtc:bits=3"):
        require_healable(spec, fitted(model, spec), model.geometry, nested=True)
    spec = "kvtc:bits=4,coder=blocks"
    require_healable(spec, fitted(model, spec), model.geometry)
    with pytest.raises(KvbenchError, match="has a quantizer made for its rank; leave out --ranks"):
        require_healable(spec, fitted(model, spec), model.geometry, nested=True)


def test_layers_that_read_others_are_refused(model: Subject) -> None:
    geometry = replace(model.geometry, readers={1: 0})
    with pytest.raises(UnsupportedModelError, match="layer 1 reads the keys and values of layer 0"):
        require_healable("pca:rank=0.5", fitted(model, "pca:rank=0.5"), geometry)
