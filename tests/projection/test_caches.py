"""Bytes of caches on paper are those of real ones: by hand, and against plans that were fitted to real statistics."""

from __future__ import annotations

import pytest
import torch
from default_specs import ALL_SPECS
from driving import calibrated, subject

from kvbench.cache.prediction import predict_bytes
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.models.public_configs import read_config
from kvbench.projection.caches import cache_cost
from kvbench.projection.geometry import device_geometry
from kvbench.projection.shape import Shape, shape_of

WIDE = {"layers": 4, "hidden": 96, "heads": 6, "kv_heads": 3, "head_dim": 32}
REFUSED = ("lorc:", "kvtc:bits=4,layers=2", "palu:rank=0.75+kivi:bits=4")
"""What gives out bytes by the statistics of the layers, or runs the model across layers."""


def public(name: str) -> Shape:
    return shape_of(*read_config(name))


@pytest.mark.parametrize(
    ("model", "spec", "bytes_per_token"),
    [
        ("deepseek-v3", "mla", 61 * (512 + 64) * 2),  # 70,272: 576 elements a layer in bf16
        ("deepseek-v3", "none", 61 * 128 * (128 + 64 + 128) * 2),  # every head's keys and values, decompressed
        ("deepseek-v2-lite", "mla", 27 * (512 + 64) * 2),
        ("llama-3.1-8b", "none", 32 * 8 * (128 + 128) * 2),  # 131,072
        ("smollm2-135m", "none", 30 * 3 * (64 + 64) * 2),
    ],
)
def test_bytes_a_token_by_hand(model: str, spec: str, bytes_per_token: int):
    cost = cache_cost(spec, public(model), 1, 2)
    assert cost.size(1000, 3) == 3 * 1000 * bytes_per_token
    assert (cost.basis_bytes, cost.basis_read) == (0, 0)


def test_the_goldens_in_figures():
    assert cache_cost("mla", public("deepseek-v3"), 1, 2).size(1, 1) == 70_272
    assert cache_cost("none", public("llama-3.1-8b"), 1, 2).size(1, 1) == 131_072


def test_integers_on_a_latent_by_hand():
    """int:bits=4 codes groups of 32 channels with 2 + 2 bytes each: 5 bits of each of 576 channels a layer; 4 sinks and
    up to 64 + 32 recent tokens stay in bf16."""
    cost = cache_cost("int:bits=4,group=32", public("deepseek-v3"), 1, 2)
    body = (8192 - 4 - 64) // 32 * 32
    assert cost.size(8192, 1) == 61 * 576 * (body * 5 / 8 + (4 + 64 + 32) * 2)
    assert cost.stored == "latent and RoPE key, coded"


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if not spec.startswith("hf")])
def test_projected_bytes_are_those_of_a_fitted_plan(spec: str):
    """The model's own statistics, and its geometry as probed, give the same size; where ranks are given out over all
    layers, up to their rounding."""
    one = subject("llama", torch.float32, **WIDE)
    shape = shape_of("llama", one.model.config)
    if spec.startswith(REFUSED):
        with pytest.raises(KvbenchError, match="statistics"):
            cache_cost(spec, shape, 1, 4)
        return
    try:
        plan = parse(spec).fit(one.geometry, lambda: calibrated(one))
    except KvbenchError:
        pytest.skip("does not fit this model")
    cost = cache_cost(spec, shape, 1, 4)
    for tokens, rows in ((50, 1), (1024, 2)):
        assert cost.size(tokens, rows) == pytest.approx(predict_bytes(plan, one.geometry, tokens, rows), rel=0.02)
    assert cost.basis_bytes >= 0.9 * plan.model_level_bytes(), "the slow decay of random spectra keeps more components"


@pytest.mark.parametrize(
    "family", ["llama", "qwen2_swa", "qwen3", "mistral", "gemma2", "gemma3", "mixtral", "qwen3_moe"]
)
def test_a_config_tells_the_geometry_that_is_measured(family: str):
    one = subject(family, torch.float32)
    geometry = device_geometry(shape_of(family, one.model.config), 1, torch.float32)
    assert geometry.dynamic_rope == one.geometry.dynamic_rope and len(geometry.layers) == len(one.geometry.layers)
    for projected, probed in zip(geometry.layers, one.geometry.layers, strict=True):
        assert projected.angles == pytest.approx(probed.angles)
        same = ("heads", "kv_heads", "head_dim", "value_dim", "rotary_dims", "sliding_window", "turn")
        assert [getattr(projected, name) for name in same] == [getattr(probed, name) for name in same]


@pytest.mark.parametrize("spec", ["none", "int:bits=4,group=32"])
def test_devices_share_kv_heads_and_each_has_at_least_one(spec: str):
    shape = public("llama-3.1-8b")
    whole, quarter, sixteenth = (cache_cost(spec, shape, devices, 2) for devices in (1, 4, 16))
    assert quarter.size(4096, 1) == pytest.approx(whole.size(4096, 1) / 4, rel=0.02)
    assert sixteenth.size(4096, 1) == pytest.approx(whole.size(4096, 1) / 8, rel=0.02)


def test_every_device_has_the_whole_latent_and_its_share_of_the_work():
    one, eight = (cache_cost("mla", public("deepseek-v3"), devices, 2) for devices in (1, 8))
    assert eight.size(4096, 2) == one.size(4096, 2)
    assert eight.operations(4096) == one.operations(4096) / 8


def test_operations_by_hand():
    """A head's score and sum over the 576 and 512 channels of the latent, or over 192 and 128 of its own."""
    shape = public("deepseek-v3")
    assert cache_cost("mla", shape, 1, 2).operations(100) == 61 * 100 * 128 * 2 * (576 + 512)
    assert cache_cost("none", shape, 1, 2).operations(100) == 61 * 100 * 128 * 2 * (192 + 128)


def test_what_rebuilds_keys_does_more_than_what_reads_latents():
    """kvtc before RoPE rebuilds every key for each step; in bands it rebuilds only fast pairs."""
    shape = public("smollm2-135m")
    before, bands = (cache_cost(f"kvtc:bits=3,frame={frame}", shape, 1, 2) for frame in ("before", "bands"))
    none = cache_cost("none", shape, 1, 2)
    assert before.operations(8192) > bands.operations(8192) > none.operations(8192)


def test_a_sliding_window_is_all_that_is_kept_and_read():
    shape = shape_of("mistral", subject("mistral", torch.float32).model.config)
    cost = cache_cost("none", shape, 1, 2)
    assert cost.size(100, 1) == cost.size(8, 1) and cost.operations(100) == cost.operations(8)


@pytest.mark.parametrize(
    ("model", "spec", "told"),
    [
        ("smollm2-135m", "mla", "smollm2-135m was not trained with multi-head latent attention"),
        ("deepseek-v3", "mla:latent=64,rope_dims=8", "has a latent of its own"),
        ("deepseek-v3", "none:dtype=float16", "has a latent of its own"),
        ("smollm2-135m", "hf", "only what kvbench fits by itself"),
        (
            "smollm2-135m",
            "kvtc:bits=3,allocate=sensitivity",
            "cannot be projected on smollm2-135m: allocate=sensitivity",
        ),
        ("smollm2-135m", "lorc:rank=0.5", "depends on the model's statistics"),
        ("smollm2-135m", "kvtc:bits=3,layers=2", "cannot be projected"),
    ],
)
def test_what_cannot_be_projected_is_refused(model: str, spec: str, told: str):
    with pytest.raises(KvbenchError, match=told):
        cache_cost(spec, public(model), 1, 2)
