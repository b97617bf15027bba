"""What will attend to a plan's caches, before there is one: every codec encodes a few tokens of noise to find out."""

from __future__ import annotations

import torch

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.cache.shared import MemberCodec
from kvbench.cache.way import ABSORBED, DECODED, Way, latent_way, way
from kvbench.codecs.codec import Codec
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.kernels.decode import kernels_taking
from kvbench.kernels.reading import DEFAULT, Reading


def attends(plan: Plan, geometry: ModelGeometry, reading: Reading = DEFAULT, softcap: float | None = None) -> str:
    """What attends to the stored tokens while one token per row is decoded, in the words of :mod:`kvbench.cache.reads`.

    Layers that are read in different ways are listed with " | " between, as in what a live cache reports
    (:attr:`kvbench.cache.cache.CompressedCache.attended_by`).
    """
    ways = {
        str(_layer_way(plan.layers.get(layer.layer), layer, geometry, reading, softcap)) for layer in geometry.layers
    }
    return " | ".join(sorted(ways))


def _layer_way(
    plan: LayerPlan | None, layer: LayerGeometry, geometry: ModelGeometry, reading: Reading, softcap: float | None
) -> Way:
    if layer.sliding_window is not None or plan is None or plan.codec is None:
        fast = reading.kernels and softcap is None
        kernels = kernels_taking(geometry.dtype, geometry.device) if fast else None
        width = layer.head_dim + layer.value_dim if layer.latent else layer.head_dim
        taken = kernels is not None and kernels.takes(width)
        return Way(kernels if taken else None, "latents" if layer.latent else "exact")
    return codec_way(plan.codec, layer, geometry, reading, softcap)


def codec_way(
    codec: Codec,
    layer: LayerGeometry,
    geometry: ModelGeometry,
    reading: Reading = DEFAULT,
    softcap: float | None = None,
) -> Way:
    """How what ``codec`` stores of a layer is read while decoding."""
    if not codec.rebuildable and not codec.decoupled:
        return ABSORBED if layer.latent else DECODED
    rotates = codec.rotates and layer.rotary_dims > 0
    rotation = (layer.turn or True) if rotates else False
    generator = torch.Generator().manual_seed(0)
    encoder, heads = codec, layer.kv_heads
    if isinstance(codec, MemberCodec):
        encoder, heads = codec.whole, heads * len(codec.members)
    keys, values = (
        torch.randn(1, heads, codec.block, width, generator=generator).to(geometry.device, geometry.dtype)
        for width in (layer.head_dim, layer.value_dim)
    )
    stored, query = encoder.encode(keys, values), (geometry.dtype, geometry.device)
    if layer.latent:
        fast = softcap is None and codec.absorbable and reading.absorbs
        return latent_way(codec.bound({}), stored, query, rotation, reading) if fast else ABSORBED
    return way(codec.bound({}), stored, query, rotation, softcap is None, reading)
