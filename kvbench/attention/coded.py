"""Decode attention on stored codes: what the CPU kernel needs to know, and its results as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.attention import coded_kernel as kernel
from kvbench.attention.layout import Layout, layout
from kvbench.attention.partial import Partial
from kvbench.attention.tasks import coded_task
from kvbench.attention.threads import share
from kvbench.attention.units import gather_splits, mask_bytes, splits_for
from kvbench.quantizers.coded import Coded


def readable(coded: Coded) -> bool:
    """Whether the CPU kernel can read ``coded``: scales in fp16, channel groups of whole vectors."""
    whole = coded.scale is None or coded.scale.shape[-1] == 1 or coded.channel % 16 == 0
    return whole and all(scale is None or scale.dtype == torch.float16 for scale in (coded.scale, coded.zero))


def coded_attention(
    query: Tensor, keys: Coded, values: Coded, tokens: int, scaling: float, mask: Tensor | None = None
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, key rank) fp32 over ``tokens`` stored tokens.

    ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens). The output is (batch, groups, rows, value
    rank): latents, to be brought back by whoever took the query into the keys' latents.
    """
    batch, groups, rows, _ = query.shape
    key_layout, value_layout = layout(keys), layout(values)
    latent = _columns(query, keys, key_layout, scaling)
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    out = torch.empty(units, rows, len(value_layout.sources))
    lse = torch.empty(units, rows)
    key_side, value_side = _side(keys, key_layout), _side(values, value_layout, signed=True)
    mask_at, mask_row, mask_head, mask = mask_bytes(mask, batch, groups)

    arguments = [splits, tokens, groups, rows, latent.data_ptr(), key_side.ctypes.data, value_side.ctypes.data]
    arguments += [mask_at, mask_row, mask_head, out.data_ptr(), lse.data_ptr()]
    share(
        coded_task, arguments, units, batch * groups * tokens * (key_layout.group_bytes + value_layout.group_bytes) // 8
    )
    return _components(gather_splits(out, lse, batch, groups, splits), values, value_layout)


def _columns(query: Tensor, keys: Coded, own: Layout, scaling: float) -> Tensor:
    """The query (batch, groups, rows, columns) as the unpacked bytes meet it."""
    picked = query if own.in_order else query[..., own.sources]
    if not own.looked_up and keys.component is None:
        return (picked * scaling).contiguous()
    return (picked.float() * (_worth(keys, own) * scaling)).contiguous()


def _components(part: Partial, values: Coded, own: Layout) -> Partial:
    """Sums over bytes (batch, groups, rows, columns) → latents (batch, groups, rows, rank)."""
    if not own.looked_up and values.component is None:
        return part
    output = part.output * _worth(values, own)
    if not own.in_order:
        output = output.new_zeros(*output.shape[:-1], len(values.widths)).index_add_(-1, own.sources, output)
    return Partial(output, part.lse)


def _worth(coded: Coded, own: Layout) -> Tensor:
    """What one unit of each column's byte is worth (columns,)."""
    return own.factors if coded.component is None else own.factors * coded.component[own.sources]


def _side(coded: Coded, own: Layout, signed: bool = False) -> Any:
    """What the kernel asks of stored keys or values, these as ``signed`` bytes; see the field numbers there."""
    side = np.zeros(kernel.FIELDS, np.int64)
    codes = coded.codes
    channels = 1 if coded.scale is None else coded.scale.shape[-1]
    side[[kernel.CODES, kernel.ROW, kernel.HEAD]] = codes.data_ptr(), codes.stride(0), codes.stride(1)
    side[[kernel.GROUP_BYTES, kernel.RANK, kernel.PADDED]] = own.group_bytes, len(own.sources), own.columns
    if coded.scale is not None:
        side[[kernel.SCALE, kernel.SCALE_ROW, kernel.SCALE_HEAD]] = (
            coded.scale.data_ptr(), coded.scale.stride(0), coded.scale.stride(1)
        )  # fmt: skip
    if coded.zero is not None:
        side[kernel.ZERO] = coded.zero.data_ptr()
    side[[kernel.CHANNELS, kernel.PER_CHANNEL_GROUP]] = channels, coded.channel if channels > 1 else own.columns
    side[[kernel.DIRECT, kernel.NIBBLES]] = own.direct, own.nibbles
    side[[kernel.AFFINE, kernel.UNPACKING]] = own.affine.ctypes.data, own.unpacking.ctypes.data
    if signed and (own.looked_up or max(coded.widths) == 8):
        side[kernel.FLIP] = 0x80808080
    return side
