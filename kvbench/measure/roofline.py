"""The least time a decode step can take on this machine, with a compressed cache and with an uncompressed one.

A step must read every weight, every byte kept of the context and the bases that it is kept in, and multiply them with
its tokens; it takes at least as long as the slower of the two (the roofline of Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from kvbench.cache.attends import codec_way
from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.codecs.codec import Codec
from kvbench.codecs.frame import Bands
from kvbench.hardware.peaks import Peaks, peaks
from kvbench.hooks.geometry import LayerGeometry, ModelGeometry
from kvbench.measure.arms import Arm
from kvbench.measure.memory import walk
from kvbench.measure.parts.speed import RooflineResult


def roofline(arm: Arm, cache: Cache, batch: int, step_s: float) -> RooflineResult | None:
    """The roofline of a step of ``arm`` on ``cache`` of ``batch`` rows, which was measured to take ``step_s`` seconds.

    Bounds are for the model's dtype. ``operations`` count a multiplication and an addition as two and are compared with
    the peak of that dtype, which kernels that multiply 8-bit integers may exceed.

    None for mixtures of experts: which weights they read depends on the tokens.
    """
    model, geometry = arm.model, arm.geometry
    if getattr(model.config.get_text_config(), "num_experts_per_tok", None):
        return None
    tokens = cache.get_seq_length()
    limits = peaks(model.device, model.dtype)
    weights, weight_bytes = weights_read(model)
    cache_bytes, basis_bytes = bytes_read(cache), bases_read(cache)
    none_bytes = batch * geometry.elements(tokens) * geometry.dtype.itemsize
    operations, none_operations = (
        2 * batch * (weights + attention) for attention in (_attention(arm, cache, tokens), _exact(geometry, tokens))
    )
    bound = _least(limits, weight_bytes + cache_bytes + basis_bytes, operations)
    none_bound = _least(limits, weight_bytes + none_bytes, none_operations)
    return RooflineResult(
        read_bandwidth=limits.read,
        peak_operations=limits.operations,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        basis_bytes=basis_bytes,
        none_cache_bytes=none_bytes,
        operations=operations,
        none_operations=none_operations,
        bound_s=bound,
        none_bound_s=none_bound,
        ceiling=none_bound / bound,
        achieved=bound / step_s,
    )


def weights_read(model: PreTrainedModel) -> tuple[int, int]:
    """(elements, bytes) of the weights that every step reads: all but tables of which it looks up a row a token."""
    output = model.get_output_embeddings()
    tied = None if output is None else output.weight
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {id(tied)}
    read = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    return sum(weight.numel() for weight in read), sum(weight.numel() * weight.itemsize for weight in read)


def bytes_read(cache: Cache) -> int:
    """Bytes that a step reads of ``cache``: of what it has allocated all that is in use, each tensor once."""
    if not isinstance(cache, CompressedCache):
        return walk(cache).total
    tensors = {
        tensor.data_ptr(): tensor.numel() * tensor.itemsize
        for layer in cache.kv_layers
        for _, buffer in layer.tensors_by_kind()
        for tensor in [buffer.view if isinstance(buffer, GrowingTensor) else buffer]
    }
    return sum(tensors.values())


def bases_read(cache: Cache) -> int:
    """Bytes of decoders, means and tables that a step reads, each once, however many rows and heads share it.

    Encoders are left out: they are read once in a block of steps.
    """
    if not isinstance(cache, CompressedCache):
        return 0
    sides = [
        side
        for layer in cache.kv_layers
        if isinstance(layer, CompressedLayer) and layer.body.entries
        for side in layer.codec.sides.values()
    ]
    tensors = [tensor for side in sides for tensor in side.decoding_tensors()]
    return sum({tensor.data_ptr(): _distinct(tensor) * tensor.itemsize for tensor in tensors}.values())


def _distinct(tensor: Tensor) -> int:
    """Elements of ``tensor``, those of a repeated slice once."""
    return math.prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)


def _least(limits: Peaks, bytes_read: float, operations: float) -> float:
    return max(bytes_read / limits.read, operations / limits.operations)


def _exact(geometry: ModelGeometry, tokens: int) -> int:
    """Multiplications of one row's attention over all tokens in the heads' own dimensions."""
    return sum(_over(layer, min(tokens, layer.sliding_window or tokens)) for layer in geometry.layers)


def _attention(arm: Arm, cache: Cache, tokens: int) -> int:
    """Multiplications of one row's attention over what ``cache`` holds, and of rebuilding keys and values where what
    attends does that (:mod:`kvbench.cache.way`). Unpacking codes is not counted."""
    total = 0
    for layer in arm.geometry.layers:
        cached = cache.layers[layer.layer]
        if not isinstance(cached, CompressedLayer):
            total += _over(layer, min(tokens, layer.sliding_window or tokens))
            continue
        exact = cached.seen - cached.tail_start + (cached.spans.sinks if cached.tail_start else 0)
        total += _over(layer, exact) + _body(arm, layer, cached)
    return total


def _body(arm: Arm, layer: LayerGeometry, cached: CompressedLayer) -> int:
    """Multiplications of one row's attention over the body of ``cached``."""
    codec, entries = cached.codec, cached.body.entries
    chosen = codec_way(codec, layer, arm.geometry, cached.reading)
    if chosen.in_latents:
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
    return _over(layer, entries) + entries * (rebuilt + rotation)


def _in_bands(layer: LayerGeometry, codec: Codec, bands: Bands, entries: int) -> int:
    """Fast dimensions rebuilt, rotated and scored; the others absorbed by queries that are taken into the latents once
    a block; sums of latents, brought back once."""
    keys, values, fast = codec.latents["keys"].side, codec.latents["values"], len(bands.fast)
    rank = keys.leading or keys.rank  # all that fast dimensions are rebuilt from
    rebuilt = layer.kv_heads * fast * (rank + 2)
    token = rebuilt + layer.heads * (fast + keys.rank + values.side.rank)
    blocks = -(-entries // bands.block)
    return entries * token + layer.heads * (blocks * keys.rank * len(bands.slow) + values.side.rank * values.width)


def _over(layer: LayerGeometry, tokens: int) -> int:
    return layer.heads * tokens * (layer.head_dim + layer.value_dim)
