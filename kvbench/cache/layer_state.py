"""All that a layer of a cache remembers, as named tensors and a few numbers, and a layer from them again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import KVLayer

_BODY, _FITTED = "body.", "fitted."


def layer_state(layer: KVLayer) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of ``layer`` without their headroom, and its counts; a body that layers share is the last one's."""
    tensors: dict[str, Tensor | None] = {
        "tail_keys": None if layer.tail_keys is None else layer.tail_keys.view,
        "tail_values": None if layer.tail_values is None else layer.tail_values.view,
    }
    numbers = {"seen": layer.seen}
    if isinstance(layer, CompressedLayer):
        numbers |= {"tail_start": layer.tail_start, "first_max": layer.first_max}
        tensors |= {"sink_keys": layer.sink_keys, "sink_values": layer.sink_values, "first": layer.first}
        if layer.owns_body:
            numbers["entries"] = layer.body.entries
            tensors |= {_BODY + name: buffer.view for name, buffer in layer.body.buffers().items()}
            tensors |= {_FITTED + name: tensor for name, tensor in layer.body.fitted.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}, numbers


def restore_layer(layer: KVLayer, like: Tensor, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Make an empty ``layer`` what :func:`layer_state` described; ``like`` has the model's dtype and device.

    Raises:
        KeyError: something is missing.
    """
    layer.lazy_initialization(like, like)
    layer.seen = numbers["seen"]
    if layer.seen:
        layer.tail_keys, layer.tail_values = (
            GrowingTensor.adopt(tensors[name]) for name in ("tail_keys", "tail_values")
        )
    if isinstance(layer, CompressedLayer):
        layer.tail_start, layer.first_max = numbers["tail_start"], numbers["first_max"]
        layer.sink_keys, layer.sink_values = tensors.get("sink_keys"), tensors.get("sink_values")
        layer.first = tensors.get("first")
        if layer.owns_body:
            _restore_body(layer, tensors, numbers["entries"])


def _restore_body(layer: CompressedLayer, tensors: dict[str, Tensor], entries: int) -> None:
    stored = {name.removeprefix(_BODY): tensor for name, tensor in tensors.items() if name.startswith(_BODY)}
    slots = stored.pop("slots", None)
    layer.body.stored = {name: GrowingTensor.adopt(tensor) for name, tensor in stored.items()}
    layer.body.slots = None if slots is None else GrowingTensor.adopt(slots)
    layer.body.fitted = {
        name.removeprefix(_FITTED): tensor for name, tensor in tensors.items() if name.startswith(_FITTED)
    }
    layer.body.entries = entries
