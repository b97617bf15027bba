"""The least time a decode step can take on this machine, with a compressed cache and with an uncompressed one.

A step must read every weight, every byte kept of the context and the bases that it is kept in, and multiply them with
its tokens; it takes at least as long as the slower of the two (the roofline of Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

from torch import nn
from transformers import Cache, PreTrainedModel

from kvbench.cache.attends import codec_way
from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.work import bases_read, over_body, over_heads
from kvbench.codecs.codec import Codec
from kvbench.hardware.peaks import Peaks, peaks
from kvbench.hooks.geometry import ModelGeometry
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
    cache_bytes, basis_bytes = bytes_read(cache), bases_read(codecs_in_use(cache))
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


def codecs_in_use(cache: Cache) -> list[Codec]:
    """Of every layer that has encoded tokens."""
    if not isinstance(cache, CompressedCache):
        return []
    return [layer.codec for layer in cache.kv_layers if isinstance(layer, CompressedLayer) and layer.body.entries]


def _least(limits: Peaks, bytes_read: float, operations: float) -> float:
    return max(bytes_read / limits.read, operations / limits.operations)


def _exact(geometry: ModelGeometry, tokens: int) -> int:
    """Multiplications of one row's attention over all tokens in the heads' own dimensions."""
    return sum(over_heads(layer, min(tokens, layer.sliding_window or tokens)) for layer in geometry.layers)


def _attention(arm: Arm, cache: Cache, tokens: int) -> int:
    """Multiplications of one row's attention over what ``cache`` holds, and of rebuilding keys and values where what
    attends does that (:mod:`kvbench.cache.reads`). Unpacking codes is not counted."""
    total = 0
    for layer in arm.geometry.layers:
        cached = cache.layers[layer.layer]
        if not isinstance(cached, CompressedLayer):
            total += over_heads(layer, min(tokens, layer.sliding_window or tokens))
            continue
        exact = cached.seen - cached.tail_start + (cached.spans.sinks if cached.tail_start else 0)
        chosen = codec_way(cached.codec, layer, arm.geometry, cached.reading)
        total += over_heads(layer, exact) + over_body(cached.codec, layer, chosen, cached.body.entries)
    return total
