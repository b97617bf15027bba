"""The cache object that ``model.generate(past_key_values=…)`` takes, and the walk over its bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from kvbench.cache.buffers import GrowingTensor
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import KVLayer
from kvbench.codecs.codec import Codec
from kvbench.errors import KvbenchError
from kvbench.hooks.rotary import Positions, RotaryTable
from kvbench.selectors.base import Selector

_SHARED = (Codec, Selector, RotaryTable, nn.Module, type, ModuleType, CodeType, FrameType)
"""What no cache owns: the walk over its bytes stops there."""


@dataclass(frozen=True)
class CacheBytes:
    """Allocated bytes of one cache by kind; storages shared by several tensors count once.

    ``payload`` codes and latents · ``scales`` per-token scales, zeros and indices · ``exact`` sinks, window and exact
    layers · ``positions`` · ``slack`` allocated and unused · ``workspace`` whatever else the cache object reaches.
    """

    payload: int = 0
    scales: int = 0
    exact: int = 0
    positions: int = 0
    slack: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


class CompressedCache(Cache):
    """A transformers cache whose layers are kvbench's. ``owner`` is the attachment that may drive it."""

    def __init__(self, layers: list[Any], owner: object) -> None:
        super().__init__(layers=layers)
        self.positions = Positions()
        self.owner = owner

    @property
    def kv_layers(self) -> list[KVLayer]:
        """The attention layers that kvbench holds."""
        return [layer for layer in self.layers if isinstance(layer, KVLayer)]

    @property
    def as_decoded(self) -> bool:
        """Whether blocks of new tokens attend as if decoded one by one (teacher forcing)."""
        return any(layer.as_decoded for layer in self.layers if isinstance(layer, CompressedLayer))

    @as_decoded.setter
    def as_decoded(self, value: bool) -> None:
        for layer in self.layers:
            if isinstance(layer, CompressedLayer):
                layer.as_decoded = value

    def pieces(self, ids: Tensor) -> tuple[Tensor, ...]:
        """``ids`` (rows, new tokens) in the largest pieces that this cache takes at once."""
        limits = [layer.most_at_once for layer in self.layers if isinstance(layer, CompressedLayer)]
        most = min((limit for limit in limits if limit is not None), default=ids.shape[1])
        return ids.split(most, 1) if self.as_decoded else (ids,)

    @property
    def attended_by(self) -> str:
        """What attended to the stored tokens in the last step, read back from the layers; several are listed."""
        return " | ".join(sorted({layer.attended_by for layer in self.kv_layers if layer.attended_by}))

    @property
    def is_initialized(self) -> bool:
        """Whether it has taken in tokens."""
        return all(layer.is_initialized for layer in self.kv_layers)

    def nbytes(self) -> CacheBytes:
        """Walk the storages that this cache holds on to."""
        return cache_bytes(self)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens from every layer."""
        super().crop(tokens_to_remove)
        self.positions.truncate(self.get_seq_length())

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.positions.truncate(0)

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        """Beam search picks rows."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.positions.map_rows(lambda index: index.index_select(0, beam_idx.to(index.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self.positions.map_rows(lambda index: index.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``."""
        super().batch_select_indices(indices)
        self.positions.map_rows(lambda index: index[indices])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused: what pickle would take along is the model."""
        raise KvbenchError(
            "a compressed cache is neither pickled nor copied shallowly; use copy.deepcopy or kvbench.save_cache"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedCache:
        """Copies every token's tensors; codecs and the attachment stay shared."""
        twin = CompressedCache(deepcopy(self.layers, memo), self.owner)
        twin.positions = deepcopy(self.positions, memo)
        return twin


def cache_bytes(cache: CompressedCache) -> CacheBytes:
    """Allocated bytes by kind, from ``untyped_storage`` of every tensor, each storage once."""
    tensors = [pair for layer in cache.kv_layers for pair in layer.tensors_by_kind()]
    if cache.positions.index is not None:
        tensors.append(("positions", cache.positions.index))
    return count_bytes(tensors, cache)


def bytes_of_layers(cache: CompressedCache, layers: Iterable[int]) -> int:
    """Allocated bytes of kvbench's layers among those with these numbers, each storage once."""
    chosen = [cache.layers[index] for index in layers]
    tensors = [pair for layer in chosen if isinstance(layer, KVLayer) for pair in layer.tensors_by_kind()]
    return count_bytes(tensors, ()).total


def unused_bytes(cache: CompressedCache) -> int:
    """Bytes of buffers beyond what is stored, of all kinds, each storage once: allocated, and perhaps never touched."""
    buffers = [
        buffer
        for layer in cache.kv_layers
        for _, buffer in layer.tensors_by_kind()
        if isinstance(buffer, GrowingTensor)
    ]
    return sum({buffer.data.untyped_storage().data_ptr(): buffer.slack_bytes for buffer in buffers}.values())


def count_bytes(tensors: Iterable[tuple[str, GrowingTensor | Tensor]], root: object) -> CacheBytes:
    """Allocated bytes of ``tensors``, by kind; whatever else ``root`` reaches is workspace."""
    sizes: dict[str, int] = {}
    counted: set[int] = set()

    def count(kind: str, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0 or storage.data_ptr() in counted:
            return False
        counted.add(storage.data_ptr())
        sizes[kind] = sizes.get(kind, 0) + storage.nbytes()
        return True

    for kind, stored in tensors:
        tensor = stored.data if isinstance(stored, GrowingTensor) else stored
        if count(kind, tensor) and isinstance(stored, GrowingTensor) and kind != "exact":
            sizes[kind] -= stored.slack_bytes
            sizes["slack"] = sizes.get("slack", 0) + stored.slack_bytes
    for tensor in reachable_tensors(root):
        count("workspace", tensor)
    return CacheBytes(**sizes)


def reachable_tensors(root: object) -> Iterator[Tensor]:
    """Every tensor reachable from ``root``, through slots and closures too; what the model shares is left out."""
    seen = {id(getattr(root, "owner", None))}
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, _SHARED):
            continue
        seen.add(id(item))
        if hasattr(item, "__tensor_flatten__"):  # a wrapper pretends to a storage; what it wraps has one
            stack += [getattr(item, name) for name in item.__tensor_flatten__()[0]]
        elif isinstance(item, Tensor):
            yield item
        elif isinstance(item, FunctionType):  # not its globals
            stack += [item.__closure__, item.__defaults__, item.__kwdefaults__]
        else:
            stack.extend(gc.get_referents(item))
