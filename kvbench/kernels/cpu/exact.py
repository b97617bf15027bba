"""Decode attention over exact tensors: the record that the CPU kernel reads, and its results as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.kernels.cpu.jobs import exact_job
from kvbench.kernels.cpu.launch import share
from kvbench.kernels.cpu.llvm import exact_ops
from kvbench.kernels.cpu.merge import merge_splits
from kvbench.kernels.cpu.records import ExactJob, ExactSide, pack
from kvbench.kernels.cpu.work_split import mask_bytes, splits_for
from kvbench.kernels.reference import Partial

_KINDS = {torch.float32: exact_ops.FP32, torch.float16: exact_ops.FP16, torch.bfloat16: exact_ops.BF16}
STORED = tuple(_KINDS)
"""Dtypes of keys and values that the kernel reads as they lie."""


def exact_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, rank) in fp32 over ``keys``, ``values`` (batch, groups, tokens, ·).

    ``before``: keys and values of earlier tokens. Each of the four may be stored in any of :data:`STORED`.
    ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, all tokens).
    """
    batch, groups, rows, rank = query.shape
    spans = [(keys, values)] if before is None else [before, (keys, values)]
    # Copies must outlive the kernel, which only knows their addresses.
    sides = [states if states.stride(-1) == 1 else states.contiguous() for span in spans for states in span]
    scaled, tokens, width = (query * scaling).contiguous(), sum(each.shape[2] for each in sides[::2]), values.shape[-1]
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    output, lse = torch.empty(units, rows, width), torch.empty(units, rows)
    attended = mask_bytes(mask, batch, groups)
    packed = pack(*map(_side, sides))
    job = ExactJob(
        splits=splits,
        spans=len(spans),
        heads=groups,
        rows=rows,
        query=scaled.data_ptr(),
        key_width=rank,
        value_width=width,
        sides=packed.ctypes.data,
        mask=attended.address,
        mask_row_stride=attended.row_stride,
        mask_head_stride=attended.head_stride,
        output=output.data_ptr(),
        lse=lse.data_ptr(),
    )
    share(exact_job, units, 4 * batch * groups * tokens * (rank + width), job)
    part = merge_splits(output, lse, splits)
    return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))


def _side(states: Tensor) -> ExactSide:
    row, head, token, _ = states.stride()
    size = states.itemsize
    return ExactSide(
        states=states.data_ptr(),
        kind=_KINDS[states.dtype],
        itemsize=size,
        row_stride=size * row,
        head_stride=size * head,
        token_stride=size * token,
        components=states.shape[-1],
        tokens=states.shape[2],
    )
