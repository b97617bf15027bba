"""Decode attention over exact tensors: the record that the CPU kernel reads."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.kernels.cpu.llvm import exact_ops
from kvbench.kernels.cpu.records import EXACT, EXACT_JOB, Claims, ExactJob, ExactSide, fp32_bits, pack, place
from kvbench.kernels.cpu.step import Pending, Work
from kvbench.kernels.cpu.work_split import mask_bytes, splits_for

_KINDS = {torch.float32: exact_ops.FP32, torch.float16: exact_ops.FP16, torch.bfloat16: exact_ops.BF16}
STORED = tuple(_KINDS)
"""Dtypes of keys and values that the kernel reads as they lie."""
_OUTPUT = place(EXACT_JOB, "output")


def exact_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Pending:
    """Attention of ``query`` (batch, …, rank) in fp32 over ``keys``, ``values`` (batch, groups, tokens, ·).

    All axes of the query between the first and the last count its heads, group by group, and so do those of the
    output (batch, …, width). ``before``: keys and values of earlier tokens. Each of the four may be stored in any of
    :data:`STORED`. ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, all tokens).
    """
    (batch, *heads, rank), groups = query.shape, keys.shape[1]
    spans = [(keys, values)] if before is None else [before, (keys, values)]
    sides = [states if states.stride(-1) == 1 else states.contiguous() for span in spans for states in span]
    query, tokens, width = query.contiguous(), sum(each.shape[2] for each in sides[::2]), values.shape[-1]
    rows = query.numel() // (batch * groups * rank)
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    attended = mask_bytes(mask, batch, groups)
    described = pack(*map(exact_side, sides))
    job = ExactJob(
        splits=splits,
        spans=len(spans),
        heads=groups,
        rows=rows,
        query=query.data_ptr(),
        key_width=rank,
        value_width=width,
        scaling=fp32_bits(scaling),
        sides=described.ctypes.data,
        mask=attended.address,
        mask_row_stride=attended.row_stride,
        mask_head_stride=attended.head_stride,
        output=0,
        lse=0,
    )
    work = Work(units, splits, rows, width, size=4 * batch * groups * tokens * (rank + width))
    packed = pack(Claims(0, units, units), job)
    alive = query, sides, described, attended
    return Pending(EXACT, packed, _OUTPUT, work, (batch, *heads), "numba", alive)


def exact_side(states: Tensor) -> ExactSide:
    """The record of keys or values (batch, groups, tokens, components), whose components lie side by side."""
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
