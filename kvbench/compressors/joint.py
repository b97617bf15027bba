"""What the joint-latent methods share: a layer whose keys and values are one side, and its statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.codecs.joint import JointCodec
from kvbench.codecs.transforms.joint import joint_matrix, side_by_side
from kvbench.compressors.draft import LayerDraft, SideDraft


def join_sides(layer: LayerDraft, codec: type[JointCodec] = JointCodec) -> SideDraft:
    """Give ``layer`` a joint codec; the side draft of keys and values together."""
    layer.codec, layer.keys.joint = codec, True
    layer.values.head_dim += layer.keys.head_dim
    return layer.values


def joint_moment(layer: LayerDraft, nope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Second moment (K + V, K + V) and centre (K + V,) of keys before RoPE beside values, head by head.

    Keys are taken around their mean and values around zero (see :mod:`kvbench.codecs.transforms.fitting`). The
    projection ``nope`` (K, K) onto the part of the keys without RoPE is applied to them first.
    """
    statistics, heads = layer.calibrated, layer.geometry.kv_heads
    mean, keys = statistics.mean("key"), statistics.covariance("key")
    cross = statistics.measured("key_value_second") / statistics.count - torch.outer(mean, statistics.mean("value"))
    if nope is not None:
        mean, keys, cross = nope @ mean, nope @ keys @ nope, nope @ cross
    values = statistics.second("value")
    centre = side_by_side(mean, torch.zeros_like(statistics.mean("value")), heads)
    return joint_matrix(keys, values, heads, cross), centre


def band_index(layer: LayerDraft) -> tuple[Tensor, Tensor]:
    """Where the fast band and everything else lie in the order [k₁ | v₁ | k₂ | v₂ …] of :func:`joint_moment`."""
    geometry = layer.geometry
    assert layer.bands is not None
    fast = torch.zeros(geometry.kv_heads, geometry.head_dim + geometry.value_dim, dtype=torch.bool)
    fast[:, layer.bands.fast] = True
    return fast.flatten().nonzero()[:, 0], (~fast).flatten().nonzero()[:, 0]
