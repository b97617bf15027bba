"""What a step of decode attention computes of one row and layer, by how stored tokens are read, and reads of bases."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from kvbench.cache.way import Way
from kvbench.codecs.codec import Codec
from kvbench.codecs.frame import Bands
from kvbench.hooks.geometry import LayerGeometry


def over_heads(layer: LayerGeometry, tokens: int) -> int:
    """Of one row's attention over ``tokens`` as they are cached without compression: scores, and the sum of values."""
    return layer.heads * tokens * layer.scored_and_summed


def over_body(codec: Codec, layer: LayerGeometry, chosen: Way, entries: int) -> int:
    """Of one row's attention over ``entries`` that ``codec`` stored and that are read as ``chosen`` says.

    Rebuilding keys and values counts where it is done; unpacking codes does not.
    """
    if layer.latent and codec.absorbable:
        return _over_latents(layer, codec, entries)
    if codec.decoupled and chosen.in_latents:
        return _decoupled(layer, codec, entries)
    if chosen.in_latents and not layer.latent:
        into = sum(
            layer.heads * side.head_dim * side.rank for side in codec.sides.values() if side.transform is not None
        )
        return layer.heads * entries * (codec.keys.rank + codec.values.rank) + into
    bases = [side for side in codec.sides.values() if side.transform is not None or side.online is not None]
    rotates = codec.rotates and layer.rotary_dims > 0
    rotation = 2 * layer.kv_heads * layer.rotary_dims if rotates else 0
    if chosen.reads == "rebuilt":
        keys, values = codec.latents["keys"], codec.latents["values"]
        rebuilt = keys.side.rank * layer.kv_heads * keys.width if keys.side.transform is not None else 0
        out_of = layer.heads * values.side.rank * values.width if values.side.transform is not None else 0
        return entries * (rebuilt + rotation + layer.heads * (layer.head_dim + values.side.rank)) + out_of
    if chosen.reads == "bands" and codec.bands is not None:
        return _in_bands(layer, codec, codec.bands, entries)
    rebuilt = sum(side.rank * side.kv_heads * side.head_dim for side in bases)
    return over_heads(layer, entries) + entries * (rebuilt + rotation)


def _over_latents(layer: LayerGeometry, codec: Codec, entries: int) -> int:
    """RoPE keys rebuilt and rotated; latents met in the codec's own, which queries are taken into and sums out of."""
    keys, values = codec.keys, codec.values
    rotated = 2 * layer.rotary_dims if codec.rotates else 0
    rebuilt = keys.rank * keys.head_dim if keys.transform is not None else 0
    through = 2 * layer.heads * values.head_dim * values.rank if values.transform is not None else 0
    return entries * (rebuilt + rotated + layer.heads * (keys.head_dim + 2 * values.rank)) + through


def _decoupled(layer: LayerGeometry, codec: Codec, entries: int) -> int:
    """A slice of the keys rebuilt, rotated and scored; the joint latent met by queries that are taken into it once."""
    rope, joint = codec.keys, codec.values
    rebuilt = layer.kv_heads * (rope.rank * layer.head_dim + 2 * layer.rotary_dims)
    token = rebuilt + layer.heads * (layer.head_dim + 2 * joint.rank)
    return entries * token + layer.heads * joint.rank * (layer.head_dim + layer.value_dim)


def _in_bands(layer: LayerGeometry, codec: Codec, bands: Bands, entries: int) -> int:
    """Fast dimensions rebuilt, rotated and scored; the others absorbed by queries that are taken into the latents once
    a block; sums of latents, brought back once."""
    keys, values, fast = codec.latents["keys"].side, codec.latents["values"], len(bands.fast)
    rank = keys.leading or keys.rank  # all that fast dimensions are rebuilt from
    rebuilt = layer.kv_heads * fast * (rank + 2)
    token = rebuilt + layer.heads * (fast + keys.rank + values.side.rank)
    blocks = -(-entries // bands.block)
    return entries * token + layer.heads * (blocks * keys.rank * len(bands.slow) + values.side.rank * values.width)


def bases_read(codecs: Iterable[Codec]) -> int:
    """Bytes of decoders, means and tables that a step reads, each once, however many rows and heads share it.

    Encoders are left out: they are read once in a block of steps.
    """
    tensors = [tensor for codec in codecs for side in codec.sides.values() for tensor in side.decoding_tensors()]
    return sum({tensor.data_ptr(): _distinct(tensor) * tensor.itemsize for tensor in tensors}.values())


def _distinct(tensor: Tensor) -> int:
    """Elements of ``tensor``, those of a repeated slice once."""
    return math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
