"""Tensors that grow along the token axis without copying everything at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.growth import with_headroom

AXIS = 2


@dataclass
class GrowingTensor:
    """``data`` (batch, heads or groups, capacity, …) of which the first ``length`` entries are in use.

    ``owned`` is False while ``data`` is somebody else's tensor, taken over without a copy: then it is never written to.
    """

    data: Tensor
    length: int
    owned: bool = True

    @classmethod
    def adopt(cls, tensor: Tensor) -> GrowingTensor:
        """Take ``tensor`` over without headroom; copied only if it is a view that keeps a larger storage alive."""
        if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.itemsize:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            return cls(tensor, tensor.shape[AXIS])
        return cls(tensor, tensor.shape[AXIS], owned=False)

    @classmethod
    def with_capacity(cls, tensor: Tensor, capacity: int) -> GrowingTensor:
        """A copy of ``tensor`` in a buffer of its own with room for ``capacity`` entries."""
        buffer = cls(_empty(tensor, max(capacity, tensor.shape[AXIS])), 0)
        buffer.append(tensor)
        return buffer

    @property
    def view(self) -> Tensor:
        """The entries in use."""
        return self.data.narrow(AXIS, 0, self.length)

    @property
    def slack_bytes(self) -> int:
        """Bytes allocated beyond the entries in use."""
        return self.data.untyped_storage().nbytes() - self.view.numel() * self.data.itemsize

    def append(self, tensor: Tensor) -> None:
        """Add entries at the end; reallocates with headroom when full."""
        needed = self.length + tensor.shape[AXIS]
        if needed > self.data.shape[AXIS] or not self.owned:
            grown = _empty(self.data, with_headroom(needed))
            grown.narrow(AXIS, 0, self.length).copy_(self.view)
            self.data, self.owned = grown, True
        self.data.narrow(AXIS, self.length, tensor.shape[AXIS]).copy_(tensor)
        self.length = needed

    def drop_front(self, count: int, capacity: int) -> None:
        """Forget the first ``count`` entries; the rest moves into a buffer for ``capacity`` entries.

        A buffer that already has that capacity is reused, so steady decoding allocates nothing.
        """
        rest = self.data.narrow(AXIS, count, self.length - count)
        if self.owned and self.data.shape[AXIS] == capacity:
            kept = rest.clone()
            self.length = kept.shape[AXIS]
            self.view.copy_(kept)
        else:
            buffer = GrowingTensor.with_capacity(rest, capacity)
            self.data, self.length, self.owned = buffer.data, buffer.length, True

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` entries; gives the memory back when over half is idle."""
        self.length = length
        if length * 2 < self.data.shape[AXIS]:
            self.data, self.owned = self.view.clone(), True

    def replace(self, tensor: Tensor) -> None:
        """Hold ``tensor``, which nobody else has, in place of the entries in use; shape and capacity stay."""
        if self.length < self.data.shape[AXIS]:
            tensor = GrowingTensor.with_capacity(tensor, self.data.shape[AXIS]).data
        self.data, self.owned = tensor, True

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function over the batch axis (select, repeat) to the whole buffer."""
        self.data, self.owned = function(self.data), True


def _empty(like: Tensor, capacity: int) -> Tensor:
    shape = list(like.shape)
    shape[AXIS] = capacity
    return torch.empty(shape, dtype=like.dtype, device=like.device)
