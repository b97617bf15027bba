"""Cutting a decode step into units of work for the CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT = 512
"""Tokens that make a unit worth its start; a sequence is cut only where rows and heads do not occupy all threads."""


def splits_for(pairs: int, tokens: int) -> int:
    """Parts per sequence for ``pairs`` of rows and head groups."""
    threads = torch.get_num_threads()
    if pairs % threads == 0 or pairs >= 8 * threads:
        return 1
    return max(1, min(threads, tokens // SPLIT))


def mask_bytes(mask: Tensor | None, batch: int, groups: int) -> tuple[int, int, int, Tensor | None]:
    """Address and strides of the bytes of ``mask``; the tensor returned keeps them alive."""
    if mask is None:
        return 0, 0, 0, None
    whole = mask.expand(batch, groups, 1, mask.shape[-1])
    whole = whole if whole.stride(-1) == 1 else whole.contiguous()
    return whole.data_ptr(), whole.stride(0), whole.stride(1), whole
