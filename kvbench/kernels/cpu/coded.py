"""Decode attention on stored codes: what the CPU kernel needs to know, and its results as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kvbench.codecs.kernel_view import Coded
from kvbench.kernels.cpu.column_layout import Layout, layout
from kvbench.kernels.cpu.jobs import coded_task
from kvbench.kernels.cpu.launch import share
from kvbench.kernels.cpu.merge import join_splits
from kvbench.kernels.cpu.work_split import mask_bytes, splits_for
from kvbench.kernels.reference import Partial


def readable(coded: Coded) -> bool:
    """Whether the CPU kernel can read ``coded``: scales in fp16, channel groups of whole vectors."""
    whole = coded.scale is None or coded.scale.shape[-1] == 1 or coded.channel % 16 == 0
    return whole and all(scale is None or scale.dtype == torch.float16 for scale in (coded.scale, coded.zero))


def coded_attention(
    query: Tensor,
    keys: Coded,
    values: Coded,
    tokens: int,
    scaling: float,
    mask: Tensor | None = None,
    key_basis: Basis | None = None,
    value_basis: Basis | None = None,
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, key rank) fp32 over ``tokens`` stored tokens.

    ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens). The output is (batch, groups, rows, value
    rank). With a basis for keys, queries are those of the heads (…, head_dim), and are taken into the latents; with one
    for values, outputs are brought back from them.
    """
    batch, groups, rows, _ = query.shape
    query = query.contiguous()
    splits = splits_for(batch * groups, tokens)
    units = batch * groups * splits
    width = len(values.widths) if value_basis is None else value_basis.head_dim
    out, lse = torch.empty(units, rows, width), torch.empty(units, rows)
    mask_at, mask_row, mask_head, mask = mask_bytes(mask, batch, groups)
    key_layout, value_layout = layout(keys), layout(values)

    arguments = [splits, tokens, groups, rows, query.data_ptr(), _bits(scaling), mask_at, mask_row, mask_head]
    arguments += [out.data_ptr(), lse.data_ptr(), *_side(keys, key_layout, rows, key_basis)]
    arguments += _side(values, value_layout, rows, value_basis, signed=True)
    # What takes the time is multiplying bytes, however few bits they are stored in.
    share(coded_task, arguments, units, batch * groups * tokens * (key_layout.columns + value_layout.columns))
    part = join_splits(out, lse, splits)
    return Partial(part.output.view(batch, groups, rows, -1), part.lse.view(batch, groups, rows))


@dataclass(frozen=True, eq=False)
class Basis:
    """Latents z stand for states ``z · decoder + mean`` (groups, rank, n · head_dim), n KV heads to a group.

    Both are fp16, or both fp32.
    """

    decoder: Tensor
    mean: Tensor
    head_dim: int

    @property
    def usable(self) -> bool:
        """Whether the kernel can read it where it lies."""
        dense = self.decoder.stride(-1) == 1 and self.mean.stride(-1) == 1
        alike = self.decoder.dtype == self.mean.dtype in (torch.float16, torch.float32)
        return dense and alike and self.decoder.dim() == 3

    def fields(self, rows: int) -> tuple[int, ...]:
        """What the kernel asks of it, in order, for ``rows`` of queries in a group."""
        decoder, mean = self.decoder, self.mean
        heads = decoder.shape[-1] // self.head_dim
        at = decoder.data_ptr(), decoder.stride(0), decoder.stride(1)
        halves = decoder.dtype == torch.float16
        return *at, mean.data_ptr(), mean.stride(0), self.head_dim, rows // heads, halves


@lru_cache(maxsize=64)
def _bits(x: float) -> int:
    """``x`` in fp32, as an integer."""
    return int(np.float32(x).view(np.int32))


def _side(coded: Coded, own: Layout, rows: int, basis: Basis | None, signed: bool = False) -> list[int]:
    """What the kernel asks of stored keys or values, these as ``signed`` bytes: its fields in order."""
    codes, scale, zero = coded.codes, coded.scale, coded.zero
    channels = 1 if scale is None else scale.shape[-1]
    worth = own.worth(coded.component)
    return [
        codes.data_ptr(),
        codes.stride(0),
        codes.stride(1),
        own.group_bytes,
        len(own.sources),
        own.columns,
        0 if scale is None else scale.data_ptr(),
        0 if zero is None else zero.data_ptr(),
        0 if scale is None else scale.stride(0),
        0 if scale is None else scale.stride(1),
        channels,
        coded.channel if channels > 1 else own.columns,
        own.direct,
        own.nibbles,
        0x80808080 if signed and (own.looked_up or max(coded.widths) == 8) else 0,
        own.affine.ctypes.data,
        own.unpacking.ctypes.data,
        len(coded.widths),
        0 if own.in_order else own.sources.ctypes.data,
        0 if worth is None else worth.ctypes.data,
        *((0, 0, 0, 0, 0, len(coded.widths), rows, 0) if basis is None else basis.fields(rows)),
    ]
