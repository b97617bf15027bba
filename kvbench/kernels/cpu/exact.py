"""Decode attention over exact fp32 tensors through the CPU kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels.cpu.jobs import exact_task
from kvbench.kernels.cpu.launch import share
from kvbench.kernels.cpu.merge import join_splits
from kvbench.kernels.cpu.work_split import mask_bytes, splits_for
from kvbench.kernels.reference import Partial


def exact_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, rank) over ``keys``, ``values`` (batch, groups, tokens, ·) in fp32.

    ``before``: keys and values of earlier tokens. ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, all
    tokens).
    """
    batch, groups, rows, rank = query.shape
    spans = [(keys, values)] if before is None else [before, (keys, values)]
    # Copies must outlive the kernel, which only knows their addresses.
    sides = [own if own.stride(-1) == 1 else own.contiguous() for span in spans for own in span]
    scaled, tokens, width = (query * scaling).contiguous(), sum(own.shape[2] for own in sides[::2]), values.shape[-1]
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    out, lse = torch.empty(units, rows, width), torch.empty(units, rows)
    mask_at, mask_row, mask_head, mask = mask_bytes(mask, batch, groups)
    fields = np.array([_side(own) for own in sides], np.int64)

    arguments = [splits, len(spans), groups, rows, scaled.data_ptr(), rank, width, fields.ctypes.data]
    arguments += [mask_at, mask_row, mask_head, out.data_ptr(), lse.data_ptr()]
    share(exact_task, arguments, units, 4 * batch * groups * tokens * (rank + width))
    part = join_splits(out, lse, splits)
    return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))


def _side(states: Tensor) -> tuple[int, ...]:
    """What the kernel asks of keys or values: its fields in order."""
    row, head, token, _ = states.stride()
    return states.data_ptr(), 4 * row, 4 * head, 4 * token, states.shape[-1], states.shape[2]
