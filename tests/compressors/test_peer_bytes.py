"""What quantization and eviction peers really hold, in bytes."""

from __future__ import annotations

import pytest
import torch
from driving import Subject, calibrated, feed, subject, token_ids

from kvbench.cache.attach import Plan
from kvbench.cache.cache import CompressedCache, reachable_tensors
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.compressors.compressor import parse
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry

pytestmark = pytest.mark.usefixtures("no_grad")
EVICTIONS = ("snapkv:budget=0.25", "tova:budget=0.25", "knorm:budget=0.25", "random:budget=0.25")
SPECS = (
    "fp8",
    "fp8:format=e5m2",
    "cast:to=bf16",
    "turboquant:bits=2",
    "kvquant:bits=3",
    "kvquant:bits=4,outliers=0",
    "hadamard+int:bits=4",
    "random-projection:rank=0.5",
    "truncate:rank=0.5",
    "streaming",
    "expected-attention:budget=0.25",
    "snapkv:budget=0.3+int:bits=8",
    "knorm:budget=0.5+pca:rank=0.5",
    "expected-attention:budget=0.5+kvquant:bits=3",
    *EVICTIONS,
)


def fitted(one: Subject, spec: str) -> Plan:
    compressor = parse(spec)
    return compressor.fit(one.geometry, lambda: calibrated(one))


def filled(one: Subject, plan: Plan, tokens: int, rows: int) -> CompressedCache:
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, token_ids(rows, tokens), [tokens])
    return cache


@pytest.mark.parametrize("spec", SPECS)
def test_predicted_equals_allocated_at_a_thousand_tokens(spec: str) -> None:
    one = subject("llama", torch.float32)
    plan = fitted(one, spec)
    allocated = filled(one, plan, 1024, rows=2).nbytes()
    assert allocated.workspace == 0
    assert allocated.total == pytest.approx(predict_bytes(plan, one.geometry, 1024, batch=2), rel=0.01)


@pytest.mark.parametrize("spec", EVICTIONS)
def test_evicted_memory_is_gone(spec: str) -> None:
    """No tensor that the cache can reach is as large as a layer's prompt, nor are all of them together."""
    one, tokens = subject("llama", torch.float32), 2000
    cache = filled(one, fitted(one, spec), tokens, rows=1)
    prompt = one.geometry.elements(tokens) * 4
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in reachable_tensors(cache)
    }
    assert sum(storages.values()) == cache.nbytes().total < 0.32 * prompt
    assert max(storages.values()) < 0.3 * prompt / (2 * len(one.geometry.layers))


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("fp8", 8 + 16 / 16),
        ("fp8:group=8", 8 + 2 * 16 / 16),
        ("fp8:group=6,scale=float32", 8 + 3 * 32 / 16),
        ("cast:to=fp16", 16),
        ("turboquant:bits=3", 3 + 16 / 16),
        ("kvquant:bits=3,outliers=0", 3 + 32 / (2 * 16) / 2),  # two heads of 16, scales for values only
        ("kvquant:bits=3", 3 + 32 / (2 * 16) / 2 + 32 * 5 / 512),  # 5 outliers in a block of 512
        ("knorm:budget=0.25", 0.25 * (32 + 32 / 32)),  # a slot for 16 key and 16 value elements
        ("streaming", 0),
    ],
)
def test_bits_per_element_by_hand(spec: str, bits: float) -> None:
    one = subject("llama", torch.float32)
    assert one.geometry.layers[0].kv_heads == 2 and one.geometry.layers[0].head_dim == 16
    assert body_bits_per_element(fitted(one, spec), one.geometry) == pytest.approx(bits)


def test_flash_mlas_layout_takes_656_bytes() -> None:
    """512 fp8 values, 4 scales in fp32 and a RoPE key of 64 channels in bf16 (FlashMLA's README, "FP8 KV cache")."""
    layer = LayerGeometry(0, 128, 1, 64, 512, 64, 0, None, latent=True)
    geometry = ModelGeometry((layer,), torch.bfloat16, torch.device("cpu"), dynamic_rope=False)
    plan = parse("fp8:group=128,scale=float32,side=values").fit(geometry)
    assert body_bits_per_element(plan, geometry) == 8 * 656 / 576


def test_a_rotation_is_kept_once_for_all_heads_and_layers() -> None:
    one = subject("llama", torch.float32)
    dim = one.geometry.layers[0].head_dim
    whole = 2 * dim * dim + 2 * dim  # fp16: one matrix for there and back, and a mean of zeros
    assert fitted(one, "hadamard").model_level_bytes() == whole
    assert fitted(one, "turboquant:bits=3").model_level_bytes() == whole + 8 * 4


def test_moments_of_queries_count_at_model_level() -> None:
    one = subject("llama", torch.float32)
    layer = one.geometry.layers[0]
    per_layer = layer.heads * (layer.head_dim + layer.head_dim**2)
    assert fitted(one, "expected-attention:budget=0.5").model_level_bytes() == len(one.geometry.layers) * per_layer * 4
