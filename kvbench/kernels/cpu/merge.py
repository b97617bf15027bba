"""Merging partial attentions on the CPU in one call, where torch would take a dozen small ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels.cpu.jobs import merge_job
from kvbench.kernels.cpu.records import MergeJob
from kvbench.kernels.reference import Partial, merge


def merge_parts(parts: Sequence[Partial]) -> Partial:
    """:func:`kvbench.kernels.reference.merge` of fp32 parts on the CPU."""
    if len(parts) == 1:
        return parts[0]
    tensors = [tensor for part in parts for tensor in (part.output, part.lse)]
    if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors):
        return merge(parts)
    output, lse = torch.empty_like(parts[0].output), torch.empty_like(parts[0].lse)
    _merge([(part.output.data_ptr(), part.lse.data_ptr()) for part in parts], output, lse, rows=lse.numel(), stride=1)
    return Partial(output, lse)


def merge_splits(output: Tensor, lse: Tensor, splits: int) -> Partial:
    """(pairs · splits, rows, ·) and (pairs · splits, rows) of units → (pairs, rows, ·) and (pairs, rows)."""
    if splits == 1:
        return Partial(output, lse)
    units, rows, width = output.shape
    whole, whole_lse = output.new_empty(units // splits, rows, width), lse.new_empty(units // splits, rows)
    first, first_lse = output.data_ptr(), lse.data_ptr()
    parts = [(first + 4 * split * rows * width, first_lse + 4 * split * rows) for split in range(splits)]
    _merge(parts, whole, whole_lse, rows=rows, stride=splits)
    return Partial(whole, whole_lse)


def _merge(parts: list[tuple[int, int]], output: Tensor, lse: Tensor, rows: int, stride: int) -> None:
    """Write the merged ``parts``, given by their addresses of outputs and log-sum-exps."""
    job = MergeJob(
        pairs=lse.numel() // rows,
        rows=rows,
        width=output.shape[-1],
        stride=stride,
        parts=len(parts),
        output=output.data_ptr(),
        lse=lse.data_ptr(),
    )
    packed = np.array([*job, *chain.from_iterable(parts)], np.int64)
    merge_job.ctypes(packed.ctypes.data)
