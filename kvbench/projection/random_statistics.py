"""Statistics of random keys and values, for fitting where there are no weights: sizes of what is fitted, not contents.

Most methods give out their bits or ranks by a budget, so how many bytes they take does not depend on the statistics.
Whether that is so for a method is found out by fitting it to layers whose spectra decay differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.calibration.statistics import LayerStatistics, Statistics
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry


def random_statistics(geometry: ModelGeometry, hidden: int, decays: Sequence[float]) -> Statistics:
    """Statistics of more tokens than there are channels, the same for equal layers with equal decays.

    In each layer the variance of the i-th principal component falls as i to minus its entry of ``decays``.
    """
    known = {layer.layer: _of_layer(layer, hidden, decay) for layer, decay in zip(geometry.layers, decays, strict=True)}
    return Statistics(known, "", "", "")


def _of_layer(layer: LayerGeometry, hidden: int, decay: float) -> LayerStatistics:
    generator = torch.Generator().manual_seed(0)
    key_width, value_width = layer.kv_heads * layer.head_dim, layer.kv_heads * layer.value_dim
    tokens = max(512, 2 * max(key_width, value_width))
    keys, values = (_states(tokens, width, decay, generator) for width in (key_width, value_width))
    rotated = _rotated(keys, layer)
    queries, rotated_queries = (_by_head(states, layer.kv_heads) for states in (keys, rotated))
    inputs = min(hidden, key_width)
    key_weight, value_weight = (_states(inputs, width, decay, generator).T for width in (key_width, value_width))
    return LayerStatistics(
        count=torch.tensor(float(tokens), dtype=torch.float64),
        key_sum=keys.sum(0),
        key_second=keys.T @ keys,
        rotated_key_sum=rotated.sum(0),
        rotated_key_second=rotated.T @ rotated,
        value_sum=values.sum(0),
        value_second=values.T @ values,
        query_second=queries,
        rotated_query_second=rotated_queries,
        fisher_key=torch.diag(torch.rand(key_width, generator=generator, dtype=torch.float64) + 0.1) * tokens,
        fisher_rotated_key=torch.diag(torch.rand(key_width, generator=generator, dtype=torch.float64) + 0.1) * tokens,
        fisher_value=torch.diag(torch.rand(value_width, generator=generator, dtype=torch.float64) + 0.1) * tokens,
        key_value_second=keys.T @ values,
        input_abs_sum=torch.full((inputs,), float(tokens), dtype=torch.float64),
        key_weight=key_weight,
        key_bias=torch.zeros(key_width, dtype=torch.float64),
        value_weight=value_weight,
        value_bias=torch.zeros(value_width, dtype=torch.float64),
        output_gram=_by_head(values, layer.kv_heads),
        query_sum=torch.zeros(layer.heads, layer.head_dim, dtype=torch.float64),
        head_query_second=queries.repeat_interleave(layer.group_size, 0),
    )


def _states(tokens: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """(tokens, width), with the wanted spectrum in a basis that is none of the channels: reflected at random."""
    noise = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    states = noise * torch.arange(1, width + 1, dtype=torch.float64).pow(-decay / 2)
    normal = torch.nn.functional.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)
    return states - 2 * torch.outer(states @ normal, normal)


def _rotated(keys: Tensor, layer: LayerGeometry) -> Tensor:
    """Each key turned by RoPE at a position of its own; as it is where the turn is not known."""
    if layer.turn is None or not layer.angles:
        return keys
    heads = keys.view(len(keys), layer.kv_heads, layer.head_dim)
    rotating, rest = heads.split([layer.rotary_dims, layer.head_dim - layer.rotary_dims], -1)
    angles = torch.outer(torch.arange(len(keys)).double(), torch.tensor(layer.angles, dtype=torch.float64))[:, None]
    signs = torch.tensor(layer.turn.signs, dtype=torch.float64)
    turned = rotating * angles.cos() + signs * rotating[..., list(layer.turn.partners)] * angles.sin()
    return torch.cat([turned, rest], -1).flatten(1)


def _by_head(states: Tensor, kv_heads: int) -> Tensor:
    """Second moments (kv_heads, channels, channels) of every head's channels."""
    heads = states.unflatten(1, (kv_heads, -1)).transpose(0, 1)
    return heads.mT @ heads
