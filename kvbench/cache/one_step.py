"""Several caches in one decode step: the model's weights are read once for the rows of all of them.

The caches may hold contexts of any lengths. Only attention, which needs a cache, runs for one after the other; all else
in a step costs as much time for many rows as for few, because it waits for the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.cache.cache import CompressedCache
from kvbench.cache.layer import KVLayer
from kvbench.errors import KvbenchError
from kvbench.hooks.interception import AttentionCall, Context


class CachesOfOneStep(Cache):
    """A cache of all rows of ``caches``, in their order, for one new token a row at ``positions``.

    What a step adds is added to ``caches`` themselves, which remain usable alone.

    Raises:
        KvbenchError: they belong to different attachments, or :func:`can_share_a_step` refuses one.
    """

    def __init__(self, caches: Sequence[CompressedCache]) -> None:
        if not all(can_share_a_step(cache) and cache.owner is caches[0].owner for cache in caches):
            raise KvbenchError("only unpadded caches of one attachment, with nothing but attention, share a step")
        self.caches, self.owner = tuple(caches), caches[0].owner
        counts = [rows_of(cache) for cache in caches]
        stops = torch.tensor(counts).cumsum(0).tolist()
        self.rows = tuple(slice(stop - count, stop) for count, stop in zip(counts, stops, strict=True))
        super().__init__(layers=[_LayerOfOneStep(self, index) for index in range(len(caches[0].layers))])

    def positions(self, device: torch.device) -> Tensor:
        """(rows, 1): where each row's new token stands."""
        lengths = [torch.full((rows_of(cache), 1), cache.get_seq_length(), device=device) for cache in self.caches]
        return torch.cat(lengths)


def can_share_a_step(cache: object) -> bool:
    """Whether ``cache`` is unpadded, has taken in a context, and all its layers are kvbench's attention layers."""
    return isinstance(cache, CompressedCache) and all(
        isinstance(layer, KVLayer) and layer.seen > 0 and getattr(layer, "first", None) is None
        for layer in cache.layers
    )


def rows_of(cache: CompressedCache) -> int:
    """The batch size of a cache that has taken in a context."""
    tail = cache.kv_layers[0].tail_keys
    assert tail is not None
    return int(tail.data.shape[0])


class _LayerOfOneStep(CacheLayerMixin):
    """Hands every cache its rows of one layer's new keys and values."""

    is_compileable = is_sliding = False

    def __init__(self, step: CachesOfOneStep, index: int) -> None:
        super().__init__()
        self._step, self._index = step, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The caches have begun."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Hand (rows, kv heads, 1, ·) to the caches, which store them when they attend; returns them unchanged."""
        for cache, rows in zip(self._step.caches, self._step.rows, strict=True):
            cache.update(key_states[rows], value_states[rows], self._index)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """The longest cache's."""
        return max(cache.get_seq_length() for cache in self._step.caches)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As of the longest; no mask is needed where one token sees all before it."""
        return self.get_seq_length() + int(query_length), 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length


@dataclass
class OneStepContext:
    """Takes one attention layer over for one step: each of ``contexts`` attends for its ``rows``."""

    contexts: Sequence[Context]
    rows: Sequence[slice]

    def attend(self, call: AttentionCall) -> Tensor:
        """The rows of all, in order."""
        return torch.cat(
            [
                context.attend(
                    replace(call, query=call.query[rows], keys=call.keys[rows], values=call.values[rows], mask=None)
                )
                for context, rows in zip(self.contexts, self.rows, strict=True)
            ]
        )
