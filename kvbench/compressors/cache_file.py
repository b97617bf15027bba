"""Compressed caches on disk: a prompt that many requests begin with is read back instead of prefilled again.

One safetensors file holds the stored tensors as they are, the rotations of their positions, and what they belong to: a
digest of the fitted compressor and of the model. A cache goes only where both are the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.attach import CompressedModel
from kvbench.cache.cache import CompressedCache
from kvbench.cache.layer import KVLayer
from kvbench.cache.layer_state import layer_state, restore_layer
from kvbench.compressors.plan_file import plan_digest, tensors_digest
from kvbench.errors import KvbenchError
from kvbench.storage.files import replace_file

FORMAT = "1"
"""Raised whenever a file of the old kind could be misread."""
SAMPLED = 256
"""Numbers of each parameter that tell a model's weights from others."""


def save_cache(cache: CompressedCache, path: str | Path) -> None:
    """Write ``cache`` to the file ``path``, which appears whole or not at all.

    Raises:
        KvbenchError: the cache is empty, or has layers that are not kvbench's.
        OSError: the file cannot be written.
    """
    attached = cache.owner
    if not isinstance(attached, CompressedModel) or len(cache.kv_layers) < len(cache.layers):
        raise KvbenchError("only caches whose layers are all attention layers of kvbench can be saved")
    if not cache.get_seq_length():
        raise KvbenchError("this cache is empty: there is nothing to save")
    tensors: dict[str, Tensor] = {}
    layers = []
    for index, layer in enumerate(cache.kv_layers):
        state, numbers = layer_state(layer)
        tensors |= {f"{index}.{name}": tensor for name, tensor in state.items()}
        layers.append(numbers)
    if cache.positions.index is not None:
        tensors["positions"] = cache.positions.index
        tensors |= attached.rotations(cache.positions.index)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {
        "format": FORMAT,
        "layers": json.dumps(layers),
        "compressor": plan_digest(attached.plan),
        "model": _model_digest(attached.model),
        "content": tensors_digest(tensors),
    }
    replace_file(Path(path), save(tensors, texts))


def load_cache(path: str | Path, attached: CompressedModel) -> CompressedCache:
    """The cache in the file ``path``, for ``attached``, which must be what the cache was saved from.

    Raises:
        KvbenchError: there is no such file, it is damaged, or is of another model or compressor.
    """
    try:
        with safe_open(path, framework="pt", device=str(attached.geometry.device)) as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise KvbenchError(f"there is no saved cache at {path}") from error
    except (OSError, SafetensorError) as error:
        raise KvbenchError(f"{path} cannot be read ({error}); save the cache again") from error
    if texts.get("format") != FORMAT:
        raise KvbenchError(f"{path} is no cache that this kvbench can read")
    for what, expected in (("model", _model_digest(attached.model)), ("compressor", plan_digest(attached.plan))):
        if texts.get(what) != expected:
            raise KvbenchError(f"the cache in {path} belongs to another {what} than the one that is attached")
    if texts.get("content") != tensors_digest(tensors):
        raise KvbenchError(f"{path} is damaged: its tensors are not those that were saved; save the cache again")
    return _restored(attached, tensors, json.loads(texts["layers"]))


def _restored(attached: CompressedModel, tensors: dict[str, Tensor], layers: list[dict[str, Any]]) -> CompressedCache:
    cache = attached.new_cache()
    like = torch.empty(0, dtype=attached.geometry.dtype, device=attached.geometry.device)
    for index, (layer, numbers) in enumerate(zip(cache.layers, layers, strict=True)):
        assert isinstance(layer, KVLayer)
        prefix = f"{index}."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        restore_layer(layer, like, state, numbers)
    if "positions" in tensors:
        cache.positions.index = tensors["positions"]
        attached.learn_rotations(tensors["positions"], tensors)
    return cache


def _model_digest(model: PreTrainedModel) -> str:
    """Of names, shapes and the first numbers of all parameters."""
    return tensors_digest({name: weights.detach().flatten()[:SAMPLED] for name, weights in model.named_parameters()})
