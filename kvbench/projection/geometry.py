"""What each device's attention looks like to a cache, from a config: probed on a narrow copy of the model.

The copy has the model's heads, RoPE and windows, and next to nothing else, so that it is built in a moment.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM

from kvbench.hooks.geometry import LayerGeometry, ModelGeometry, probe_geometry
from kvbench.projection.shape import Latent, Shape

_NARROW = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "vocab_size": 16}
_FEW = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "mlp_only_layers": []}
_CPU = torch.device("cpu")


def device_geometry(shape: Shape, tensor_parallel: int, dtype: torch.dtype) -> ModelGeometry:
    """The geometry that one of ``tensor_parallel`` devices sees: its share of the heads, at least one KV head.

    With multi-head latent attention it is that of the latents, which every device has whole: one KV head, whose key is
    the rotated channels and whose value is the latent.
    """
    heads = shape.heads // tensor_parallel
    if shape.latent is not None:
        layers = tuple(_latent_layer(index, heads, shape.latent) for index in range(shape.layers))
        return ModelGeometry(layers, dtype, _CPU, dynamic_rope=False)
    kv_heads = max(1, shape.kv_heads // tensor_parallel)
    probed = _probed(shape)
    kinds = {layer.sliding_window: layer for layer in probed.layers}
    layers = tuple(
        replace(kinds[window], layer=index, heads=heads, kv_heads=kv_heads)
        for index, window in enumerate(shape.windows)
    )
    return replace(probed, layers=layers, dtype=dtype)


def _latent_layer(index: int, heads: int, latent: Latent) -> LayerGeometry:
    return LayerGeometry(index, heads, 1, latent.rope, latent.rank, latent.rope, 0, None, latent=True)


def _probed(shape: Shape) -> ModelGeometry:
    """One layer of every kind."""
    config = copy.deepcopy(shape.config)
    first = sorted({window: index for index, window in reversed(list(enumerate(shape.windows)))}.values())
    kinds = getattr(config, "layer_types", None)
    for name, value in {**_NARROW, **_FEW}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if kinds is not None:
        config.layer_types = [kinds[index] for index in first]
    config.num_hidden_layers, config.head_dim, config.pad_token_id = len(first), shape.head_dim, None
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return probe_geometry(model.eval())
