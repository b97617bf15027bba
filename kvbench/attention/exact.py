"""Decode attention over exact fp32 tensors through the CPU kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.attention.joining import join_splits
from kvbench.attention.partial import Partial
from kvbench.attention.tasks import exact_task
from kvbench.attention.threads import share
from kvbench.attention.units import mask_bytes, splits_for


def exact_decode(query: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None = None) -> Partial:
    """Attention of ``query`` (batch, groups, rows, rank) over ``keys``, ``values`` (batch, groups, tokens, ·) in fp32.

    ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens).
    """
    batch, groups, rows, _ = query.shape
    tokens = keys.shape[2]
    scaled = (query * scaling).contiguous()
    # Copies must outlive the kernel, which only knows their addresses.
    keys, values = (own if own.stride(-1) == 1 else own.contiguous() for own in (keys, values))
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    out, lse = torch.empty(units, rows, values.shape[-1]), torch.empty(units, rows)
    key_side, value_side = _side(keys), _side(values)
    mask_at, mask_row, mask_head, mask = mask_bytes(mask, batch, groups)

    arguments = [splits, tokens, groups, rows, scaled.data_ptr(), key_side.ctypes.data, value_side.ctypes.data]
    arguments += [mask_at, mask_row, mask_head, out.data_ptr(), lse.data_ptr()]
    share(exact_task, arguments, units, 4 * batch * groups * tokens * (keys.shape[-1] + values.shape[-1]))
    part = join_splits(out, lse, splits)
    return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))


def _side(states: Tensor) -> Any:
    row, head, token, _ = (4 * step for step in states.stride())
    return np.array([states.data_ptr(), row, head, token, states.shape[-1]], np.int64)
