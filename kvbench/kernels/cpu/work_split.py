"""Cutting a decode step into units of work for the CPU kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvbench.kernels.cpu.llvm.float_ops import TILE

SPLIT = 512
"""Tokens that make a unit pay for its start; a sequence is cut only where rows and heads do not occupy all threads."""

COSTLY = 128
"""Bytes that a token of such a unit is multiplied as; fewer tokens pay where they take longer."""


def splits_for(pairs: int, tokens: int, bytes_per_token: int = COSTLY) -> int:
    """Parts per sequence for ``pairs`` of rows and head groups."""
    threads = torch.get_num_threads()
    if pairs % threads == 0 or pairs >= 8 * threads:
        return 1
    least = max(TILE, SPLIT * COSTLY // max(COSTLY, bytes_per_token))
    return max(1, min(threads, tokens // least))


class MaskBytes(NamedTuple):
    """Where a mask's bytes lie, 0 for none; ``tensor`` keeps them alive."""

    address: int = 0
    row_stride: int = 0
    head_stride: int = 0
    tensor: Tensor | None = None


def mask_bytes(mask: Tensor | None, batch: int, groups: int) -> MaskBytes:
    """The bytes of a boolean ``mask``, broadcastable to (batch, groups, 1, tokens)."""
    if mask is None:
        return MaskBytes()
    whole = mask.expand(batch, groups, 1, mask.shape[-1])
    whole = whole if whole.stride(-1) == 1 else whole.contiguous()
    return MaskBytes(whole.data_ptr(), whole.stride(0), whole.stride(1), whole)
