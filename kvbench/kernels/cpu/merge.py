"""Merging partial attentions on the CPU in one call, where torch would take a dozen small ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels.cpu.jobs import join_task
from kvbench.kernels.reference import Partial, merge


def joined(parts: Sequence[Partial]) -> Partial:
    """:func:`kvbench.kernels.reference.merge` of fp32 parts on the CPU."""
    if len(parts) == 1:
        return parts[0]
    tensors = [tensor for part in parts for tensor in (part.output, part.lse)]
    if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors):
        return merge(parts)
    output, lse = torch.empty_like(parts[0].output), torch.empty_like(parts[0].lse)
    _join([(part.output.data_ptr(), part.lse.data_ptr()) for part in parts], output, lse, 0)
    return Partial(output, lse)


def join_splits(out: Tensor, lse: Tensor, splits: int) -> Partial:
    """(pairs · splits, rows, ·) and (pairs · splits, rows) of units → (pairs, rows, ·) and (pairs, rows)."""
    if splits == 1:
        return Partial(out, lse)
    units, rows, rank = out.shape
    output, whole = out.new_empty(units // splits, rows, rank), lse.new_empty(units // splits, rows)
    at, ends = out.data_ptr(), lse.data_ptr()
    _join([(at + 4 * split * rows * rank, ends + 4 * split * rows) for split in range(splits)], output, whole, splits)
    return Partial(output, whole)


def _join(parts: list[tuple[int, int]], output: Tensor, lse: Tensor, splits: int) -> None:
    """Write the merged ``parts``, given by addresses: each contiguous or, if ``splits``, one unit in so many."""
    rank = output.shape[-1]
    rows = lse.shape[-1] if splits else lse.numel()
    pairs = lse.numel() // rows
    addresses = [address for part in parts for address in part]
    job = [pairs, rows, rank, max(splits, 1), len(parts), output.data_ptr(), lse.data_ptr(), *addresses]
    join_task.ctypes(np.array(job, np.int64).ctypes.data)
