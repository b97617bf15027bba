"""Dense and sparse: the few largest values of every block of tokens are kept exactly, beside whatever codes the rest.

KVQuant's idea (Hooper et al. 2024, arXiv 2401.18079). A fixed count per block keeps the stored tensors rectangular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
"""Tokens that share their outliers' places."""

VALUE = torch.float16
_NARROW = 2**15


@dataclass(frozen=True)
class Outliers:
    """``fraction`` of the values of each :data:`BLOCK` tokens of a head group, picked by magnitude."""

    fraction: float

    def count(self, rank: int) -> int:
        """Outliers per block and head group."""
        return round(self.fraction * BLOCK * rank)

    def bits(self, rank: int) -> float:
        """Bits per token and head group: a value and its place for each."""
        return self.count(rank) / BLOCK * 8 * (VALUE.itemsize + _index_type(rank).itemsize)

    def find(self, scaled: Tensor) -> Tensor:
        """Places (batch, groups, blocks, count) in each flattened block of the largest |``scaled``|."""
        rank = scaled.shape[-1]
        places = _blocks(scaled).abs().topk(self.count(rank), -1).indices
        return places.to(_index_type(rank))

    def take(self, states: Tensor, places: Tensor) -> Tensor:
        """The values of ``states`` (batch, groups, tokens, rank) at ``places``, in fp16."""
        limit = torch.finfo(VALUE).max
        return _blocks(states).gather(-1, places.long()).clamp(-limit, limit).to(VALUE)

    def put(self, states: Tensor, places: Tensor, values: Tensor) -> Tensor:
        """``states`` with ``values`` at ``places``."""
        return _blocks(states).scatter(-1, places.long(), values.to(states.dtype)).view_as(states)


def _index_type(rank: int) -> torch.dtype:
    return torch.int16 if rank * BLOCK <= _NARROW else torch.int32


def _blocks(states: Tensor) -> Tensor:
    """(batch, groups, tokens, rank) → (batch, groups, blocks, BLOCK · rank)."""
    return states.contiguous().unflatten(2, (-1, BLOCK)).flatten(3)
