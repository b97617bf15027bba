"""The cache of one decode step that can be compiled or captured whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvbench.cache.cache import CacheBytes, count_bytes
from kvbench.cache.static import StaticCompressedLayer, StaticLayer
from kvbench.errors import KvbenchError
from kvbench.hooks.interception import Takeover
from kvbench.hooks.rotary import StaticTable
from kvbench.hooks.rotations import Rotation


class StaticCompressedCache(Cache):
    """Static layers, and what they share: the count of tokens, and the RoPE tables of keys rotated when they are read.

    ``tokens`` is that count for :meth:`settle`, ``seen`` () int64 the same on the device, for the graph. ``tables``
    names the layer that writes each table, the first of its RoPE group; ``owner`` is the attachment that may drive it.
    A step is the model's forward pass and :meth:`advance`, which a graph may hold, then :meth:`settle`, which it may
    not. Made by :func:`kvbench.cache.compiled.static_cache`.
    """

    layers: list[StaticLayer]  # type: ignore[assignment]

    def __init__(
        self,
        layers: list[StaticLayer],
        tables: dict[int, StaticTable],
        tokens: int,
        seen: Tensor,
        capacity: int,
        owner: object,
    ) -> None:
        super().__init__(layers=layers)  # type: ignore[arg-type]
        self.tables, self.tokens, self.seen, self.capacity = tables, tokens, seen, capacity
        self.owner = owner
        self._fix_addresses()

    def takeover(self, index: int, rotation: Rotation | None) -> Takeover:
        """Who attends in layer ``index`` of a forward pass that the model gave ``rotation`` for."""
        layer = self.layers[index]
        if index in self.tables and rotation is not None:
            self.tables[index].write(self.seen, rotation)
        layer.expected = True
        return Takeover(layer)

    def advance(self) -> None:
        """Count the step's token on the device: the end of the graph."""
        self.seen.add_(1)

    def settle(self) -> None:
        """Count the step's token, and encode the blocks that have left their windows: after the graph.

        Raises:
            KvbenchError: keys or values that are about to be encoded are not finite.
        """
        self.tokens += 1
        for layer in self.layers:
            layer.settle(self.tokens)

    def require_room(self) -> None:
        """Refuse a step beyond the capacity.

        Raises:
            KvbenchError: the cache is full.
        """
        if self.tokens >= self.capacity:
            raise KvbenchError(
                f"this static cache is full: it was made for {self.capacity} tokens; ask for a larger maximum length"
            )

    def nbytes(self) -> CacheBytes:
        """Allocated bytes; what is not filled yet counts as slack, or as exact in windows. RoPE tables: workspace."""
        return count_bytes([pair for layer in self.layers for pair in layer.tensors_by_kind()], self)

    def _fix_addresses(self) -> None:
        """Tell the compiler that these tensors never move: it may then write them in place and capture the graph."""
        tensors = [self.seen]
        for layer in self.layers:
            tensors += [layer.exact_keys, layer.exact_values]
            if isinstance(layer, StaticCompressedLayer):
                tensors += [layer.start, *layer.body.values()]
        for table in self.tables.values():
            tensors += [table.cos, table.sin]
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> StaticCompressedCache:
        """Not possible: a graph knows these buffers by their addresses.

        Raises:
            KvbenchError: always.
        """
        raise KvbenchError("a static cache cannot be copied; copy the cache it was made from")
