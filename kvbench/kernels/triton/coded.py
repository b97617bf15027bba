"""Decode attention on stored codes on the GPU: what the Triton kernel needs to know, and its results as tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kvbench.codecs.kernel_view import Coded, LevelTables, level_tables
from kvbench.codecs.packing import TOKENS_PER_GROUP
from kvbench.kernels.reference import Part, Partial
from kvbench.kernels.triton.coded_kernel import attend
from kvbench.kernels.triton.splits import Out, Query, as_mask, cut, merged, on
from kvbench.kernels.triton.unpack_plan import Program, SidePlan, plan, table

_MOST_BLOCKS = 16
"""A kernel is unrolled over the blocks of both sides: with more of them it takes minutes to compile."""

_STAGES = 2


class _Side(NamedTuple):
    """Stored keys or values as a kernel reads them: tensors and strides, bytes for codes and elements for scales."""

    codes: Tensor
    row: int
    head: int
    group: int
    scale: Tensor | None
    zero: Tensor | None
    scale_row: int
    scale_head: int
    scale_token: int
    component: Tensor | None
    levels: Tensor | None
    units: Tensor | None
    table: Tensor | None
    rank: int


def readable(keys: Coded, values: Coded) -> bool:
    """Whether the Triton kernel can read both sides, by :func:`side_readable`."""
    return side_readable(keys) and side_readable(values)


def side_readable(coded: Coded) -> bool:
    """Whether the Triton kernel can read ``coded``: scales of tokens in fp16, dense codes, few blocks of components.

    All widths from 0 to 8 and their mixtures, all ranks and channel groups; a block has up to 128 components of one
    channel group, in uniform widths a power of two of them, and 2 or 4 blocks share the words of fields of 2 or 1 bits.
    There are at most 16. Components with a scale per block of tokens are not read.
    """
    if coded.blocks is not None:
        return False
    affine = [part for part in (coded.scale, coded.zero) if part is not None]
    alike = len(affine) < 2 or affine[0].stride() == affine[1].stride()
    dense = coded.codes.stride(-1) == 1 and all(part.stride(-1) == 1 or part.shape[-1] == 1 for part in affine)
    blocks = sum(len(channel.blocks) for channel in plan(coded.widths, coded.channel, False))
    return dense and alike and all(part.dtype == torch.float16 for part in affine) and blocks <= _MOST_BLOCKS


def prepared(
    shape: tuple[int, int, int, int], keys: Coded, values: Coded, tokens: int, scaling: float
) -> Callable[..., Part]:
    """What :class:`kvbench.kernels.cpu.coded.CodedAttention` is on the CPU, for queries of exactly this ``shape``."""

    def attend(query: Tensor, mask: Tensor | None = None) -> Part:
        return triton_coded_attention(query, keys, values, tokens, scaling, mask)

    return attend


def triton_coded_attention(
    query: Tensor, keys: Coded, values: Coded, tokens: int, scaling: float, mask: Tensor | None = None
) -> Partial:
    """Attention of ``query`` (batch, groups, rows, key rank), bf16, fp16 or fp32, over ``tokens`` stored tokens.

    ``mask`` is boolean, broadcastable to (batch, groups or 1, 1, tokens). The output (batch, groups, rows, value rank)
    and its log-sum-exp are fp32. A query for latents comes projected into the keys', and sums of the values' latents
    go out as they are. Both sides must be :func:`readable`.
    """
    batch, groups, rows, _ = query.shape
    key_side, key_plan = _side(keys)
    value_side, value_plan = _side(values)
    demanding = any(side.table is not None or side.codes.shape[-1] > 1024 for side in (key_side, value_side))
    tile = 16 if demanding else 32  # groups of eight tokens, as many as registers hold
    how = cut(batch, groups, rows, triton.cdiv(tokens, tile * TOKENS_PER_GROUP), query.device)
    shape = (batch, groups, how.splits, rows)
    dropped = 0 in values.widths
    out = Out(
        (torch.zeros if dropped else torch.empty)(*shape, value_side.rank, device=query.device),
        torch.empty(shape, device=query.device),
    )
    program = Program(how.rows, tile, key_plan, value_plan, query.dtype == torch.float32)
    with on(query.device):
        attend[(how.splits, groups * how.blocks, batch)](
            Query(query.contiguous(), groups, rows, float(scaling)), key_side, value_side,
            as_mask(mask, batch, groups), out, tokens, program, num_stages=_STAGES,
        )  # fmt: skip
        return merged(out)


def _side(coded: Coded) -> tuple[_Side, SidePlan]:
    codes, affine = coded.codes, coded.scale if coded.scale is not None else coded.zero
    row, head, token = (0, 0, 0) if affine is None else (affine.stride(0), affine.stride(1), affine.stride(2))
    levels, units = (None, None) if coded.levels is None else _tables(level_tables(coded.levels))
    side = _Side(
        codes, codes.stride(0), codes.stride(1), codes.stride(2), coded.scale, coded.zero, row, head, token,
        coded.component, levels, units, table(coded.widths, codes.device), len(coded.widths),
    )  # fmt: skip
    aligned = codes.data_ptr() % 4 == 0 and all(step % 4 == 0 for step in codes.stride()[:3])
    return side, plan(coded.widths, coded.channel, aligned)


@lru_cache(maxsize=1024)
def _tables(tables: LevelTables) -> tuple[Tensor, Tensor]:
    """Levels (9, 256) fp16 by width, in units (9,) of their largest / 127: whole numbers if they lie on that grid."""
    levels = {width: same.value for width, same in tables}
    device = next(iter(levels.values())).device
    level_tables = torch.zeros(9, 256, device=device)
    for width, values in levels.items():
        level_tables[width, : len(values)] = values
    units = level_tables.abs().amax(1) / 127
    units = torch.where(units > 0, units, 1.0)
    return (level_tables / units[:, None]).half(), units
